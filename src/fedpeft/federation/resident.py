"""The resident worker of a site: it keeps backbone and data, and answers over a private socket.

    message = head (JSON), then blob: two frames of `multiprocessing.connection`, bytes, no pickle

    short-lived app ──answer──> socket (0600, in a folder 0700, same user only) ──> take ──> Answer

Flower starts the app anew for each message, so nothing heavy is imported where a worker runs. The
worker takes one request at a time. A message that is cut short, too long or malformed ends its own
connection and nothing else. The worker ends with the process that started it.
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
from contextlib import closing
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from fedpeft.core.errors import EngineError
from fedpeft.engines.flower.requests import Answer, Request

__all__ = ["SECONDS", "SITE", "SOCKET", "answer", "ask", "serve"]

logger = logging.getLogger(__name__)

SOCKET, SITE, SECONDS = "fedpeft-socket", "fedpeft-site", "fedpeft-seconds"
"""Keys of a node's configuration: the worker's socket, or the site's file; the time for a turn."""

_HEAD_BYTES = 4 * 2**20
_POLL = 0.25
_PATIENCE = 30.0
_LONGEST_PATH = 100
_TRIES = 3

_Message = TypeVar("_Message", Request, Answer)

_BROKEN = (OSError, EOFError, ValueError, TypeError, MemoryError)
"""The errors that a message which is cut short, too long or malformed raises."""


def answer(request: Request, node: Mapping[str, object]) -> Answer:
    """Have a request answered at this site, by its worker or by the site itself.

    Args:
      request: the server's request.
      node: the node's own configuration, as `fedpeft node` has written it.

    Returns:
      The answer; an `EngineError` becomes a refusal.
    """
    try:
        if SOCKET in node:
            seconds = float(str(node.get(SECONDS, 3600.0)))
            return ask(Path(str(node[SOCKET])), request, timeout=seconds)
        if SITE in node:
            from fedpeft.experiment.site_file import read_site
            from fedpeft.federation.site_setup import make_site

            return make_site(read_site(Path(str(node[SITE])))).take(request)
        raise EngineError("this node was not started by `fedpeft node`: it names no site")
    except EngineError as error:
        return Answer(request.client, request.round, refused=f"{type(error).__name__}: {error}")


def serve(
    path: Path,
    take: Callable[[Request], Answer],
    *,
    max_bytes: int,
    goes_on: Callable[[], bool] = lambda: True,
) -> None:
    """Answer requests while `goes_on` returns true.

    Args:
      path: path of the socket; its folder is made private, a dead worker's socket is replaced.
      take: answers a request; raises nothing.
      max_bytes: the largest blob of a request.
      goes_on: called a few times a second while no request comes.

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
                _answer_one(connection, take, max_bytes)


def ask(path: Path, request: Request, *, timeout: float, max_bytes: int = 2**40) -> Answer:
    """Send a request to a site's worker, and wait for one that is starting or busy.

    If the worker ends before it answers, the request is sent again: the worker is restarted, and a
    turn that it had already taken is not taken twice.

    Args:
      path: path of the socket.
      request: the request.
      timeout: seconds until the answer must be there, including the wait for the worker to start.
      max_bytes: the largest blob of the answer.

    Raises:
      EngineError: if no answer comes in time, or the worker ends or belongs to another user.
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
            logger.warning("the worker broke off (%s); sending the request again", error)
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
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        except OSError as error:
            raise EngineError(f"{path}: a socket cannot be made here: {error}") from error
        finally:
            os.umask(before)
        try:
            listener.listen(8)
            listener.settimeout(_POLL)
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _clear(path: Path) -> None:
    """Remove a dead worker's socket.

    Raises:
      EngineError: if a process listens on it, or it is not a socket.
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


def _answer_one(
    connection: socket.socket, take: Callable[[Request], Answer], max_bytes: int
) -> None:
    """Answer one connection; nothing that its other end does may end the worker."""
    if not _same_user(connection):
        logger.warning("a connection of another user was refused")
        return
    with _framed(connection, _PATIENCE) as frames:
        try:
            request = _receive(frames, Request, max_bytes)
        except _BROKEN as error:
            logger.warning("a request could not be read: %s", error)
            return
        reply = take(request)
        try:
            _send(frames, reply)
        except ConnectionError:  # its run has ended, or asked again
            logger.info("round %d: nobody waits for this answer any more", reply.round)
        except OSError as error:
            logger.warning("round %d: the answer could not be sent: %s", reply.round, error)


@contextlib.contextmanager
def _connected(path: Path, until: float) -> Iterator[socket.socket]:
    """Connect, and try again while the worker has not started yet."""
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
    """Whether the other end is a process of this user (Linux; elsewhere file modes decide)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", raw)
    return bool(user == os.getuid())


def _framed(connection: socket.socket, patience: float) -> closing[Connection[bytes, bytes]]:
    """Turn a socket into a framed connection that waits at most `patience` seconds for a part."""
    limit = struct.pack("ll", int(patience), int(patience % 1 * 1e6))
    for side in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, side, limit)
    return closing(Connection(connection.detach()))


def _send(frames: Connection[bytes, bytes], message: Request | Answer) -> None:
    head = asdict(replace(message, blob=b""))
    del head["blob"]
    frames.send_bytes(json.dumps(head).encode())
    frames.send_bytes(message.blob)


def _receive(frames: Connection[bytes, bytes], kind: type[_Message], max_bytes: int) -> _Message:
    """Read a request or an answer.

    Raises:
      OSError: if it is cut short or longer than allowed; `BlockingIOError` if it comes too late.
      EOFError: if the other end is closed before the whole message has come.
      ValueError, TypeError: if it is malformed.
    """
    head = json.loads(frames.recv_bytes(_HEAD_BYTES))
    return kind(**head, blob=frames.recv_bytes(max_bytes))
