"""Foundations: errors, seeds, deltas, metrics. Independent of models and clients."""
