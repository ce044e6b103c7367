"""The resident worker of a site: it holds backbone and data, and answers over a private socket.

    frame = "FPT1" | 4 bytes length of head | 8 bytes length of blob | head (JSON) | blob

    short-lived process ──ask──> socket (0600, in a folder 0700, same user only) ──> take ──> answer

One request at a time. A frame that is cut short, too long or not of this form ends its connection
and nothing else. The worker ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fedpeft.core.errors import EngineError
from fedpeft.engines.flower.requests import Answer, Request

__all__ = ["SOCKET", "ask", "serve"]

logger = logging.getLogger(__name__)

SOCKET = "fedpeft-socket"
"""Under this name a node's own configuration tells its app where the worker listens."""

_MAGIC = b"FPT1"
_HEAD = struct.Struct(">4sIQ")
_HEAD_BYTES = 4 * 2**20
_POLL = 0.25
_PATIENCE = 30.0
_LONGEST_PATH = 100
_TRIES = 3


class _BadFrame(Exception):
    """What came is not a frame."""


def serve(
    path: Path,
    take: Callable[[Request], Answer],
    *,
    max_bytes: int,
    goes_on: Callable[[], bool] = lambda: True,
) -> None:
    """Answer requests until `goes_on` says no.

    Args:
      path: of the socket; its folder is made private, an old socket is replaced.
      take: answers a request; raises nothing.
      max_bytes: of a request's blob.
      goes_on: asked a few times a second while nothing comes.

    Raises:
      EngineError: if the socket cannot be made, or another worker listens on it.
    """
    with _listening(path) as listener:
        while goes_on():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                _answer(connection, take, max_bytes)


def ask(path: Path, request: Request, *, timeout: float, max_bytes: int = 2**40) -> Answer:
    """Ask a site's worker; waits for one that is starting or busy.

    One that ends before it answers is asked again: it is started anew, and a turn that it had taken
    is not taken twice.

    Args:
      path: of the socket.
      request: what is asked.
      timeout: seconds until the answer must be there, the wait for a start included.
      max_bytes: of the answer's blob.

    Raises:
      EngineError: if nobody answers in time, the worker ends, or is another user's.
    """
    until = time.monotonic() + timeout
    for left in reversed(range(_TRIES)):
        try:
            return _ask_once(path, request, until, max_bytes)
        except TimeoutError as error:
            raise EngineError(
                f"{path}: the site's worker gave no answer within {timeout:.0f} s"
            ) from error
        except (OSError, _BadFrame, TypeError) as error:
            if not left:
                raise EngineError(
                    f"{path}: the site's worker ended or broke off before it answered ({error})"
                ) from error
            logger.warning("the worker broke off (%s); it is asked again", error)
            time.sleep(_POLL)
    raise AssertionError


def _ask_once(path: Path, request: Request, until: float, max_bytes: int) -> Answer:
    with _connected(path, until) as connection:
        connection.settimeout(max(0.1, until - time.monotonic()))
        _send(connection, _head_of(request), request.blob)
        head, blob = _receive(connection, max_bytes)
        return Answer(**(head | {"blob": blob}))


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise EngineError(
            f"{path}: too long for a socket ({len(os.fsencode(path))} bytes; allowed are "
            f"{_LONGEST_PATH}); choose a shorter state folder"
        )
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.chmod(path.parent, 0o700)
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(8)
        listener.settimeout(_POLL)
    except OSError as error:
        listener.close()
        raise EngineError(f"{path}: a socket cannot be made here: {error}") from error
    try:
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)


def _clear(path: Path) -> None:
    """Remove a dead worker's socket.

    Raises:
      EngineError: if somebody listens on it, or it is no socket.
    """
    if not path.exists():
        return
    if not path.is_socket():
        raise EngineError(f"{path}: is no socket; it is not replaced. Move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise EngineError(
                f"{path}: another worker of this site is running; end it first, or give each site "
                "a state folder of its own"
            )
    path.unlink()


def _answer(connection: socket.socket, take: Callable[[Request], Answer], max_bytes: int) -> None:
    """Answer one connection; whatever its other end does, the worker lives."""
    try:
        if not _same_user(connection):
            logger.warning("a connection of another user was refused")
            return
        connection.settimeout(_PATIENCE)
        head, blob = _receive(connection, max_bytes)
        request = Request(**(head | {"blob": blob}))
    except (OSError, _BadFrame, TypeError) as error:
        logger.warning("a request could not be read: %s", error)
        return
    answer = take(request)
    try:
        connection.settimeout(_PATIENCE)
        _send(connection, _head_of(answer), answer.blob)
    except OSError as error:
        logger.warning("round %d: nobody waits for the answer any more: %s", answer.round, error)


@contextlib.contextmanager
def _connected(path: Path, until: float) -> Iterator[socket.socket]:
    """Connect, trying again while the worker is not there yet."""
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
            break
        except OSError as error:
            connection.close()
            if time.monotonic() >= until:
                raise EngineError(
                    f"{path}: no worker of this site listens here ({error}); is `fedpeft node` "
                    "running?"
                ) from error
            time.sleep(min(_POLL, max(0.0, until - time.monotonic())))
    with connection:
        if not _same_user(connection):
            raise EngineError(f"{path}: the socket belongs to another user; nothing was sent")
        yield connection


def _same_user(connection: socket.socket) -> bool:
    """Whether the other end is a process of this user; elsewhere than on Linux modes decide."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", raw)
    return bool(user == os.getuid())


def _head_of(words: Request | Answer) -> Mapping[str, object]:
    head = asdict(replace(words, blob=b""))
    del head["blob"]
    return head


def _send(connection: socket.socket, head: Mapping[str, object], blob: bytes) -> None:
    text = json.dumps(head).encode()
    connection.sendall(_HEAD.pack(_MAGIC, len(text), len(blob)) + text)
    connection.sendall(blob)


def _receive(connection: socket.socket, max_bytes: int) -> tuple[dict[str, Any], bytes]:
    magic, text_size, blob_size = _HEAD.unpack(_exactly(connection, _HEAD.size))
    if magic != _MAGIC:
        raise _BadFrame("it does not start as a frame does")
    if text_size > _HEAD_BYTES or blob_size > max_bytes:
        raise _BadFrame(
            f"{text_size} and {blob_size} bytes; allowed are {_HEAD_BYTES} and {max_bytes}"
        )
    try:
        head = json.loads(_exactly(connection, text_size))
    except ValueError as error:
        raise _BadFrame(f"its head is not JSON: {error}") from error
    if not isinstance(head, dict):
        raise _BadFrame("its head is no table")
    return head, bytes(_exactly(connection, blob_size))


def _exactly(connection: socket.socket, count: int) -> bytearray:
    """Read so many bytes; memory grows with what has come, not with what was announced."""
    data = bytearray()
    while len(data) < count:
        part = connection.recv(min(2**20, count - len(data)))
        if not part:
            raise _BadFrame(f"it ends after {len(data)} of {count} bytes")
        data += part
    return data
