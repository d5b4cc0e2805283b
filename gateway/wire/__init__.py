"""Bytes: JSON, server-sent events, the public API's shapes."""
