"""The composition root: the only place that holds all the keys."""
