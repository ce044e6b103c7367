"""Pretrained models: families and their names, loading, presets, tasks. Independent of tuning."""
