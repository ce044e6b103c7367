"""Samplers: which clients take part in a round.

    draw      (clients, memory, this draw) -> the cohort, in order
    observe   (memory, this draw, each client's own metrics) -> the new memory

A sampler's memory is part of the server's memory, and so of its checkpoint: an interrupted run that
resumes selects the same clients.
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


@dataclass(frozen=True)
class Draw:
    """The parameters of one draw of a cohort.

    Attributes:
      round: number of the round, from 1.
      size: number of clients to draw.
      seed: the run's root seed.
      root: the server's secret root, where it has one, for cohorts that must stay secret.
    """

    round: int
    size: int
    seed: int
    root: Tensor | None = field(default=None, repr=False)


ClientMetrics = Mapping[str, Mapping[str, float]]
"""client -> metric -> value, as reported by the clients that replied."""


@dataclass(frozen=True)
class Sampler:
    """How the clients of a round are chosen; state in, state out.

    Attributes:
      draw: (clients, memory, draw) -> the cohort: distinct clients, in order. It must depend on
        its arguments alone; take randomness from `seeds.generator(draw.seed, ..., draw.round)`.
      observe: (memory, draw, metrics) -> memory, after each round; {} before the first.
      secret: whether cohorts are drawn from the server's secret root; records leave them out.
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
    """Draw each client independently and in secret (Poisson sampling); cohorts may be empty.

    Args:
      probability: probability of each client, in (0, 1]; privacy amplification relies on it.
    """

    def draw(clients: Sequence[str], memory: Memory, draw: Draw) -> Sequence[str]:
        assert draw.root is not None, "a private server has a secret root"
        return poisson_cohort(clients, probability, root=draw.root, round=draw.round)

    return Sampler(draw, secret=True)


def sampler_of(choose: Sampler | Callable[[Sequence[str], int], Sequence[str]]) -> Sampler:
    """Return a sampler for a plain function (clients, round) -> cohort, or a sampler unchanged."""
    if isinstance(choose, Sampler):
        return choose
    return Sampler(lambda clients, memory, draw: choose(clients, draw.round))


def fixed_cohort(clients: Sequence[str], size: int, *, seed: int, round: int) -> tuple[str, ...]:
    """Draw `size` of the clients uniformly without replacement.

    The draw depends on root seed and round alone, so every tuning method gets the same clients.

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
    """Draw each client independently and in secret; a cohort may be empty.

    Args:
      clients: all clients, in a fixed order.
      probability: probability of each client, in (0, 1].
      root: the server's secret root [32].
      round: number of the round, from 1.
    """
    coins = uniform(root, len(clients), "cohort", round)
    return tuple(clients[place] for place in np.flatnonzero(coins < probability).tolist())
