"""Vendors: pure translation, no socket, no clock."""
