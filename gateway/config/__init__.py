"""From YAML to core objects, with every mistake told at once."""
