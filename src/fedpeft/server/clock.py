"""The simulated clock: the seconds that a turn would take on a client's own device and link.

    seconds = (bytes_down / down + examples / (rate * speed) + bytes_up / up) * slowdown
               download            compute                     upload

Links and speed are a client's own and stay the same for the whole run; the slowdown is drawn anew
for every turn. Simulated seconds are only counted; nothing waits for them. Every random draw is a
function of the root seed and a path of words, so a run can be repeated with any number of workers.

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

_CLOCK = "clock.time"
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Stragglers:
    """The distribution of the factor by which a turn takes longer than usual.

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
    """The costs of a turn in simulated time.

    Attributes:
      rate: examples per second on which a client of speed 1 trains, > 0.
      down: download rate of a link of speed 1, in bytes per second, > 0.
      up: upload rate of a link of speed 1, in bytes per second, > 0.
      speed_spread: deviation of the logarithm of the clients' computing speeds, >= 0; 0: all equal.
      link_spread: deviation of the logarithm of the speeds of their links, >= 0.
      stragglers: distribution of the slowdown of single turns.
    """

    rate: float = 100.0
    down: float = 1_250_000.0
    up: float = 250_000.0
    speed_spread: float = 0.0
    link_spread: float = 0.0
    stragglers: Stragglers = Stragglers()


@dataclass(frozen=True)
class Work:
    """The work of one turn.

    Attributes:
      examples: number of examples trained on, over all epochs.
      bytes_down: size of the encoded broadcast.
      bytes_up: size of the encoded reply.
    """

    examples: int
    bytes_down: int
    bytes_up: int


def turn_seconds(costs: Costs, work: Work, client: str, turn: int, *, seed: int) -> float:
    """Return how long a turn takes, in simulated seconds from the broadcast to the reply.

    Args:
      costs: costs of all clients.
      work: work of this turn.
      client: name of the client, on which speed and link depend.
      turn: number of the turn, on which the slowdown depends.
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
