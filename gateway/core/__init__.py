"""The words (types) and the doors (ports) of the road."""
