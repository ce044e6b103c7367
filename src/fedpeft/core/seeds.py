"""Seeds: every random number of a run is derived from one root seed and a path.

    root ── "cohort" ── 7                  the clients of round 7
         └─ "turn" ── 7 ── "client-12"     the local training of one client in round 7

The same root and path give the same seed on every machine; another path gives another seed. Only
`isolated` uses the global generators, so the order of calls cannot change a result.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def derive(root: int, *path: str | int) -> int:
    """Derive a seed in [0, 2**63) from a root and a path.

    Args:
      root: the root seed of the run; any integer.
      path: words and whole numbers; `"1"` and `1` are different steps.
    """
    text = "\x1f".join([f"i{root}", *(f"{'i' if isinstance(p, int) else 's'}{p}" for p in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(root: int, *path: str | int) -> torch.Generator:
    """Return a fresh CPU generator, seeded with `derive(root, *path)`."""
    return torch.Generator().manual_seed(derive(root, *path))


@contextlib.contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seed the global generators of `random`, numpy and torch in the block, then restore them.

    Building and changing models draws from torch's global generator, with no way to pass another;
    no other code uses it.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def uniforms(keys: Tensor, count: int) -> Tensor:
    """Draw `count` numbers in [0, 1) for each key, from the key alone (a counter-based generator).

    A row depends on its key alone, and not on its batch, the device or the order of calls. Dropout
    uses it, so that the layout of a batch cannot change a mask.

    Args:
      keys: int64, any shape [...].
      count: how many numbers to draw for each key; >= 0.

    Returns:
      float32 [..., count], multiples of 2**-24.

    References:
      Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014 (the mixer).
    """
    steps = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64)
    mixed = _mix(_mix(keys).unsqueeze(-1) + steps * _GOLDEN)
    return _shift(mixed, 40).to(torch.float32) * 2.0**-24


_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right, filling in zeros (a logical shift)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
