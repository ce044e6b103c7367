"""Theorem 1 of the paper, measured on a run."""
