"""One room at a time, pure and quick."""
