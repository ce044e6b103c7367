"""The server's state between rounds, and the types of its algorithms."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedpeft.client.turns import Memory, Payload
from fedpeft.core.deltas import DeltaSpec, digest_of

_NO_ROOT = torch.empty(0, dtype=torch.uint8)


@dataclass(frozen=True)
class ServerState:
    """The state that the server carries from round to round.

    Attributes:
      round: number of rounds done; 0 before the first.
      delta: the global delta, flat [P].
      buffers: the global floating-point buffers, flat; empty where none are sent.
      memory: memory of the algorithm, the sampler, the clock and the stages' server halves.
      committed: client -> number of the last turn whose reply the server accepted.
      root: the server's secret root [32] of noise and cohorts; empty where none is needed. It is
        stored in the checkpoint only, never in a record, a message, an export or a printed state.
    """

    round: int
    delta: Tensor
    buffers: Tensor
    memory: Memory = field(default_factory=dict)
    committed: Mapping[str, int] = field(default_factory=dict)
    root: Tensor = field(default=_NO_ROOT, repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the round, the delta, the buffers and the server's memory."""
        parts = [self.delta, self.buffers, *(self.memory[name] for name in sorted(self.memory))]
        named = [
            str(self.round),
            *sorted(self.memory),
            *(digest_of(part.reshape(-1)) for part in parts),
        ]
        return hashlib.sha256("\0".join(named).encode()).hexdigest()


@dataclass(frozen=True)
class RoundContext:
    """The facts of one round that its functions may use.

    Attributes:
      round: number of the round, from 1.
      cohort: the selected clients, in order.
      expected_cohort: mean size of a cohort (the denominator under privacy).
      seed: the run's root seed.
      turns: client -> number of its turn, where it differs from the round's.
      root: the server's secret root [32]; empty where none is needed.
      origin: digest (hex) of the state from which the round started, which keys the noise of the
        root; "" where there is none.
    """

    round: int
    cohort: tuple[str, ...]
    expected_cohort: float
    seed: int
    turns: Mapping[str, int] = field(default_factory=dict)
    root: Tensor = field(default=_NO_ROOT, repr=False)
    origin: str = ""


@dataclass(frozen=True)
class ClientUpdate:
    """One decoded reply.

    Attributes:
      client: name of the client.
      payload: `delta` (an update, flat [P]) and perhaps `buffers` (values).
      weight: weight of this client in the mean, > 0.
      spec: spec of the update; the same for all clients unless the plan gives them specs of their
        own.
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
      weight: sum of the weights of the replies.
    """

    delta: Tensor
    buffers: Tensor
    weight: float


@dataclass(frozen=True)
class Algorithm:
    """A federated algorithm: four functions, no memory of its own.

    Attributes:
      init: (delta, buffers) -> the state before round 1.
      broadcast: (state, client) -> the payload for a client.
      combine: (updates in cohort order, context) -> the combined update.
      apply: (state, update) -> the new state, with one more round counted.
      prox_mu: weight of the proximal term in the clients' loss, >= 0.
    """

    init: Callable[[Tensor, Tensor], ServerState]
    broadcast: Callable[[ServerState, str], Payload]
    combine: Callable[[Iterable[ClientUpdate], RoundContext], Update]
    apply: Callable[[ServerState, Update], ServerState]
    prox_mu: float = 0.0
