"""Finished runs, read back."""
