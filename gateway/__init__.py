"""One process between agents and LLM providers."""
