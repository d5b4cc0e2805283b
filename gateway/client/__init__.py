"""The HTTP client of a gateway, for the command line and chaos."""
