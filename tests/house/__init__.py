"""How the house is kept: rules about the source that no linter knows."""
