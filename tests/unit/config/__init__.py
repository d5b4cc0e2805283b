"""The room that reads the configuration."""
