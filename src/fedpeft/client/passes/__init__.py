"""Training of several clients in one pass over their shared backbone."""
