"""Choosing the clients of a round."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedpeft.core import seeds
from fedpeft.core.errors import ConfigError

__all__ = ["fixed_cohort"]


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
    order = torch.randperm(len(clients), generator=seeds.generator(seed, "cohort", round))
    return tuple(clients[i] for i in order[:size].tolist())
