"""The part of Flower's grid that the engine uses: send a message, pull its reply. Quick to import.

A site may send anything. Replies are pulled one at a time, so that a reply that Flower cannot read
does not affect others. A failed connection is an error of the engine, not of a client.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from fedpeft.core.errors import EngineError
from fedpeft.engines.flower.bounded import Bound, TooMuchError, bounded

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict


_GRACE = 60.0

Watch: TypeAlias = Callable[[str, Mapping[str, object]], None]
"""A function that is called with the name of each event and the facts about it."""


class Grid(Protocol):
    """The methods of Flower's `Grid` that are used."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their identifiers."""
        ...

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived."""
        ...

    def get_node_ids(self) -> Iterable[int]:
        """Return the connected nodes."""
        ...


def ignore(event: str, facts: Mapping[str, object]) -> None:
    """Ignore an event."""


@dataclass(frozen=True)
class Unreadable:
    """A reply that Flower itself could not read.

    Attributes:
      reason: why it could not be read.
    """

    reason: str


def push_one(
    grid: Grid, content: RecordDict, node: int, *, kind: str, group: str, ttl: float
) -> str | None:
    """Send one message.

    Args:
      grid: the grid.
      content: content of the message.
      node: the receiving node.
      kind: Flower's message type.
      group: Flower's group.
      ttl: seconds to wait for the reply; Flower keeps the message a little longer.

    Returns:
      the message's identifier; None where Flower did not accept it.

    Raises:
      EngineError: if the grid cannot be reached.
    """
    from flwr.app import Message

    message = Message(content, node, kind, group_id=group, ttl=ttl + _GRACE)
    with _reached("send a message"):
        numbers = list(grid.push_messages([message]))
    return str(numbers[0]) if numbers and numbers[0] else None


def pull_one(grid: Grid, sent: str, bound: Bound | None = None) -> list[Message | Unreadable]:
    """Return the replies to one message that have arrived.

    Messages are pulled one at a time, so that an unreadable reply does not affect others.

    Args:
      grid: the grid.
      sent: the message's identifier.
      bound: what is taken of a reply; one that is more is unreadable. None: everything.

    Raises:
      EngineError: if the grid cannot be reached.
    """
    try:
        with _reached("ask for replies"), bounded(grid, bound):
            return list(grid.pull_messages([sent]))
    except EngineError:
        raise
    except TooMuchError as error:
        return [Unreadable(str(error))]
    except Exception as error:  # a site's message may make Flower's decoding fail in any way
        return [Unreadable(f"{type(error).__name__}: {error}"[:300])]


@contextlib.contextmanager
def _reached(what: str) -> Iterator[None]:
    """Turn a connection that fails inside the block into an `EngineError`."""
    import httpx

    try:
        yield
    except (httpx.HTTPError, ConnectionError) as error:
        raise EngineError(
            f"engine: the SuperLink cannot be reached to {what}: {error}. Start it again and "
            "continue with --resume"
        ) from error
