"""The simulator keeps its word."""
