"""The words between a client and everybody else: payload, memory, turn, result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from torch import Tensor

from fedpeft.data.examples import ClientData

__all__ = [
    "BUFFERS",
    "DELTA",
    "ClientTurn",
    "LocalResult",
    "LocalTrainer",
    "Memory",
    "Payload",
    "part_of",
    "under",
]

Payload: TypeAlias = Mapping[str, Tensor]
"""What crosses the wire, either way."""

Memory: TypeAlias = Mapping[str, Tensor]
"""What a client, or the server, keeps for the next round."""


def part_of(memory: Memory, prefix: str) -> Memory:
    """Return the part of a memory that was kept under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in memory.items() if k.startswith(prefix)}


def under(prefix: str, part: Memory) -> Memory:
    """Return a part of a memory with its keys under a prefix, as `part_of` finds it."""
    return {prefix + key: value for key, value in part.items()}


DELTA = "delta"
"""Payload key of the flat delta: values on the way down, an update (after - before) up."""

BUFFERS = "buffers"
"""Payload key of the flat floating buffers: values both ways."""


@dataclass(frozen=True)
class ClientTurn:
    """One client in one round.

    Attributes:
      round: from 1.
      client: name of the client.
      data: the client's own examples.
      memory: what this client kept after its last committed turn.
      seed: of everything random in this turn.
      version: of the server state that the turn started from.
    """

    round: int
    client: str
    data: ClientData
    memory: Memory
    seed: int
    version: int


@dataclass(frozen=True)
class LocalResult:
    """What local training of one client gives.

    Attributes:
      payload: `delta`, the update (after - before), and `buffers` where the model has them.
      weight: the client's weight in the mean; its number of examples.
      metrics: figures of the client's own training, such as `loss`.
      memory: what the trainer keeps for this client's next turn.
    """

    payload: Payload
    weight: float
    metrics: Mapping[str, float]
    memory: Memory = field(default_factory=dict)


class LocalTrainer(Protocol):
    """Trains clients that start from one broadcast; one result a turn, in order."""

    def __call__(self, broadcast: Payload, turns: Sequence[ClientTurn]) -> Iterator[LocalResult]:
        """Train the clients of `turns`."""
        ...
