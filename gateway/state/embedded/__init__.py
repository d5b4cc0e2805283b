"""One machine: memory and one SQLite file."""
