"""Clipping and noise: the arithmetic that the privacy stages and private training share.

    clip(x, C) = x * min(1, C / |x|)          |.| the L2 norm over the whole flat buffer
    gaussian   = N(0, s^2), from SHAKE-256(root, path) through Box and Muller's transform

Noise for privacy must be unpredictable: it comes from a secret root of 32 bytes that the operating
system draws, expanded by a cryptographic hash, and not from a seed of the run. One root and path
give the same noise again, so that a resumed run repeats a round instead of noising it twice.

References:
  Box, Muller, A Note on the Generation of Random Normal Deviates, 1958.
"""

from __future__ import annotations

import hashlib
import math
import os

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpeft.core import seeds
from fedpeft.core.errors import PrivacyError

__all__ = ["clip", "clip_rows", "draw_root", "gaussian", "seeded_root", "uniform"]

_ROOT_BYTES = 32


def clip(flat: Tensor, bound: float) -> Tensor:
    """Return a copy of `flat`, scaled down to L2 norm `bound` where it is longer.

    Args:
      flat: [P]; values that are not finite stay so.
      bound: > 0; infinity changes nothing.
    """
    if math.isinf(bound):
        return flat.clone()
    norm: Tensor = torch.linalg.vector_norm(flat, dtype=torch.float64)
    shorter = (bound / norm) * (1 - 2.0**-22)  # room for rounding: the result is never too long
    return flat * torch.where(norm <= bound, 1.0, shorter).to(flat.dtype)


def clip_rows(rows_BP: Tensor, bound: float) -> Tensor:
    """Clip each row [P] of [B, P] by itself."""
    if math.isinf(bound):
        return rows_BP
    norms_B: Tensor = torch.linalg.vector_norm(rows_BP, dim=1, dtype=torch.float64)
    shorter_B = (bound / norms_B) * (1 - 2.0**-22)
    return rows_BP * torch.where(norms_B <= bound, 1.0, shorter_B).to(rows_BP.dtype).unsqueeze(1)


def draw_root() -> Tensor:
    """Draw a secret root [32] of bytes from the operating system."""
    return torch.tensor(list(os.urandom(_ROOT_BYTES)), dtype=torch.uint8)


def seeded_root(seed: int) -> Tensor:
    """Return a root [32] that anyone with the seed can compute: for simulation, not private."""
    digest = hashlib.sha256(f"simulation: not private {seeds.derive(seed, 'privacy')}".encode())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def uniform(root: Tensor, count: int, *path: str | int) -> npt.NDArray[np.float64]:
    """Draw `count` numbers in (0, 1), from a root [32] and a path of words and numbers.

    Raises:
      PrivacyError: if the root does not have 32 bytes: the noise would be predictable.
    """
    if root.numel() != _ROOT_BYTES:
        raise PrivacyError(
            f"the secret root of the noise has {root.numel()} bytes; {_ROOT_BYTES} are needed. A "
            "run whose checkpoint lacks it cannot go on: start it again in another folder"
        )
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in path)
    key = bytes(root.tolist()) + text.encode()
    stream = hashlib.shake_256(key).digest(8 * count)
    bits = np.frombuffer(stream, dtype="<u8") >> np.uint64(11)
    return (bits.astype(np.float64) + 0.5) * 2.0**-53


def gaussian(root: Tensor, count: int, deviation: float, *path: str | int) -> Tensor:
    """Draw float32 noise [count] with a standard deviation, from a root [32] and a path."""
    if deviation == 0:
        return torch.zeros(count)
    half = (count + 1) // 2
    draws = uniform(root, 2 * half, *path)
    radius = np.sqrt(-2.0 * np.log(draws[:half]))
    angle = 2.0 * math.pi * draws[half:]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return torch.from_numpy((deviation * normal).astype(np.float32))
