"""The simulated clock: how many seconds a turn would take on a client's own device and link.

    seconds = (bytes_down / down + examples / (rate * speed) + bytes_up / up) * slowdown
               download            compute                     upload

Links and speed are a client's own and stay the same for the whole run; the slowdown is drawn anew
for every turn. Nothing here waits: simulated seconds are counted, not spent. Every draw is a
function of the root seed and a path of words, so a run can be replayed, with any number of workers.

References:
  Lai et al., FedScale: Benchmarking Model and System Performance of Federated Learning at Scale,
  ICML 2022 (download + compute + upload as a client's cost).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch

from fedpeft.client.turns import Memory
from fedpeft.core import seeds

__all__ = [
    "Costs",
    "Stragglers",
    "Work",
    "clock_memory",
    "read_clock",
    "slowdown",
    "turn_seconds",
    "uniform",
]

_CLOCK = "clock.time"
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Stragglers:
    """How much longer than usual a turn takes, at random.

    Attributes:
      kind: `none`; `lognormal`, exp(shape z) with z standard normal, median 1; `pareto`,
        P(slowdown > x) = x**-shape for x >= 1.
      shape: deviation of the logarithm, or tail index; > 0. A Pareto tail of index 1 or less has no
        mean.
    """

    kind: Literal["none", "lognormal", "pareto"] = "none"
    shape: float = 1.0


@dataclass(frozen=True)
class Costs:
    """What a turn costs in simulated time.

    Attributes:
      rate: examples that a client of speed 1 trains on in a second, > 0.
      down: bytes that a link of speed 1 brings to the client in a second, > 0.
      up: bytes that it takes to the server in a second, > 0.
      speed_spread: deviation of the logarithm of the clients' computing speeds, >= 0; 0: all equal.
      link_spread: the same of their links.
      stragglers: slowdown of single turns.
    """

    rate: float = 100.0
    down: float = 1_250_000.0
    up: float = 250_000.0
    speed_spread: float = 0.0
    link_spread: float = 0.0
    stragglers: Stragglers = Stragglers()


@dataclass(frozen=True)
class Work:
    """What one turn asks of a client.

    Attributes:
      examples: trained on, all epochs together.
      bytes_down: of the broadcast, as encoded.
      bytes_up: of the reply, as encoded.
    """

    examples: int
    bytes_down: int
    bytes_up: int


def turn_seconds(costs: Costs, work: Work, client: str, turn: int, *, seed: int) -> float:
    """Return how long a turn takes, in simulated seconds from the broadcast to the reply.

    Args:
      costs: of all clients.
      work: of this turn.
      client: whose speed and link count.
      turn: number of the turn; gives the slowdown.
      seed: the root seed of the run.
    """
    speed = _factor(costs.speed_spread, seed, "speed", client)
    link = _factor(costs.link_spread, seed, "link", client)
    network = work.bytes_down / (costs.down * link) + work.bytes_up / (costs.up * link)
    compute = work.examples / (costs.rate * speed)
    return (network + compute) * slowdown(costs.stragglers, client, turn, seed=seed)


def slowdown(stragglers: Stragglers, client: str, turn: int, *, seed: int) -> float:
    """Draw the factor by which one turn takes longer, > 0."""
    if stragglers.kind == "none":
        return 1.0
    draw = uniform(seed, "slowdown", turn, client)
    if stragglers.kind == "pareto":
        return float(draw ** (-1 / stragglers.shape))
    return math.exp(stragglers.shape * _NORMAL.inv_cdf(draw))


def uniform(seed: int, *path: str | int) -> float:
    """Return a number in (0, 1) that depends on the root seed and the path alone."""
    return ((seeds.derive(seed, "stability", *path) >> 11) + 0.5) / 2**52


def read_clock(memory: Memory) -> float:
    """Return the simulated time that a server's memory holds, in seconds; 0 before round 1."""
    return float(memory[_CLOCK]) if _CLOCK in memory else 0.0


def clock_memory(time: float) -> Memory:
    """Return the part of a server's memory that holds the simulated time."""
    return {_CLOCK: torch.tensor(time, dtype=torch.float64)}


def _factor(spread: float, seed: int, *path: str) -> float:
    """Draw a client's own factor, log-normal with median 1."""
    return math.exp(spread * _NORMAL.inv_cdf(uniform(seed, *path))) if spread else 1.0
