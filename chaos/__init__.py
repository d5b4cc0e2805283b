"""Faults on purpose: the simulated provider and what is built on it."""
