"""What the server knows between two rounds, and what a round is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedpeft.client.turns import Memory, Payload
from fedpeft.core.deltas import DeltaSpec

__all__ = ["Algorithm", "ClientUpdate", "RoundContext", "ServerState", "Update"]


_NO_ROOT = torch.empty(0, dtype=torch.uint8)


@dataclass(frozen=True)
class ServerState:
    """Everything of the server that survives a round.

    Attributes:
      round: rounds done; 0 before the first.
      delta: the global delta, flat [P].
      buffers: the global floating buffers, flat; empty where none travel.
      memory: of the algorithm and of the stages' server halves.
      committed: client -> the last round whose reply of this client was taken.
      root: the server's secret root [32] of noise and cohorts; empty where it needs none. It
        stays in the checkpoint: never in a record, a message, an export or a printed state.
    """

    round: int
    delta: Tensor
    buffers: Tensor
    memory: Memory = field(default_factory=dict)
    committed: Mapping[str, int] = field(default_factory=dict)
    root: Tensor = field(default=_NO_ROOT, repr=False)


@dataclass(frozen=True)
class RoundContext:
    """What the functions of one round may know.

    Attributes:
      round: from 1.
      cohort: the clients that were asked, in order.
      expected_cohort: how many clients a round asks on average (the denominator under privacy).
      seed: the run's root seed.
      turns: client -> number of its turn, where it is not the round's.
      root: the server's secret root [32]; empty where it needs none.
    """

    round: int
    cohort: tuple[str, ...]
    expected_cohort: float
    seed: int
    turns: Mapping[str, int] = field(default_factory=dict)
    root: Tensor = field(default=_NO_ROOT, repr=False)


@dataclass(frozen=True)
class ClientUpdate:
    """One decoded reply.

    Attributes:
      client: name.
      payload: `delta` (an update, flat [P]) and perhaps `buffers` (values).
      weight: of this client in the mean, > 0.
      spec: of the update, as this client was asked for it; the same for all unless clients differ.
    """

    client: str
    payload: Payload
    weight: float
    spec: DeltaSpec


@dataclass(frozen=True)
class Update:
    """The cohort's combined update.

    Attributes:
      delta: flat [P]; the weighted mean of the clients' updates.
      buffers: flat; the weighted mean of the clients' buffers, or empty.
      weight: the sum of the weights that answered.
    """

    delta: Tensor
    buffers: Tensor
    weight: float


@dataclass(frozen=True)
class Algorithm:
    """A federated algorithm: four functions, no memory of its own.

    Attributes:
      init: from delta and buffers to the state before round 1.
      broadcast: what a client gets.
      combine: a stream of updates, in cohort order, into one.
      apply: the new state after an update; counts the round.
      prox_mu: weight of the proximal term that its clients add to their loss, >= 0.
    """

    init: Callable[[Tensor, Tensor], ServerState]
    broadcast: Callable[[ServerState, str], Payload]
    combine: Callable[[Iterable[ClientUpdate], RoundContext], Update]
    apply: Callable[[ServerState, Update], ServerState]
    prox_mu: float = 0.0
