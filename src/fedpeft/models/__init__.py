"""Pretrained models: families and their names, loading, presets, tasks. Knows nothing of tuning."""
