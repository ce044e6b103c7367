"""Choosing the clients of a round.

    randperm(n)[:k] = the first k swaps of a Fisher-Yates shuffle: z_i = u_i mod (n - i), swap(i, i + z_i)

Of a large population only those swaps are made: the cost is that of the cohort, the draw the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedpeft.core import seeds
from fedpeft.core.errors import ConfigError

__all__ = ["fixed_cohort"]

_LARGE = 10_000
"""From so many clients on, the shuffle is not made whole."""
_LARGEST = 2**32 // 20
"""Beyond, torch shuffles another way."""


def fixed_cohort(clients: Sequence[str], size: int, *, seed: int, round: int) -> tuple[str, ...]:
    """Draw `size` of the clients uniformly without replacement.

    The draw depends on root seed and round alone: every tuning method meets the same clients.

    Raises:
      ConfigError: if there are fewer clients than `size`.
    """
    if not 1 <= size <= len(clients):
        raise ConfigError(
            f"federation.clients_per_round: found {size}, allowed are 1 to {len(clients)} "
            "(the number of clients)"
        )
    generator = seeds.generator(seed, "cohort", round)
    return tuple(clients[place] for place in _first_places(len(clients), size, generator))


def _first_places(total: int, count: int, generator: torch.Generator) -> list[int]:
    """Return the first `count` places of `torch.randperm(total)`."""
    if not _LARGE <= total < _LARGEST or count > total // 8:
        return torch.randperm(total, generator=generator)[:count].tolist()
    moved: dict[int, int] = {}
    places = []
    for place, number in enumerate(_words(count, generator)):
        other = place + number % (total - place)
        places.append(moved.get(other, other))
        moved[other] = moved.get(place, place)
    return places


def _words(count: int, generator: torch.Generator) -> list[int]:
    """Draw the generator's next words of 32 bits; a number of 64 bits holds two, the first above."""
    pairs = torch.empty((count + 1) // 2, dtype=torch.int64)
    pairs.random_(-(2**63), None, generator=generator)
    halves = torch.stack([(pairs >> 32) & 0xFFFFFFFF, pairs & 0xFFFFFFFF], dim=1)
    words: list[int] = halves.reshape(-1)[:count].tolist()
    return words
