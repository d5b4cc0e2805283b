"""How each public endpoint is spelled."""
