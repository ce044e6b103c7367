"""Dropout whose mask depends only on the turn, the step, the example and the layer.

    mask(example, layer) = hash(turn seed, step, example, layer) >= p

Ordinary dropout draws from a global generator, so the mask of an example would depend on the rest
of its batch and on which client trained before. Here a trainer sets one key per example before a
forward pass; without keys (evaluation) nothing is dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from fedpeft.core import seeds


@dataclass
class DropoutKeys:
    """The dropout keys of the examples in the current forward pass.

    Attributes:
      keys_B: int64 [B], one key an example; None outside training.
    """

    keys_B: Tensor | None = None

    @contextlib.contextmanager
    def using(self, keys_B: Tensor) -> Iterator[None]:
        """Set the keys for the forward passes inside the block, and restore the previous ones."""
        before, self.keys_B = self.keys_B, keys_B
        try:
            yield
        finally:
            self.keys_B = before


class KeyedDropout(nn.Module):
    """Dropout of elements of [B, ...] with probability `p`, by the keys of the B examples.

    Args:
      p: probability in [0, 1).
      keys: shared holder in which the trainer sets the keys.
      place: name of this layer, so that two layers draw different masks.
    """

    def __init__(self, p: float, keys: DropoutKeys, place: str) -> None:
        super().__init__()
        self.p = p
        self.keys = keys
        self.salt = seeds.derive(0, "dropout", place)

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements and rescale by 1 / (1 - p); the identity without keys or with p = 0."""
        if self.p == 0.0 or self.keys.keys_B is None:
            return x
        uniform = seeds.uniforms(self.keys.keys_B ^ self.salt, x[0].numel())
        keep = (uniform >= self.p).view(x.shape).to(x.dtype)
        return x * keep * (1.0 / (1.0 - self.p))

    def extra_repr(self) -> str:
        """Show `p` in the printed module, as torch's dropout does."""
        return f"p={self.p}"
