"""Fakes and real servers that the tests share."""
