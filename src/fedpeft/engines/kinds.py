"""What a run needs of an engine: rounds, the memories that it keeps, and an end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from fedpeft.rounds.job import Failure, Job, Reply

__all__ = ["RunEngine"]


class RunEngine(Protocol):
    """An engine whose run can be resumed."""

    def clients(self) -> Sequence[str]:
        """Return the names of all clients, in a fixed order."""
        ...

    def run(self, job: Job) -> Iterator[Reply | Failure]:
        """Ask the cohort; one answer a client, in any order."""
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
