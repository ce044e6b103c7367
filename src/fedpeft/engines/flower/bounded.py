"""A pull of a reply of which nothing is known yet, bounded in parts, bytes and seconds.

    reply ──> the list of its parts ──too many?──> part by part ──too many bytes? too late?──> whole

Flower's own grid takes every part that a reply lists, whatever they add up to, before anybody can
look at it, and waits up to two hours for a part that is announced and never comes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest, PullObjectResponse
    from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
    from flwr.supercore.runtime import RuntimeHttpClient

_CLIENT = "_client"
_FEWEST_PARTS = 64
_PART_BYTES = 2**18  # Flower's own are twenty times as long


class TooMuchError(Exception):
    """A reply that is more than the server takes; names what was found and what is allowed."""


@dataclass(frozen=True)
class Bound:
    """What is taken of one reply.

    Attributes:
      most_bytes: of all parts together; > 0.
      seconds: for all parts together, from the first one on; None: no bound.
    """

    most_bytes: int
    seconds: float | None = None

    @property
    def most_parts(self) -> int:
        """Return the largest number of parts."""
        return _FEWEST_PARTS + self.most_bytes // _PART_BYTES


@contextlib.contextmanager
def bounded(grid: object, bound: Bound | None) -> Iterator[None]:
    """Bound what a grid pulls inside the block.

    A grid inside this process, as in a simulation, has no client and is left as it is.

    Args:
      grid: Flower's grid.
      bound: what is taken; None: everything.

    Raises:
      TooMuchError: inside the block, if a reply is more than that.
    """
    client = getattr(grid, _CLIENT, None)
    if client is None or bound is None:
        yield
        return
    setattr(grid, _CLIENT, _BoundedClient(client, bound))
    try:
        yield
    finally:
        setattr(grid, _CLIENT, client)


class _BoundedClient:
    """The client of a grid, with Flower's names, which counts what the calls for a reply bring."""

    def __init__(self, client: RuntimeHttpClient, bound: Bound) -> None:
        self._client = client
        self._bound = bound
        self._began = time.monotonic()
        self._taken = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._client, name)

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:
        answer: PullAppMessagesResponse = self._client.PullMessages(request)
        parts, most = _count(answer.message_object_trees), self._bound.most_parts
        if parts > most:
            raise TooMuchError(f"it has {parts} parts; allowed are at most {most} for this delta")
        self._began = time.monotonic()
        return answer

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:
        seconds = self._bound.seconds
        if seconds is not None and time.monotonic() - self._began > seconds:
            raise TooMuchError(f"its parts did not come within {seconds:.3g} s")
        answer: PullObjectResponse = self._client.PullObject(request)
        self._taken += len(answer.object_content)
        if self._taken > self._bound.most_bytes:
            raise TooMuchError(
                f"it has more than {self._bound.most_bytes} bytes, the most allowed for this delta"
            )
        return answer


def _count(trees: Iterable[ObjectTree]) -> int:
    """Count the nodes of trees."""
    waiting, number = list(trees), 0
    while waiting:
        number += 1
        waiting.extend(waiting.pop().children)
    return number
