"""The real process: signals, kill -9, reload, the two commands of the README."""
