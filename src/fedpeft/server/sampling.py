"""Samplers: which clients a round asks.

    draw      (clients, memory, this draw) -> the cohort, in order
    observe   (memory, this draw, each client's own figures) -> the new memory

What a sampler learns from round to round is in the server's memory, and so in its checkpoint: an
interrupted run that resumes asks the same clients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedpeft.client.turns import Memory
from fedpeft.core import seeds
from fedpeft.core.errors import ConfigError
from fedpeft.core.noise import uniform

__all__ = [
    "ClientMetrics",
    "Draw",
    "Sampler",
    "fixed",
    "fixed_cohort",
    "poisson",
    "poisson_cohort",
    "sampler_of",
]


@dataclass(frozen=True)
class Draw:
    """One draw of a cohort.

    Attributes:
      round: from 1.
      size: how many clients to ask.
      seed: the run's root seed.
      root: the server's secret root, where it has one: for cohorts that nobody else may know.
    """

    round: int
    size: int
    seed: int
    root: Tensor | None = field(default=None, repr=False)


ClientMetrics = Mapping[str, Mapping[str, float]]
"""client -> name -> figure: what the clients that answered say of their own training."""


@dataclass(frozen=True)
class Sampler:
    """How the clients of a round are chosen; state in, state out.

    Attributes:
      draw: (clients, memory, draw) -> the cohort: distinct clients, in order. It must depend on
        its arguments alone; take randomness from `seeds.generator(draw.seed, ..., draw.round)`.
      observe: (memory, draw, metrics) -> memory, after each round; {} before the first.
      secret: whether cohorts are drawn from the server's secret, and stand in no record.
    """

    draw: Callable[[Sequence[str], Memory, Draw], Sequence[str]]
    observe: Callable[[Memory, Draw, ClientMetrics], Memory] = lambda memory, draw, metrics: memory
    secret: bool = False


def fixed() -> Sampler:
    """Draw a cohort of fixed size, uniformly without replacement."""
    return Sampler(
        lambda clients, memory, draw: fixed_cohort(
            clients, min(draw.size, len(clients)), seed=draw.seed, round=draw.round
        )
    )


def poisson(probability: float) -> Sampler:
    """Draw each client by its own secret coin; cohorts may be empty.

    Args:
      probability: of each client, in (0, 1]; what amplification by sampling counts on.
    """

    def draw(clients: Sequence[str], memory: Memory, draw: Draw) -> Sequence[str]:
        assert draw.root is not None, "a private server has a secret root"
        return poisson_cohort(clients, probability, root=draw.root, round=draw.round)

    return Sampler(draw, secret=True)


def sampler_of(choose: Sampler | Callable[[Sequence[str], int], Sequence[str]]) -> Sampler:
    """Make a sampler of a plain function (clients, round) -> cohort; a sampler stays as it is."""
    if isinstance(choose, Sampler):
        return choose
    return Sampler(lambda clients, memory, draw: choose(clients, draw.round))


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


def poisson_cohort(
    clients: Sequence[str], probability: float, *, root: Tensor, round: int
) -> tuple[str, ...]:
    """Draw each client by its own secret coin; a cohort may be empty.

    Args:
      clients: all, in a fixed order.
      probability: of each client, in (0, 1].
      root: the server's secret root [32].
      round: from 1.
    """
    coins = uniform(root, len(clients), "cohort", round)
    return tuple(clients[place] for place in np.flatnonzero(coins < probability).tolist())
