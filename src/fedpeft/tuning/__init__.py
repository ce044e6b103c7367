"""Tuning methods: a pretrained model in, the same model out with exactly the delta trainable."""
