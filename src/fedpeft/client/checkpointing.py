"""Gradient checkpointing: blocks keep their input alone, and run again in the backward pass.

    forward    x -> block -> block -> block -> loss      kept: the inputs of the blocks
    backward   each block once more, then its gradient   kept: one block's activations at a time

The result is the same bit for bit: frozen models run in eval mode, and dropout masks follow from
keys. What a block reads besides its inputs (dropout keys, the clients' values of a pass) must be in
place in the backward pass too.

Reference: Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from torch import nn
from torch.utils.checkpoint import checkpoint

from fedpeft.tuning.tuned import TunedModel

_CACHES = ("cartridge", "prefix_tuning")
"""Methods whose virtual tokens are keys and values in a cache."""


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a model of `transformers` that can run twice; [] for other modules."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]


def why_not_twice(tuned: TunedModel) -> str:
    """Return why a model's blocks cannot run twice; "" if they can."""
    if tuned.method in _CACHES:
        return f"the blocks of a model with {tuned.method} write to a cache, and would do so twice"
    if not blocks_of(tuned.model):
        name = type(tuned.loaded.module).__name__
        return f"{name} has no blocks of transformers that can run twice"
    return ""


@contextlib.contextmanager
def checkpointed(model: nn.Module, *, on: bool) -> Iterator[None]:
    """Run the model's blocks with checkpoints within the context.

    A block whose `forward` is replaced already, by one that computes less, keeps that.
    """
    blocks = [part for part in blocks_of(model) if "forward" not in vars(part)] if on else []
    for block in blocks:
        run = functools.partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )
        object.__setattr__(block, "forward", run)
    try:
        yield
    finally:
        for block in blocks:
            object.__delattr__(block, "forward")
