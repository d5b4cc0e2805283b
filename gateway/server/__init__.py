"""The front door: sockets of callers."""
