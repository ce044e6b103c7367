"""Contestants in processes of their own: a whole program that is timed, or a session that is asked.

run_program   start, wait, and end whatever it left behind
run_row       the same for the process of a row, which starts contestants
Session       a process that stays, so that contestants can take turns: A B A B
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.machine import ROOT, child_environment

__all__ = ["ContestantError", "Ended", "Session", "run_program", "run_row"]

_MARK = "FEDPEFT_BENCH_CONTESTANT"
_ROW = "FEDPEFT_BENCH_ROW"


class ContestantError(RuntimeError):
    """A contestant did not do its work."""


@dataclass(frozen=True)
class Ended:
    """A program that ended well.

    Attributes:
      seconds: wall time from its start to its end.
      output: its standard output.
    """

    seconds: float
    output: str


def run_program(
    command: Sequence[str], environment: Mapping[str, str], *, timeout: float, log: Path
) -> Ended:
    """Run a program to its end.

    Every process that carries this run's mark is ended afterwards, daemons included.

    Args:
      command: program and arguments.
      environment: all its variables.
      timeout: seconds.
      log: where its standard error goes.

    Raises:
      ContestantError: if it fails or takes too long; with the last lines of the log.
    """
    mark = uuid.uuid4().hex
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            env={**environment, _MARK: mark},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise ContestantError(f"{command[-1]}: no end after {timeout:.0f} s") from error
        finally:
            seconds = time.perf_counter() - began
            _end_marked(_MARK, mark)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
    if process.returncode:
        tail = log.read_text("utf-8", errors="replace")[-1500:]
        raise ContestantError(f"{' '.join(command)}: exit code {process.returncode}\n{tail}")
    return Ended(seconds, output.decode("utf-8", errors="replace"))


def run_row(command: Sequence[str], environment: Mapping[str, str], *, timeout: float) -> int:
    """Run a row's own process, and end all that it started; returns its exit code.

    Raises:
      ContestantError: if it takes too long.
    """
    mark = uuid.uuid4().hex
    try:
        marked = {**environment, _ROW: mark}
        ended = subprocess.run(command, env=marked, cwd=ROOT, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise ContestantError(f"no end after {timeout:.0f} s") from error
    finally:
        _end_marked(_ROW, mark)
    return ended.returncode


class Session:
    """A contestant's process that stays and answers: `python -m bench.contestants.serve MODULE`.

    Args:
      module: has `open_session(**arguments)`, which returns functions by name.
      threads: `OMP_NUM_THREADS` of the process.
      log: where its standard error goes.
      python: the interpreter; this one by default.
    """

    def __init__(
        self, module: str, *, threads: int, log: Path, python: str = sys.executable
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._module, self._log, self._mark = module, log, uuid.uuid4().hex
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [python, "-m", "bench.contestants.serve", module],
                env=child_environment(threads=threads, **{_MARK: self._mark}),
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                text=True,
            )

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def call(self, name: str, **arguments: object) -> Any:  # noqa: ANN401  # what JSON can say
        """Call `open` or one of the session's functions, and return its answer.

        Raises:
          ContestantError: if it raised or its process ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"name": name, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # its end shows when the answer is read
        line = self._process.stdout.readline()
        if not line:
            tail = self._log.read_text("utf-8", errors="replace")[-1500:]
            raise ContestantError(f"{self._module}: its process ended in {name!r}\n{tail}")
        answer = json.loads(line)
        if "error" in answer:
            raise ContestantError(f"{self._module}, {name}: {answer['error']}")
        return answer["value"]

    def close(self) -> None:
        """End the process and its workers."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        _end_marked(_MARK, self._mark)


def _end_marked(name: str, mark: str) -> None:
    """End every process that was started with this mark in its environment, and wait for it."""
    sign = f"{name}={mark}".encode()
    until = time.monotonic() + 10
    while (found := _with_sign(sign)) and time.monotonic() < until:
        for process in found:
            _kill(process)
        time.sleep(0.05)


def _with_sign(sign: bytes) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            marked = sign in (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if marked:
            found.append(int(entry.name))
    return found


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
