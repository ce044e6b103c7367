"""`fedpeft run` with `engine.name = "flower"`: submit, follow the true status, submit again.

    submit ──> follow ──finished:completed──> the run folder's summary
      ^          │
      └──────────┴── server died, SuperLink restarted: go on from the folder, so many times

A run that failed for a reason of its own (bad input, too few replies) is not tried again.
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

from fedpeft.core.errors import ConfigError, EngineError, FedpeftError, RoundError, RunFolderError
from fedpeft.experiment.engines import WAIT
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.read import dump_experiment
from fedpeft.federation.bundle import STORE_PORT, read_signature
from fedpeft.federation.control import Control, Link, RunState, Unreachable
from fedpeft.runs.folder import RunFolder, read_summary
from fedpeft.runs.ledger import read_ledger
from fedpeft.runs.records import Record, read_records, totals
from fedpeft.runs.watch import RoundDone, done_of

__all__ = ["deploy", "greet_sites", "link_of"]

logger = logging.getLogger(__name__)

OnRound = Callable[[RoundDone], None]
T = TypeVar("T")

_RETRIES = 3
_POLL = 1.0
_VERDICT = re.compile(r"\[fedpeft exit (\d)\] (.*)", re.DOTALL)


def deploy(
    experiment: Experiment, folder: RunFolder, on_round: OnRound, *, resume: bool
) -> dict[str, object]:
    """Run an experiment on the sites behind a SuperLink, and wait for its end.

    Args:
      experiment: resolved.
      folder: of the run, on the SuperLink's machine; progress is read from it.
      on_round: called after each round.
      resume: go on with what is in the folder.

    Returns:
      the summary; where the folder is on another machine, only its name and `stopped = "on the
      server"`.

    Raises:
      ConfigError: if the server refuses the experiment.
      RoundError: if too few sites came or answered.
      EngineError: if the SuperLink is gone, or the server died too often.
    """
    folder = RunFolder(folder.path.absolute())
    watcher = _Watcher(folder, experiment.federation.rounds, on_round)
    retries = _RETRIES if experiment.engine.retries is None else experiment.engine.retries
    left = retries
    with _terminated_as_interrupted():
        while True:
            before = watcher.told
            failed = _submit(experiment, folder, watcher, task="run", resume=resume)
            if failed is None:
                return _summary(experiment, folder)
            _final(failed)
            resume = True
            left = retries if watcher.told > before else left - 1
            if left < 0:
                raise EngineError(
                    f"engine: the server of this run failed {retries + 1} times without a new "
                    f"round; the last time: {failed}. Look at the SuperLink's log, and go on with: "
                    f"fedpeft run --resume --out {folder.path}"
                )
            logger.warning("the run failed (%s); it is submitted again", failed)


def greet_sites(experiment: Experiment, out: Path) -> Mapping[str, Any]:
    """Shake hands with all sites, and do nothing else.

    Returns:
      what `sites.json` holds.

    Raises:
      ConfigError: if the server refuses the experiment.
      RoundError: if not all sites came or fit, with the reasons.
      EngineError: if the SuperLink is gone.
    """
    folder = RunFolder(out.absolute())
    watcher = _Watcher(folder, 0, lambda done: None)
    failed = _submit(experiment, folder, watcher, task="handshake", resume=False)
    if failed is not None:
        _final(failed)
        raise EngineError(f"engine: the handshake failed: {failed}")
    return read_ledger(folder.path) or {}


def link_of(experiment: Experiment) -> Link:
    """Return how to reach an experiment's SuperLink.

    Raises:
      ConfigError: if it is not named.
    """
    if experiment.engine.superlink is None:
        raise ConfigError(
            "engine.superlink: not set; name the SuperLink as HOST:PORT, such as 127.0.0.1:8000"
        )
    return Link(experiment.engine.superlink, experiment.engine.root_certificates)


class _Watcher:
    """Tells of rounds as their lines appear in the run folder, if it can be seen from here."""

    def __init__(self, folder: RunFolder, rounds: int, on_round: OnRound) -> None:
        self._file = folder.rounds
        self._rounds = rounds
        self._on_round = on_round
        self.told = len(self._records())

    def look(self) -> None:
        """Tell of what is new."""
        records = self._records()
        for count in range(self.told + 1, len(records) + 1):
            self._on_round(done_of(records[count - 1], totals(records[:count]), self._rounds))
        self.told = max(self.told, len(records))

    def _records(self) -> list[Record]:
        with contextlib.suppress(RunFolderError, OSError):
            return read_records(self._file)
        return []


def _submit(
    experiment: Experiment, folder: RunFolder, watcher: _Watcher, *, task: str, resume: bool
) -> str | None:
    """Submit once and follow to the end; the run is stopped if this process is.

    Returns:
      why it failed; None if it did not.
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
    watcher.look()
    if state.how == "completed":
        return None
    if state.how == "stopped":
        raise EngineError(
            f"engine: run {run} was stopped at the SuperLink. Go on with: fedpeft run --resume "
            f"--out {folder.path}"
        )
    return state.details or "without a reason"


def _absolute_files(experiment: Experiment) -> Experiment:
    """Make the files that the submitter reads independent of the folder that it is called from."""
    engine = experiment.engine
    files = {
        "root_certificates": engine.root_certificates
        and str(Path(engine.root_certificates).absolute()),
        "signatures": engine.signatures and [str(Path(f).absolute()) for f in engine.signatures],
    }
    return experiment.model_copy(update={"engine": engine.model_copy(update=files)})


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Take SIGTERM as Ctrl-C inside the block, so that a run is stopped at the SuperLink too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _follow(control: Control, run: int, watcher: _Watcher, patience: float) -> RunState:
    while True:
        state = _patiently(lambda: control.state(run), patience)
        watcher.look()
        if state.status == "finished":
            return state
        time.sleep(_POLL)


def _patiently(call: Callable[[], T], patience: float) -> T:
    """Call; where the SuperLink does not answer, again for so many seconds."""
    until = time.monotonic() + patience
    while True:
        try:
            return call()
        except Unreachable as error:
            if time.monotonic() > until:
                raise
            logger.warning("%s", error)
            time.sleep(2 * _POLL)


def _final(failed: str) -> None:
    """Raise the server's own verdict, if the run failed by one that will not change.

    Raises:
      ConfigError: if it was bad input.
      RoundError: if it was too few replies.
    """
    verdict = _VERDICT.search(failed)
    if verdict is None:
        return
    for kind in (ConfigError, RoundError):
        if int(verdict.group(1)) == kind.exit_code:
            raise kind(verdict.group(2))


def _summary(experiment: Experiment, folder: RunFolder) -> dict[str, object]:
    """Return the summary, or what is known of it where the folder is out of sight."""
    if folder.path.exists():
        return read_summary(folder)
    return {
        "name": experiment.name,
        "method": experiment.tuning.method,
        "seed": experiment.seed,
        "run_dir": str(folder.path),
        "stopped": "on the server",
    }
