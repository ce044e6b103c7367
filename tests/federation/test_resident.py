"""The resident worker: private, one at a time, and alive whatever its callers do."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import logging
import os
import pickle
import socket
import stat
import struct
import threading
import time
from pathlib import Path

import pytest

from fedpeft.core.errors import EngineError
from fedpeft.engines.flower.requests import Answer, Request
from fedpeft.federation import resident
from fedpeft.federation.resident import ask, serve

REQUEST = Request("train", "run1", "a", 3, 2, 2**62 + 1, 2, "seed = 1\n", b"\0\xff" * 50_000)


def echo(request: Request) -> Answer:
    return Answer(request.client, request.round, request.blob[::-1], 0.5, "", {"seed": "é"})


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(resident, "_POLL", 0.02)


@contextlib.contextmanager
def worker(path: Path, take=echo, max_bytes: int = 10**6):
    going = [True]
    thread = threading.Thread(
        target=serve, args=(path, take), kwargs={"max_bytes": max_bytes, "goes_on": lambda: going}
    )
    thread.start()
    try:
        yield
    finally:
        going.clear()
        thread.join()


def raw(path: Path, data: bytes) -> bytes:
    until = time.monotonic() + 5
    with resident._connected(path, until) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            return connection.recv(100)
    return b""


def test_an_answer_comes_back_whole(tmp_path):
    with worker(tmp_path / "s"):
        assert ask(tmp_path / "s", REQUEST, timeout=5) == echo(REQUEST)


def test_only_the_owner_can_reach_it(tmp_path):
    path = tmp_path / "private" / "s"
    with worker(path):
        ask(path, REQUEST, timeout=5)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.exists()


def test_another_user_gets_no_answer(tmp_path, monkeypatch, caplog):
    with worker(tmp_path / "s"):
        ask(tmp_path / "s", REQUEST, timeout=5)
        monkeypatch.setattr(os, "getuid", lambda: 4321)
        with pytest.raises(EngineError, match="belongs to another user; nothing was sent"):
            ask(tmp_path / "s", REQUEST, timeout=5)
        monkeypatch.setattr(
            resident, "_same_user", lambda c: threading.current_thread().name == "MainThread"
        )
        with pytest.raises(EngineError, match="broke off before it answered"):
            ask(tmp_path / "s", REQUEST, timeout=5)
    assert "a connection of another user was refused" in caplog.text


def head(text: bytes) -> bytes:
    return struct.pack("!i", len(text)) + text


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("!i", 10) + b"{}",
        struct.pack("!i", 2**31 - 1),
        struct.pack("!i", -2),
        head(b"{}") + struct.pack("!iQ", -1, 2**63),
        head(b"{}") + struct.pack("!i", 10**6 + 1),
        head(b"{]"),
        head(b"[]") + struct.pack("!i", 0),
        head(b'{"no": 1}') + struct.pack("!i", 0),
        head(pickle.dumps(REQUEST)) + struct.pack("!i", 0),
    ],
    ids=["empty", "http", "cut", "huge head", "negative", "huge blob", "long blob", "no json",
         "no table", "no request", "pickle"],
)  # fmt: skip
def test_a_bad_frame_ends_its_connection_and_nothing_else(tmp_path, frame):
    with worker(tmp_path / "s"):
        assert raw(tmp_path / "s", frame) == b""
        assert ask(tmp_path / "s", REQUEST, timeout=5) == echo(REQUEST)


def test_a_blob_of_the_most_bytes_is_taken_and_one_more_is_not(tmp_path):
    with worker(tmp_path / "s", max_bytes=len(REQUEST.blob)):
        assert ask(tmp_path / "s", REQUEST, timeout=5) == echo(REQUEST)
        longer = dataclasses.replace(REQUEST, blob=REQUEST.blob + b"1")
        with pytest.raises(EngineError, match="broke off before it answered"):
            ask(tmp_path / "s", longer, timeout=5)


def test_a_caller_that_sends_nothing_does_not_hold_the_worker(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(resident, "_PATIENCE", 0.1)
    with worker(tmp_path / "s"), resident._connected(tmp_path / "s", time.monotonic() + 5):
        assert ask(tmp_path / "s", REQUEST, timeout=5) == echo(REQUEST)
    assert "a request could not be read" in caplog.text


def test_frames_are_bytes_and_never_pickled():
    """`send` and `recv` of a connection pickle: whoever can write to the socket could run code."""
    calls = {
        node.func.attr
        for node in ast.walk(ast.parse(inspect.getsource(resident)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert {"send_bytes", "recv_bytes"} <= calls
    assert not calls & {"send", "recv", "Listener", "Client"}
    assert "pickle." not in inspect.getsource(resident)


def test_a_caller_that_leaves_does_not_hurt_and_is_no_trouble(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    with worker(tmp_path / "s", lambda r: (time.sleep(0.2), echo(r))[1]):
        with pytest.raises(EngineError, match="no answer within"):
            ask(tmp_path / "s", REQUEST, timeout=0.1)
        assert ask(tmp_path / "s", REQUEST, timeout=5) == echo(REQUEST)
    assert caplog.messages == []


def test_requests_are_taken_one_at_a_time(tmp_path):
    busy, most = [], []

    def slow(request: Request) -> Answer:
        busy.append(1)
        most.append(len(busy))
        time.sleep(0.02)
        busy.pop()
        return echo(request)

    with worker(tmp_path / "s", slow):
        asking = [
            threading.Thread(target=ask, args=(tmp_path / "s", REQUEST), kwargs={"timeout": 5})
            for _ in range(4)
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
    assert most == [1] * 4


def test_a_caller_waits_for_a_worker_that_starts(tmp_path):
    found = []
    caller = threading.Thread(target=lambda: found.append(ask(tmp_path / "s", REQUEST, timeout=5)))
    caller.start()
    time.sleep(0.1)
    with worker(tmp_path / "s"):
        caller.join()
    assert found == [echo(REQUEST)]


def test_nobody_there_is_said(tmp_path):
    with pytest.raises(EngineError, match=r"is `fedpeft node` running\?"):
        ask(tmp_path / "s", REQUEST, timeout=0.05)


def test_a_dead_workers_socket_is_replaced_and_a_living_ones_is_not(tmp_path):
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "s"))
    dead.close()
    with worker(tmp_path / "s"):
        ask(tmp_path / "s", REQUEST, timeout=5)
        with pytest.raises(EngineError, match="another worker of this site is running"):
            serve(tmp_path / "s", echo, max_bytes=1, goes_on=lambda: False)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(EngineError, match="is no socket; it is not replaced"):
        serve(tmp_path / "file", echo, max_bytes=1, goes_on=lambda: False)


def test_a_path_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(EngineError, match="too long for a socket"):
        serve(tmp_path / ("x" * 100), echo, max_bytes=1)


@pytest.mark.parametrize(("breaks", "fine"), [(2, True), (3, False)])
def test_a_worker_that_ends_is_asked_again(tmp_path, monkeypatch, breaks, fine):
    """As one that was killed and started anew: the third try is the last."""
    real, seen = resident._answer_one, []

    def fragile(connection, take, max_bytes):
        seen.append(1)
        if len(seen) > breaks:
            real(connection, take, max_bytes)

    monkeypatch.setattr(resident, "_answer_one", fragile)
    with worker(tmp_path / "s"):
        if fine:
            assert ask(tmp_path / "s", REQUEST, timeout=5) == echo(REQUEST)
        else:
            with pytest.raises(EngineError, match="broke off before it answered"):
                ask(tmp_path / "s", REQUEST, timeout=5)
    assert len(seen) == 3
