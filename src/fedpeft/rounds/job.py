"""What travels between the server half and an engine: jobs, replies, failures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from fedpeft.client.evaluate import Evaluation

__all__ = ["Engine", "Failure", "Job", "Reply", "RunEngine"]


@dataclass(frozen=True)
class Job:
    """One round, as an engine sees it.

    Attributes:
      round: from 1.
      cohort: the clients to ask, in order.
      broadcast: client -> encoded message; clients that get the same share one object.
      committed: client -> the last round whose reply the server took (0: none); a client goes on
        from the memory that it had after that round.
      seed: the run's root seed.
      turns: client -> number of its turn, where it is not the round's: it gives the turn's seed and
        names the memory that the turn leaves.
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
      client: name.
      blob: the encoded message, as sent.
      seconds: of the client's own work.
    """

    client: str
    blob: bytes
    seconds: float


@dataclass(frozen=True)
class Failure:
    """A client that did not answer, or whose answer cannot be used."""

    client: str
    reason: str


class Engine(Protocol):
    """Where clients live: the only seam between one machine and many."""

    def clients(self) -> Sequence[str]:
        """Return the names of all clients, in a fixed order."""
        ...

    def run(self, job: Job) -> Iterator[Reply | Failure]:
        """Ask the cohort; one answer a client, in any order."""
        ...


class RunEngine(Engine, Protocol):
    """An engine that a whole run needs: it scores the server's test set, and can be resumed."""

    def evaluate(self, delta: Tensor, buffers: Tensor) -> Evaluation:
        """Score the server's whole test set; the same numbers on every engine.

        Args:
          delta: flat, float32 [P].
          buffers: the travelling ones, flat; of length 0 where there are none.
        """
        ...

    def memories(self, committed: Mapping[str, int]) -> dict[str, Tensor]:
        """Return the committed memories of clients that this engine keeps, for a checkpoint."""
        ...

    def restore(self, memories: Mapping[str, Tensor], committed: Mapping[str, int]) -> None:
        """Take back what `memories` gave."""
        ...

    def close(self) -> None:
        """End what the engine started."""
        ...
