"""Several clients in one pass over the backbone."""
