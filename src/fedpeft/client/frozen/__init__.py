"""Cached features of frozen layers, and a shorter last block."""
