"""Trying a finished model: predictions for single inputs, and conversations."""
