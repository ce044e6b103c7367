"""Tuning methods: each makes exactly the delta of a pretrained model trainable."""
