"""`fedpeft run` with `engine.name = "flower"`: submit a run, follow its status, submit it again.

    submit ──> follow ──finished:completed──> the run folder's summary
      ^          │
      └──────────┴── server died or SuperLink restarted: resume from the folder, a few times

A run that failed for a reason that will not change (bad input, too few replies) is not retried.
"""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fedpeft.core.errors import (
    ConfigError,
    EngineError,
    FedpeftError,
    NotFiniteError,
    RoundError,
    RunFolderError,
)
from fedpeft.core.text import home
from fedpeft.engines.flower.app import NOT_FINITE
from fedpeft.experiment.engines import WAIT
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.read import dump_experiment
from fedpeft.federation.bundle import STORE_PORT, read_signature
from fedpeft.federation.control import Control, Link, RunState, Unreachable
from fedpeft.runs.folder import RunFolder, read_summary
from fedpeft.runs.ledger import read_ledger
from fedpeft.runs.records import Record, RoundDone, read_records, totals

logger = logging.getLogger(__name__)

OnRound = Callable[[RoundDone], None]
T = TypeVar("T")

_RETRIES = 3
_POLL = 1.0
_MOST_POLL = 15.0
_VERDICT = re.compile(r"\[fedpeft exit (\d)\] (.*)", re.DOTALL)


def deploy(
    experiment: Experiment, folder: RunFolder, on_round: OnRound, *, resume: bool
) -> dict[str, object]:
    """Run an experiment on the sites behind a SuperLink, and wait for its end.

    Args:
      experiment: resolved.
      folder: the run folder, on the SuperLink's machine; progress is read from it.
      on_round: called after each round.
      resume: resume the run in the folder.

    Returns:
      The summary; where the folder is on another machine, only its name and `stopped = "on the
      server"`.

    Raises:
      ConfigError: if the server refuses the experiment.
      RoundError: if too few sites joined or answered.
      EngineError: if the SuperLink cannot be reached, or the server died too often.
    """
    folder = RunFolder(folder.path.absolute())
    watcher = _Watcher(folder, experiment.federation.rounds, on_round)
    retries = _RETRIES if experiment.engine.retries is None else experiment.engine.retries
    left = retries
    with _terminated_as_interrupted():
        while True:
            before = watcher.reported
            failed = _submit(experiment, folder, watcher, task="run", resume=resume)
            if failed is None:
                return _summary(experiment, folder)
            _raise_verdict(failed)
            resume = True
            left = retries if watcher.reported > before else left - 1
            if left < 0:
                raise EngineError(
                    f"engine: the server of this run failed {retries + 1} times without a new "
                    f"round; the last time: {failed}. Look at the SuperLink's log, and go on with: "
                    f"fedpeft run --resume --out {folder.path}"
                )
            logger.warning("the run failed (%s); submitting it again", failed)


def greet_sites(experiment: Experiment, out: Path) -> Mapping[str, Any]:
    """Run the handshake with all sites, and no round.

    Returns:
      The content of `sites.json`.

    Raises:
      ConfigError: if the server refuses the experiment.
      RoundError: if a site is missing or does not fit, with the reasons.
      EngineError: if the SuperLink cannot be reached.
    """
    folder = RunFolder(out.absolute())
    watcher = _Watcher(folder, 0, lambda done: None)
    failed = _submit(experiment, folder, watcher, task="handshake", resume=False)
    if failed is not None:
        _raise_verdict(failed)
        raise EngineError(f"engine: the handshake failed: {failed}")
    return read_ledger(folder.path) or {}


def link_of(experiment: Experiment) -> Link:
    """Return how to reach an experiment's SuperLink.

    Raises:
      ConfigError: if the experiment names none.
    """
    if experiment.engine.superlink is None:
        raise ConfigError(
            "engine.superlink: not set; name the SuperLink as HOST:PORT, such as 127.0.0.1:8000"
        )
    return Link(experiment.engine.superlink, experiment.engine.root_certificates)


class _Watcher:
    """Reports rounds as their lines appear in the run folder, if this machine has that folder."""

    def __init__(self, folder: RunFolder, rounds: int, on_round: OnRound) -> None:
        self._file = folder.rounds
        self._summary = folder.summary
        self._rounds = rounds
        self._on_round = on_round
        self.reported = len(self._records())

    def update(self) -> None:
        """Report the rounds that are new."""
        records = self._records()
        for count in range(self.reported + 1, len(records) + 1):
            self._on_round(RoundDone(records[count - 1], totals(records[:count]), self._rounds))
        self.reported = max(self.reported, len(records))

    def ended(self) -> bool:
        """Whether this machine has the summary, which the last round is followed by."""
        return self._summary.exists()

    def _records(self) -> list[Record]:
        with contextlib.suppress(RunFolderError, OSError):
            return read_records(self._file)
        return []


def _submit(
    experiment: Experiment, folder: RunFolder, watcher: _Watcher, *, task: str, resume: bool
) -> str | None:
    """Submit once and follow the run to its end; stop it if this process is interrupted.

    Returns:
      Why it failed; None if it did not.
    """
    patience = experiment.engine.wait or WAIT
    experiment = _absolute_files(experiment)
    configuration: dict[str, str | bool | int | float] = {
        "task": task,
        "experiment": dump_experiment(experiment),
        "out": str(folder.path),
        "resume": resume,
    }
    with contextlib.closing(Control(link_of(experiment))) as control:
        signed = [read_signature(Path(file)) for file in experiment.engine.signatures or []]
        port = experiment.engine.store_port or STORE_PORT
        run = _patiently(lambda: control.start(configuration, signed, port=port), patience)
        try:
            state = _follow(control, run, watcher, patience)
        except BaseException:
            with contextlib.suppress(FedpeftError):
                control.stop(run)
            raise
    watcher.update()
    if state.how == "completed":
        return None
    if state.how == "stopped":
        on = f"Go on with: fedpeft run --resume --out {folder.path}"
        what = f"run {run}" if task == "run" else "the handshake"
        raise EngineError(
            f"engine: {what} was stopped at the SuperLink. "
            + (on if task == "run" else "Nothing was trained; start it again")
        )
    return state.details or "without a reason"


def _absolute_files(experiment: Experiment) -> Experiment:
    """Make the paths of the submitter's own files absolute."""
    engine = experiment.engine
    root, signatures = engine.root_certificates, engine.signatures
    files = {
        "root_certificates": root and str(home(root).absolute()),
        "signatures": signatures and [str(home(file).absolute()) for file in signatures],
    }
    return experiment.model_copy(update={"engine": engine.model_copy(update=files)})


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C inside the block, so that the run is stopped at the SuperLink too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _follow(control: Control, run: int, watcher: _Watcher, patience: float) -> RunState:
    """Wait for the end of a run; the SuperLink, which logs each question, is asked ever less."""
    wait = _POLL
    while True:
        state = _patiently(lambda: control.state(run), patience)
        watcher.update()
        if state.status == "finished":
            return state
        seen, until = watcher.reported, time.monotonic() + wait
        while True:
            time.sleep(_POLL)
            watcher.update()
            if time.monotonic() >= until or watcher.reported != seen or watcher.ended():
                break
        wait = min(_MOST_POLL, wait + _POLL)


def _patiently(call: Callable[[], T], patience: float) -> T:
    """Call, and retry for `patience` seconds while the SuperLink does not answer."""
    until = time.monotonic() + patience
    while True:
        try:
            return call()
        except Unreachable as error:
            if time.monotonic() > until:
                raise
            logger.warning("%s", error)
            time.sleep(2 * _POLL)


def _raise_verdict(failed: str) -> None:
    """Raise the server's own error again, if it is one that a retry cannot change.

    Raises:
      ConfigError: if the server reported bad input.
      RoundError: if it had too few replies.
      NotFiniteError: if it made numbers that are not finite.
    """
    verdict = _VERDICT.search(failed)
    if verdict and verdict.group(2).startswith(NOT_FINITE):
        raise NotFiniteError(verdict.group(2).removeprefix(NOT_FINITE))
    for kind in (ConfigError, RoundError) if verdict else ():
        if verdict and int(verdict.group(1)) == kind.exit_code:
            raise kind(verdict.group(2))


def _summary(experiment: Experiment, folder: RunFolder) -> dict[str, object]:
    """Return the summary, or what is known without it where the folder is on another machine."""
    if folder.path.exists():
        return read_summary(folder)
    return {
        "name": experiment.name,
        "method": experiment.tuning.method,
        "seed": experiment.seed,
        "run_dir": str(folder.path),
        "stopped": "on the server",
    }
