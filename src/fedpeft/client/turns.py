"""The interface between clients and engines: payload, memory, turn, result, trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from torch import Tensor

from fedpeft.data.examples import ClientData

Payload: TypeAlias = Mapping[str, Tensor]
"""Name -> tensor that is sent, in either direction."""

Memory: TypeAlias = Mapping[str, Tensor]
"""Name -> tensor that a client, or the server, keeps for the next round."""


def part_of(memory: Memory, prefix: str) -> Memory:
    """Return the entries of a memory under a prefix, with the prefix removed."""
    return {k.removeprefix(prefix): v for k, v in memory.items() if k.startswith(prefix)}


def under(prefix: str, part: Memory) -> Memory:
    """Return entries of a memory with a prefix added to their keys; the inverse of `part_of`."""
    return {prefix + key: value for key, value in part.items()}


DELTA = "delta"
"""Payload key of the flat delta: values in a broadcast, an update (after - before) in a reply."""

BUFFERS = "buffers"
"""Payload key of the flat floating buffers: values in both directions."""


@dataclass(frozen=True)
class ClientTurn:
    """One client in one round.

    Attributes:
      round: number of the round, from 1.
      client: name of the client.
      data: the client's own examples.
      memory: the memory that this client returned in its last committed turn.
      seed: seed of everything random in this turn.
      version: version of the server state from which the turn started.
      expected: in a stage's `decode`, the tensors that it must give back, by their names: of the
        right types and shapes, on the `meta` device, without numbers; {} elsewhere. It bounds what
        `decode` may take in memory, whatever a message claims.
      origin: digest (hex) of the broadcast, which keys privacy noise; "" where nobody gave one.
    """

    round: int
    client: str
    data: ClientData
    memory: Memory
    seed: int
    version: int
    expected: Payload = field(default_factory=dict)
    origin: str = ""


@dataclass(frozen=True)
class LocalResult:
    """The result of one client's local training.

    Attributes:
      payload: `delta`, the update (after - before), and `buffers` if the model sends them.
      weight: the client's weight in the mean: its number of examples.
      metrics: metrics of the client's own training, such as `loss`.
      memory: what the trainer keeps for this client's next turn.
    """

    payload: Payload
    weight: float
    metrics: Mapping[str, float]
    memory: Memory = field(default_factory=dict)


class LocalTrainer(Protocol):
    """A function that trains clients from one broadcast, and yields one result per turn, in order.

    Example:
      >>> import torch
      >>> from fedpeft.client.turns import DELTA, LocalResult
      >>> def do_nothing(broadcast, turns):
      ...     for turn in turns:
      ...         yield LocalResult({DELTA: torch.zeros_like(broadcast[DELTA])}, 1.0, {})
      >>> [result.weight for result in do_nothing({DELTA: torch.ones(3)}, ["a turn"])]
      [1.0]
    """

    def __call__(self, broadcast: Payload, turns: Sequence[ClientTurn]) -> Iterator[LocalResult]:
        """Train the clients of `turns`, each from the values in `broadcast`."""
        ...
