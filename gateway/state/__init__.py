"""Limits, ledger, keys and health, behind the ports."""
