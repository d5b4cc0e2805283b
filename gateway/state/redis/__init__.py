"""State shared by many machines: Redis 6.2 or newer, with an append-only file."""
