"""What is used of Flower's grid: send one message, look for its reply. Quick to import.

A site may send anything. Replies are pulled one at a time, so that one that Flower itself cannot
read spoils no other; a connection that fails is an error of the engine, not of a client.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from fedpeft.core.errors import EngineError

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict

__all__ = ["Grid", "Unreadable", "Watch", "ignore", "pull_one", "push_one"]

_GRACE = 60.0

Watch: TypeAlias = Callable[[str, Mapping[str, object]], None]
"""Told what happens: the word of an event, and what belongs to it."""


class Grid(Protocol):
    """What is used of Flower's `Grid`."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; their numbers."""
        ...

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have come."""
        ...

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are there."""
        ...


def ignore(event: str, facts: Mapping[str, object]) -> None:
    """Watch nothing."""


@dataclass(frozen=True)
class Unreadable:
    """A reply that Flower itself could not read.

    Attributes:
      reason: in words.
    """

    reason: str


def push_one(
    grid: Grid, content: RecordDict, node: int, *, kind: str, group: str, ttl: float
) -> str | None:
    """Send one message.

    Args:
      grid: to send over.
      content: of the message.
      node: that gets it.
      kind: Flower's message type.
      group: Flower's group.
      ttl: seconds that the reply is waited for; Flower keeps the message a little longer.

    Returns:
      its number; None where Flower did not take it.

    Raises:
      EngineError: if the grid cannot be reached.
    """
    from flwr.app import Message

    message = Message(content, node, kind, group_id=group, ttl=ttl + _GRACE)
    with _reached("send a message"):
        numbers = list(grid.push_messages([message]))
    return str(numbers[0]) if numbers and numbers[0] else None


def pull_one(grid: Grid, sent: str) -> list[Message | Unreadable]:
    """Return what has come for one message; one at a time, so that none can spoil another.

    Raises:
      EngineError: if the grid cannot be reached.
    """
    try:
        with _reached("ask for replies"):
            return list(grid.pull_messages([sent]))
    except EngineError:
        raise
    except Exception as error:  # what a site sent may break Flower's own decoding in any way
        return [Unreadable(f"{type(error).__name__}: {error}"[:300])]


@contextlib.contextmanager
def _reached(what: str) -> Iterator[None]:
    """Turn a connection that fails inside the block into an `EngineError`."""
    import httpx

    try:
        yield
    except (httpx.HTTPError, ConnectionError) as error:
        raise EngineError(
            f"engine: the SuperLink cannot be reached to {what}: {error}. Start it again and go on "
            "with --resume"
        ) from error
