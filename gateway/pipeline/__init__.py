"""The road of one request, one verb a file."""
