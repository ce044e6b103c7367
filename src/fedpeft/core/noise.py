"""Clipping and noise: the arithmetic that the privacy stages and private training share.

    clip(x, C) = x * min(1, C / |x|)          |.| the L2 norm over the whole flat buffer
    bounded    = clip, and zeros for a vector that is not finite
    gaussian   = N(0, s^2), from SHAKE-256(root, path) through Box and Muller's transform

Noise for privacy must be unpredictable: it comes from a secret root of 32 bytes that the operating
system draws, expanded by a cryptographic hash, and not from a seed of the run. One root and path
give the same noise again, so that a resumed run repeats a round instead of noising it twice.

Under privacy, whether a number is finite says something of the data: a server that makes numbers
overflow for one example only would read from an infinite reply whether a client holds it. So a
vector that is not finite counts as zeros, before noise is added and without a word.

References:
  Box, Muller, A Note on the Generation of Random Normal Deviates, 1958.
"""

from __future__ import annotations

import hashlib
import math
from os import urandom

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpeft.core import seeds
from fedpeft.core.errors import PrivacyError

_ROOT_BYTES = 32
_LONGEST = 1e30


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
    """Clip each row [P] of [B, P] by itself; a row that is not finite becomes zeros.

    With a finite bound, so does a row of norm 1e30 or more: its factor would be too small a float
    for the bound to hold exactly.
    """
    if math.isinf(bound):
        finite_B1 = torch.isfinite(rows_BP).all(1, keepdim=True)
        return torch.where(finite_B1, rows_BP, torch.zeros_like(rows_BP))
    norms_B: Tensor = torch.linalg.vector_norm(rows_BP, dim=1, dtype=torch.float64)
    shorter_B = (bound / norms_B) * (1 - 2.0**-22)
    factor_B = torch.where(norms_B <= bound, 1.0, shorter_B).to(rows_BP.dtype)
    usable_B1 = (norms_B < _LONGEST).unsqueeze(1)  # false for infinity and NaN
    return torch.where(usable_B1, rows_BP * factor_B.unsqueeze(1), torch.zeros_like(rows_BP))


def bounded(flat: Tensor, bound: float) -> Tensor:
    """Clip one vector [P] as `clip_rows` clips a row: the result is finite, whatever comes in."""
    return clip_rows(flat.unsqueeze(0), bound)[0]


def draw_root() -> Tensor:
    """Draw a secret root [32] of bytes from the operating system."""
    return torch.tensor(list(urandom(_ROOT_BYTES)), dtype=torch.uint8)


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
