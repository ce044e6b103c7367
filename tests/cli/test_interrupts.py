"""Ctrl-C at a terminal, at any moment of a command: real processes, as the shell starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from support import TINY

pytestmark = pytest.mark.slow  # what is quick is in tests/engines/test_interrupts.py

ROUNDS = 6
FILE = TINY.replace("workers = 1", "workers = 2").replace("rounds = 2", f"rounds = {ROUNDS}")
SPAWN = """
import multiprocessing
first = multiprocessing.get_context
multiprocessing.get_context = lambda name=None: first("spawn" if name == "fork" else name)
if __name__ == "__main__":
    from fedpeft.__main__ import main
    main()
"""
"""The command line as on systems where workers are spawned. It imports as little as `-m` does: what
an interrupt outside the command prints is Python's own affair.
"""


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


class Command:
    """A command in a process group of its own, which a terminal would send Ctrl-C to."""

    def __init__(self, head: list[str], *args: object) -> None:
        self.process = subprocess.Popen(
            [*head, *map(str, args)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip

    def children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def interrupt(self, timeout: float = 60) -> Ended:
        """Send SIGINT to the whole group and wait for its end."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            pytest.fail("the interrupt was lost: the command goes on")
        return Ended(self.process.returncode, out, err)

    def left(self) -> list[int]:
        """Return the processes of the group that still live, after a moment to end."""
        until = time.monotonic() + 5
        while (found := list(_group(self.process.pid))) and time.monotonic() < until:
            time.sleep(0.05)
        return found


def _group(number: int) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and os.getpgid(process.pid) == number:
                found.append(process.pid)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return found


def check_end(command: Command, end: Ended) -> None:
    """Expect one line beside those of progress, the right code, and no process left."""
    assert command.left() == []
    said = [line for line in end.err.splitlines() if line and ": round " not in line]
    if end.code == 0:  # it had finished before
        assert said == []
        return
    # a signal during `exec` of a string makes Python end by the signal: the same for a shell
    assert end.code in (130, -signal.SIGINT), end.err
    assert len(said) == 1 and said[0].startswith("interrupted"), end.err


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(FILE)
    return tmp_path / "tiny.toml"


def head(method: str, folder: Path) -> list[str]:
    if method == "fork":
        return [sys.executable, "-m", "fedpeft"]
    (folder / "spawned.py").write_text(SPAWN)
    return [sys.executable, str(folder / "spawned.py")]


def test_an_interrupt_as_the_first_worker_starts_is_not_lost(file: Path, tmp_path: Path) -> None:
    command = Command(head("fork", tmp_path), "run", file, "--out", tmp_path / "out")
    while not command.children() and command.process.poll() is None:
        time.sleep(0.001)
    end = command.interrupt()
    assert end.code != 0
    check_end(command, end)


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The delta of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    (folder / "tiny.toml").write_text(FILE)
    args = ["run", folder / "tiny.toml", "--out", folder / "out", "--json"]
    done = subprocess.run([*head("fork", folder), *map(str, args)], capture_output=True, check=True)
    return str(json.loads(done.stdout)["delta_digest"])


DELAYS = [
    *[("fork", delay) for delay in (0.05, 0.5, 1.5, 3, 4.5)],
    *[("spawn", delay) for delay in (0.2, 1, 2, 3.5, 5)],
]


@pytest.mark.parametrize(("method", "delay"), DELAYS)
def test_a_run_can_be_interrupted_at_any_moment_and_resumed(
    file: Path, tmp_path: Path, digest: str, method: str, delay: float
) -> None:
    out = tmp_path / "out"
    command = Command(head(method, tmp_path), "run", file, "--out", out)
    time.sleep(delay)
    check_end(command, command.interrupt())
    args = ["run", file, "--out", out, "--resume", "--json"]
    again = subprocess.run([*head("fork", tmp_path), *map(str, args)], capture_output=True)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["delta_digest"] == digest
    assert len((out / "rounds.jsonl").read_text().splitlines()) == ROUNDS


@pytest.mark.parametrize(("processes", "after"), [(1, 0), (2, 0.005), (3, 0.05)])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_interrupt_around_the_start_of_workers_is_not_lost(
    file: Path, tmp_path: Path, method: str, processes: int, after: float
) -> None:
    command = Command(head(method, tmp_path), "run", file, "--out", tmp_path / "out")
    while len(command.children()) < processes and command.process.poll() is None:
        time.sleep(0.001)
    time.sleep(after)
    check_end(command, command.interrupt())


@pytest.mark.parametrize("delay", [0.1, 1.5, 3.5])
def test_a_sweep_can_be_interrupted_at_any_moment(file: Path, tmp_path: Path, delay: float) -> None:
    args = ["sweep", file, "--over", "seed=1,2,3", "--out", tmp_path / "out"]
    command = Command(head("fork", tmp_path), *args)
    time.sleep(delay)
    check_end(command, command.interrupt())
