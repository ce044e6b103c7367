"""A sweep: many runs, some side by side, each in a process and a folder of its own.

    rows ──> process ──> DIR/<row>/        a run folder
         └─> process ──> DIR/<row>/        finished ones are skipped, partial ones resumed
    sweep.json                             one object a row, as `fedpeft sweep --json` prints
    results file                           a line for each finished run; a line counts as done

Runs are processes, so that one that fails, or is killed, stops no other. A process ends when the
sweep has ended, also after SIGKILL. The number of runs side by side cannot change a result.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from fedpeft.core.cpus import num_cores
from fedpeft.core.errors import FedpeftError, RunFolderError
from fedpeft.core.interrupts import ignore_interrupts, interrupts_held
from fedpeft.core.storage import disk_words, is_full
from fedpeft.experiment.engines import ENGINES
from fedpeft.experiment.epsilon import resolve_privacy
from fedpeft.experiment.resolve import resolve
from fedpeft.experiment.sweep_rows import SweepRow
from fedpeft.launch.start import run
from fedpeft.results.lines import append_line, line_digest, read_lines
from fedpeft.results.runs import Run
from fedpeft.runs.files import write_json
from fedpeft.runs.folder import RunFolder, peek
from fedpeft.runs.lock import LOCK, locked
from fedpeft.runs.records import RoundDone

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

_FILE = "sweep.json"
_CRASHED = 4
_PRELOADED = (
    "transformers.modeling_utils",
    "transformers.models.vit.modeling_vit",
    "peft",
    "sklearn.datasets",
)
"""Imported once, by the process that the runs of a sweep are forked from."""


@dataclass(frozen=True)
class Finished:
    """A run is done.

    Attributes:
      summary: as in its `summary.json`.
      skipped: whether it was done before this sweep.
    """

    summary: dict[str, object]
    skipped: bool = False


@dataclass(frozen=True)
class Failed:
    """A run stopped with an error.

    Attributes:
      message: what happened.
      exit_code: as `fedpeft run` would end.
    """

    message: str
    exit_code: int


Event: TypeAlias = RoundDone | Finished | Failed
Watcher: TypeAlias = Callable[[SweepRow, Event], None]


def sweep(
    rows: Sequence[SweepRow],
    out: Path,
    watch: Watcher = lambda row, event: None,
    results: Path | None = None,
) -> Mapping[str, Finished | Failed]:
    """Run all rows inside a folder; finished ones are skipped, partial ones resumed.

    Args:
      rows: the checked rows.
      out: the sweep's folder.
      watch: called with each event of a row.
      results: file with a line for each finished run: rows that have one are not run again, here
        or on another machine, and every row that finishes adds its own. Its folder is made.

    Returns:
      the end of each row by its name.

    Raises:
      RunFolderError: if the folder holds something else, or another sweep is writing to it, or the
        results file cannot be read.
    """
    _check_folder(out)
    done = read_lines(results) if results else {}
    if results:
        results.parent.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        ends: dict[str, Finished | Failed] = {}
        write_json(out / _FILE, results_json(rows, ends, out))
        for row, end in _run_all(rows, out, watch, done):
            ends[row.name] = end
            if results and isinstance(end, Finished) and (digest := _digest(row)) not in done:
                append_line(results, digest, out / row.name)
            write_json(out / _FILE, results_json(rows, ends, out))
    return ends


def results_json(
    rows: Sequence[SweepRow], ends: Mapping[str, Finished | Failed], out: Path
) -> list[dict[str, object]]:
    """Return one object for each row: its summary or its error, with its overrides."""
    return [_row_json(row, ends.get(row.name), out) for row in rows]


def _row_json(row: SweepRow, end: Finished | Failed | None, out: Path) -> dict[str, object]:
    experiment = row.experiment
    described: dict[str, object] = {
        "row": row.name,
        "overrides": dict(row.overrides),
        "status": "unfinished" if end is None else type(end).__name__.lower(),
        "method": experiment.tuning.method,
        "seed": experiment.seed,
        "run_dir": str(out / row.name),
    }
    if isinstance(end, Failed):
        return {**described, "error": end.message, "exit_code": end.exit_code}
    return described | (end.summary if end else {}) | {"run_dir": described["run_dir"]}


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"{out}: this is a file; --out must name a folder")
    found = sorted(item.name for item in out.iterdir()) if out.exists() else []
    foreign = [name for name in found if name != LOCK]
    if foreign and _FILE not in foreign:
        shown = ", ".join(foreign[:3])
        raise RunFolderError(
            f"{out}: the folder is not empty and holds no sweep (found {shown}); nothing was "
            "changed. Choose another --out"
        )


def _run_all(
    rows: Sequence[SweepRow], out: Path, watch: Watcher, done: Mapping[str, Run]
) -> Iterator[tuple[SweepRow, Finished | Failed]]:
    """Start processes while there is room, and pass on the events that they send."""
    waiting: list[SweepRow] = []
    for row in rows:
        end = _without_process(row, out, done)
        if end is None:
            waiting.append(row)
            continue
        watch(row, end)
        yield row, end
    room, workers = _layout(waiting)
    with _processes() as running:
        while waiting or running:
            while waiting and len(running) < room:
                with interrupts_held("spawn"):
                    running.append(_start(waiting.pop(0), out, workers))
            pipes = [process.pipe for process in running]
            for process in [p for p in running if p.pipe in wait(pipes)]:
                event = _receive(process)
                watch(process.row, event)
                if isinstance(event, Finished | Failed):
                    running.remove(process)
                    process.process.join()
                    yield process.row, event


def _digest(row: SweepRow) -> str:
    return line_digest(resolve(row.experiment).experiment)


def _without_process(row: SweepRow, out: Path, done: Mapping[str, Run]) -> Finished | Failed | None:
    """Return the end of a run that is already finished, or that cannot be started."""
    try:
        if done and (found := done.get(_digest(row))) is not None:
            return Finished(dict(found.summary or {}), skipped=True)
        summary = peek(resolve(row.experiment), RunFolder(out / row.name), resume=True)
    except FedpeftError as error:
        return Failed(str(error), error.exit_code)
    return None if summary is None else Finished(summary, skipped=True)


def _layout(rows: Sequence[SweepRow]) -> tuple[int, int]:
    """Return how many runs fit side by side, and how many workers each gets.

    Cores go to runs first: a run of one worker never waits for the slowest client of a round.
    """
    if not rows or any(row.experiment.engine.device != "cpu" for row in rows):
        return 1, 1
    if not all(ENGINES[row.experiment.engine.name].in_process for row in rows):
        return 1, num_cores()
    given = [row.experiment.engine.workers for row in rows]
    if all(given):
        workers = max(number or 1 for number in given)
        return max(1, num_cores() // workers), workers
    room = min(len(rows), num_cores())
    return room, max(1, num_cores() // room)


@dataclass(frozen=True)
class _Running:
    row: SweepRow
    process: BaseProcess
    pipe: Connection[object, object]


@contextmanager
def _processes() -> Iterator[list[_Running]]:
    """Hold a list of running processes; those that are left at the end are stopped."""
    running: list[_Running] = []
    try:
        yield running
    finally:
        for left in running:
            left.pipe.close()  # a child ends when its pipe does
        for left in running:
            left.process.join(timeout=5)


def _start(row: SweepRow, out: Path, workers: int) -> _Running:
    """Start a run. Processes come from a server that has imported torch and never computed."""
    context = _context()
    experiment, engine = row.experiment, row.experiment.engine
    if engine.device == "cpu":
        experiment = experiment.changed(engine={"workers": engine.workers or workers})
    ours, theirs = context.Pipe()
    child = SweepRow(row.name, row.overrides, resolve_privacy(experiment))  # calibrated once here
    process = context.Process(target=_run_one, args=(child, out, theirs), name=row.name)
    process.start()
    theirs.close()
    return _Running(row, process, ours)


def _context() -> ForkServerContext | SpawnContext:
    """Return what starts processes: a server to fork from where the system has one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fedpeft", *_PRELOADED, run.__module__])
    return context


def _receive(running: _Running) -> Event:
    try:
        return running.pipe.recv()  # type: ignore[return-value]  # only `_run_one` sends
    except (EOFError, OSError):
        running.process.join(timeout=5)
        code = running.process.exitcode
        return Failed(
            f"the process of this run ended with exit code {code}; run the sweep again to go on "
            "from its last checkpoint",
            _CRASHED,
        )


def _run_one(row: SweepRow, out: Path, pipe: Connection[object, object]) -> None:
    """Run one row in its own process, and send its events."""
    ignore_interrupts()
    threading.Thread(target=_follow, args=(pipe,), daemon=True).start()
    try:
        summary = run(row.experiment, out / row.name, resume=True, on_round=pipe.send)
        pipe.send(Finished(summary))
    except FedpeftError as error:
        pipe.send(Failed(str(error), error.exit_code))
    except OSError as error:
        named = error.filename is not None or is_full(error)
        pipe.send(Failed(disk_words(error) if named else traceback.format_exc(), _CRASHED))
    except Exception:  # the other runs go on; the sweep reports it
        pipe.send(Failed(traceback.format_exc(), _CRASHED))


def _follow(pipe: Connection[object, object]) -> None:
    """End this process when the sweep has ended: it never sends, so reading returns only then."""
    try:
        pipe.recv()
    except (EOFError, OSError):
        os._exit(1)
