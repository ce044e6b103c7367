from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedpeft.core.errors import RunFolderError
from fedpeft.runs.lock import LOCK, holder, locked

HOLD = """
import sys, time
from pathlib import Path
from fedpeft.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@contextlib.contextmanager
def other_process(folder: Path, seconds: float = 60.0) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def kept_out(folder: Path) -> bool:
    try:
        with locked(folder, patience=0):
            return False
    except RunFolderError:
        return True


def test_lock_is_gone_after_the_block(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()
    assert not kept_out(tmp_path)


def test_a_live_owner_keeps_others_out(tmp_path: Path) -> None:
    message = rf"{tmp_path}: process {os.getpid()} on .* is writing to this folder"
    with locked(tmp_path), pytest.raises(RunFolderError, match=message):
        with locked(tmp_path, patience=0):
            pass


def test_an_owner_that_ends_soon_is_waited_for(tmp_path: Path) -> None:
    with other_process(tmp_path, seconds=0.3), locked(tmp_path):
        pass


def test_a_dead_owners_lock_is_taken_over(tmp_path: Path) -> None:
    with other_process(tmp_path) as owner:
        found = holder(tmp_path)
        assert found is not None and found["pid"] == owner.pid
        assert kept_out(tmp_path)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        assert (tmp_path / LOCK).exists() and holder(tmp_path) is None
        with locked(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_torn_lock_is_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    assert holder(tmp_path) is None
    with locked(tmp_path):
        pass


def test_a_lock_that_says_nothing_yet_is_held_all_the_same(tmp_path: Path) -> None:
    with locked(tmp_path):
        (tmp_path / LOCK).write_text("")
        assert holder(tmp_path) == {}
        with pytest.raises(RunFolderError, match=r"process \? on \? is writing"):
            with locked(tmp_path, patience=0):
                pass


def test_two_threads_of_a_process_exclude_each_other(tmp_path: Path) -> None:
    inside, most = [], []

    def enter() -> None:
        with locked(tmp_path, patience=30):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4


def test_a_forked_child_is_kept_out_and_holds_nothing(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    ends = fork.Event()

    def child() -> None:
        theirs.send(kept_out(tmp_path))
        ends.wait(30)
        theirs.send(kept_out(tmp_path))

    with locked(tmp_path):
        process = fork.Process(target=child)
        process.start()
        assert ours.recv() is True
    assert not kept_out(tmp_path), "the child has a copy of the descriptor, and no lock"
    ends.set()
    assert ours.recv() is False
    process.join()


def test_a_file_that_is_called_lock_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("mine")
    with locked(tmp_path):
        pass
    assert (tmp_path / "lock").read_text() == "mine"
