"""Processes that this one starts, keeps running, and ends with itself.

    follow ──┬── child: its output in this one's log, started again after a crash
             └── child: ends with this process, however it ends

A child that fails right after its first start, or again and again, ends all of them, and its last
output is shown.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedpeft.core.errors import EngineError

logger = logging.getLogger(__name__)

_QUICK = 30.0
_MOST_QUICK_ENDS = 5
_PAUSE = 10.0
_GRACE = 10.0
_LOOK = 5.0  # seconds between two looks at helpers
_UNKNOWN = -1
_LINUX = sys.platform == "linux"
_LIBC = (
    ctypes.CDLL(None) if _LINUX else None
)  # a forked child of a threaded process may load nothing
_DEATH_SIGNAL = 1

QUIET: Mapping[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""Environment of every Flower process: no telemetry, no update check, no installation at a run."""


@dataclass(frozen=True)
class Child:
    """A process to start and to follow.

    Attributes:
      name: its name in the log.
      command: the program and its arguments.
      environment: variables added to this process's own.
      advice: a text in its output -> what to do when it ends with that.
      patience: a text in its output -> seconds for which it is started again after such an end.
      folder: its working folder; None: this process's.
      mask: its file mode creation mask; -1: this process's.
      needs_helpers: whether it is of no use once a process that it has started is dead (Linux).
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    advice: Mapping[str, str] = field(default_factory=dict)
    patience: Mapping[str, float] = field(default_factory=dict)
    folder: Path | None = None
    mask: int = -1
    needs_helpers: bool = False


def follow(children: Sequence[Child], *, goes_on: Callable[[], bool] = lambda: True) -> None:
    """Run processes while `goes_on` returns true, and end them whatever happens to this one.

    Raises:
      EngineError: if one cannot be kept running, with its last output.
    """
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(_Running(child)) for child in children]
        while goes_on():
            for one in running:
                one.check()
            time.sleep(0.2)


def program(name: str, advice: str = "install Flower: pip install 'fedpeft[flower]'") -> str:
    """Return the path of a program, beside this Python or on the PATH.

    Raises:
      EngineError: if it is not installed here.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise EngineError(f"{name}: not found on this machine; {advice}")
    return found


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Running:
    """A process that is started again when it ends."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._ends: collections.deque[float] = collections.deque(maxlen=_MOST_QUICK_ENDS)
        self._lines: collections.deque[str] = collections.deque(maxlen=12)
        self._again: float | None = None
        self._process: subprocess.Popen[str]
        self._began = self._look = 0.0
        self._dead: frozenset[int] = frozenset()

    def __enter__(self) -> _Running:
        self._start()
        self._first = self._trouble = self._began
        return self

    def __exit__(self, *_: object) -> None:
        _end(self._process)
        self._relay.join(timeout=2)

    def check(self) -> None:
        """Start the process again if it has ended.

        Raises:
          EngineError: if it ended by itself right after its first start, or ends repeatedly.
        """
        now = time.monotonic()
        if self._again is not None:
            if now >= self._again:
                self._start()
            return
        code = self._process.poll()
        if code is None and not (self._child.needs_helpers and self._lost_a_helper(now)):
            return
        _end(self._process)
        self._relay.join(timeout=2)
        code = self._process.poll() if code is None else code
        code = _UNKNOWN if code is None else code
        self._ends.append(now)
        name, lived = self._child.name, now - self._began
        output = "\n  ".join(self._lines) or "nothing"
        known = next((text for text in self._child.advice if text in output), "")
        advice = self._child.advice.get(known, "")
        if lived > _QUICK:
            self._trouble = now
        excused = now - self._trouble < self._child.patience.get(known, 0.0)
        at_once = code > 0 and lived < _QUICK and self._first == self._began
        often = len(self._ends) == _MOST_QUICK_ENDS and now - self._ends[0] < 10 * _QUICK
        if not excused and (at_once or often or known):
            raise EngineError(
                f"the {name} ended with exit code {code} after {lived:.0f} s. Its last output:\n  "
                f"{output}\n{advice}"
            )
        if excused:
            self._ends.clear()
        logger.warning("the %s ended with exit code %s; starting it again. %s", name, code, advice)
        self._again = now + (_PAUSE if excused else 0.0)

    def _lost_a_helper(self, now: float) -> bool:
        """Whether a process that the child has started is dead at two looks in a row."""
        if now < self._look:
            return False
        self._look = now + _LOOK
        dead = _dead_children(self._process.pid)
        lost = dead & self._dead
        self._dead = dead
        if lost:
            logger.warning("a process of the %s has died", self._child.name)
        return bool(lost)

    def _start(self) -> None:
        child = self._child
        self._look, self._dead = 0.0, frozenset()
        self._began, self._again = time.monotonic(), None
        self._lines.clear()
        try:
            self._process = subprocess.Popen(
                child.command,
                env={**os.environ, **child.environment},
                cwd=child.folder,
                umask=child.mask,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
                preexec_fn=_die_with_parent if _LINUX else None,
            )
        except OSError as error:
            raise EngineError(f"the {child.name} cannot be started: {error}") from error
        self._relay = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._relay.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None, "stdout is a pipe"
        with process.stdout as lines:
            for line in lines:
                if not line.startswith("INFO"):  # lines of Flower's web server
                    self._lines.append(line.rstrip())
                sys.stderr.write(f"[{self._child.name}] {line}")
                sys.stderr.flush()


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and all that it has started: SIGTERM first, then SIGKILL."""
    for number, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, 2.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        until = time.monotonic() + patience
        while time.monotonic() < until and _group_lives(process):
            time.sleep(0.05)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=10)


def _dead_children(process: int) -> frozenset[int]:
    """Return the processes that a process has started, and that ended without its notice."""
    found = set()
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                with contextlib.suppress(OSError):
                    state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
                    if state == "Z":
                        found.add(int(child))
    return frozenset(found)


def _group_lives(process: subprocess.Popen[str]) -> bool:
    process.poll()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, 0)
        return True
    return False


def _die_with_parent() -> None:
    """Have the kernel end this process when its parent is gone (Linux)."""
    assert _LIBC is not None, "called on Linux alone"
    _LIBC.prctl(_DEATH_SIGNAL, signal.SIGTERM)
