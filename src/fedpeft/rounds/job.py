"""The interface between the server half and an engine: jobs, replies, failures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from fedpeft.client.evaluate import Evaluation


@dataclass(frozen=True)
class Job:
    """The work of one round for an engine.

    Attributes:
      round: number of the round, from 1.
      cohort: the clients that take a turn, in order.
      broadcast: client -> encoded message; clients with equal messages share one object.
      committed: client -> number of its last turn whose reply the server accepted (0: none); the
        client continues from the memory that it had after that turn.
      seed: the run's root seed.
      turns: client -> number of its turn, where it differs from the round's. The turn's seed
        depends on it, and the client's memory after the turn is stored under it.
      versions: client -> round of the server state that it starts from, where it is not the last.
    """

    round: int
    cohort: tuple[str, ...]
    broadcast: Mapping[str, bytes]
    committed: Mapping[str, int]
    seed: int
    turns: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """A client's answer.

    Attributes:
      client: name of the client.
      blob: the encoded message, as sent.
      seconds: time of the client's own work.
    """

    client: str
    blob: bytes
    seconds: float


@dataclass(frozen=True)
class Failure:
    """A client without a usable reply.

    Attributes:
      client: name of the client.
      reason: why.
      reached: whether the broadcast was sent to it.
    """

    client: str
    reason: str
    reached: bool = True


class Engine(Protocol):
    """The place where clients run: in this process, in workers, or on other machines."""

    def clients(self) -> Sequence[str]:
        """Return the names of all clients, in a fixed order."""
        ...

    def run(self, job: Job) -> Iterator[Reply | Failure]:
        """Run the turns of a cohort; yield one reply or failure for each client, in any order."""
        ...


class RunEngine(Engine, Protocol):
    """An engine for whole runs: it also scores the server's test set, and can be resumed."""

    def evaluate(self, delta: Tensor, buffers: Tensor) -> Evaluation:
        """Score the server's whole test set; the same numbers on every engine.

        Args:
          delta: flat, float32 [P].
          buffers: the buffers that are sent, flat; of length 0 where there are none.
        """
        ...

    def memories(self, committed: Mapping[str, int]) -> dict[str, Tensor]:
        """Return the committed memories of clients that this engine keeps, for a checkpoint."""
        ...

    def restore(self, memories: Mapping[str, Tensor], committed: Mapping[str, int]) -> None:
        """Restore the memories that `memories` returned."""
        ...

    def close(self) -> None:
        """Stop everything that the engine started."""
        ...
