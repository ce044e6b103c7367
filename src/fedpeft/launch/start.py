"""Start a run in a folder, on whichever engine its experiment names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from fedpeft.build.run import build_run
from fedpeft.core.errors import ConfigError
from fedpeft.experiment.engines import ENGINES
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.resolve import Given, resolve
from fedpeft.federation.deploying import deploy
from fedpeft.runs.folder import (
    RunFolder,
    default_out,
    peek,
    with_recorded_passes,
    with_recorded_privacy,
)
from fedpeft.runs.lock import locked
from fedpeft.runs.loop import run_experiment
from fedpeft.runs.records import RoundDone


class Deploy(Protocol):
    """Runs an experiment at a server elsewhere, waits for its end and returns the summary."""

    def __call__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        on_round: Callable[[RoundDone], None],
        *,
        resume: bool,
    ) -> dict[str, object]:
        """Run it; see `run`."""
        ...


DEPLOYMENTS: Mapping[str, Deploy] = {"flower": deploy}
"""`engine.name` -> how to submit, for engines whose rounds run elsewhere."""


def run(
    experiment: Experiment,
    out: Path | None = None,
    *,
    resume: bool = False,
    on_round: Callable[[RoundDone], None] = lambda done: None,
    given: Given | None = None,
) -> dict[str, object]:
    """Run an experiment in a folder, from its beginning or from where it stopped.

    Nothing is written before model and data are loaded and found to fit.

    Args:
      experiment: checked; it need not be resolved.
      out: the run folder; None is `runs/<name>-<time>`.
      resume: go on with the run in `out`; for a finished one, return its summary.
      on_round: called after each round, when its checkpoint is on the disk.
      given: callbacks and scores, added to those that the experiment names.

    Returns:
      the summary, as in `summary.json`.

    Raises:
      ConfigError: if the experiment is not possible.
      RunFolderError: if the folder is in use, corrupt, not empty or of another experiment.
      RoundError: if too few clients replied.
      EngineError: if the engine failed.
    """
    if resume and out is None:
        raise ConfigError(
            "--resume: there is no --out; name the run folder to go on with: --out DIR"
        )
    given = given or Given()
    resolved = resolve(experiment, given=given)
    chosen = resolved.experiment
    folder = RunFolder(out or default_out(chosen.name))
    finished = peek(resolved, folder, resume=resume)
    if finished is not None:
        return finished
    if ENGINES[chosen.engine.name].deployed:
        if given.callbacks or given.scores:
            word, key = ("callbacks", "run") if given.callbacks else ("scores", "answers")
            raise ConfigError(
                f"{word}: found objects with engine.name = {chosen.engine.name!r}, whose rounds "
                f"run at the server; name plug-ins of the server in {key}.{word}"
            )
        return DEPLOYMENTS[chosen.engine.name](chosen, folder, on_round, resume=resume)
    if resume:
        engine = with_recorded_passes(chosen, folder).engine
        privacy = with_recorded_privacy(chosen, folder).privacy
        resolved = resolved.changed(engine=engine, privacy=privacy)
    built = build_run(resolved)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        with locked(folder.path):
            finished = peek(replace(resolved, experiment=built.experiment), folder, resume=resume)
            return finished or run_experiment(built, folder, on_round)
    finally:
        built.engine.close()
