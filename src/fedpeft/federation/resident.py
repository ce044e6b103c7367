"""The resident worker of a site: it holds backbone and data, and answers over a private socket.

    message = head (JSON), then blob: two frames of `multiprocessing.connection`, bytes, no pickle

    short-lived process ──ask──> socket (0600, in a folder 0700, same user only) ──> take ──> answer

One request at a time. A message that is cut short, too long or not of this form ends its connection
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
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from fedpeft.core.errors import EngineError
from fedpeft.engines.flower.requests import Answer, Request

__all__ = ["SOCKET", "ask", "serve"]

logger = logging.getLogger(__name__)

SOCKET = "fedpeft-socket"
"""Under this name a node's own configuration tells its app where the worker listens."""

_HEAD_BYTES = 4 * 2**20
_POLL = 0.25
_PATIENCE = 30.0
_LONGEST_PATH = 100
_TRIES = 3

_Words = TypeVar("_Words", Request, Answer)

_BROKEN = (OSError, EOFError, ValueError, TypeError, MemoryError)
"""What a message that is cut short, too long or of another form raises."""


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
        except BlockingIOError as error:
            raise EngineError(
                f"{path}: the site's worker gave no answer within {timeout:.0f} s"
            ) from error
        except _BROKEN as error:
            if not left:
                raise EngineError(
                    f"{path}: the site's worker ended or broke off before it answered ({error})"
                ) from error
            logger.warning("the worker broke off (%s); it is asked again", error)
            time.sleep(_POLL)
    raise AssertionError


def _ask_once(path: Path, request: Request, until: float, max_bytes: int) -> Answer:
    with _connected(path, until) as connection:
        with _framed(connection, max(0.1, until - time.monotonic())) as frames:
            _send(frames, request)
            return _receive(frames, Answer, max_bytes)


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
    if not _same_user(connection):
        logger.warning("a connection of another user was refused")
        return
    with _framed(connection, _PATIENCE) as frames:
        try:
            request = _receive(frames, Request, max_bytes)
        except _BROKEN as error:
            logger.warning("a request could not be read: %s", error)
            return
        answer = take(request)
        try:
            _send(frames, answer)
        except OSError as error:
            logger.warning(
                "round %d: nobody waits for the answer any more: %s", answer.round, error
            )


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


def _framed(connection: socket.socket, patience: float) -> closing[Connection[bytes, bytes]]:
    """Hand a socket over to frames, which wait at most so many seconds for each part of one."""
    limit = struct.pack("ll", int(patience), int(patience % 1 * 1e6))
    for side in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, side, limit)
    return closing(Connection(connection.detach()))


def _send(frames: Connection[bytes, bytes], words: Request | Answer) -> None:
    head = asdict(replace(words, blob=b""))
    del head["blob"]
    frames.send_bytes(json.dumps(head).encode())
    frames.send_bytes(words.blob)


def _receive(frames: Connection[bytes, bytes], kind: type[_Words], max_bytes: int) -> _Words:
    """Read a request or an answer.

    Raises:
      OSError: if it is cut short or longer than allowed; `BlockingIOError` if it comes too late.
      EOFError: if the other end is closed before all has come.
      ValueError, TypeError: if it is not of this form.
    """
    head = json.loads(frames.recv_bytes(_HEAD_BYTES))
    return kind(**head, blob=frames.recv_bytes(max_bytes))
