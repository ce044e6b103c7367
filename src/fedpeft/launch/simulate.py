"""From Python: run an experiment file, or a federation of the user's own model and data.

    fedpeft.run("experiment.toml", {"tuning.method": "lora"})
    fedpeft.simulate(tuned, data, {"federation.rounds": 20, "client.lr": 0.05})

Settings are those of the experiment file, by their dotted keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fedpeft.build.engine import engine_builder
from fedpeft.build.model import check_device
from fedpeft.build.run import BuiltRun, assemble
from fedpeft.core.deltas import digest_of
from fedpeft.core.errors import ConfigError
from fedpeft.data.examples import Federated
from fedpeft.experiment.callbacks import Callback, ended, started, stops
from fedpeft.experiment.engines import ENGINES
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.read import apply_overrides, read_toml, validate
from fedpeft.experiment.resolve import Given, Resolved, resolve
from fedpeft.launch import start
from fedpeft.launch.notebook import as_html, as_text
from fedpeft.launch.recorded import check_recorded, described
from fedpeft.rounds.buffered import advance
from fedpeft.runs import loop
from fedpeft.runs.folder import RunFolder
from fedpeft.runs.load import apply_delta
from fedpeft.runs.lock import locked
from fedpeft.runs.records import Record, Totals, read_records, totals
from fedpeft.server.sampling import Sampler, sampler_of
from fedpeft.server.state import Algorithm
from fedpeft.tuning.tuned import TunedModel, write_buffers, write_delta
from fedpeft.wire.stages import Stage

__all__ = ["Result", "run", "simulate"]

OnRound = Callable[[Record], None]
Choose = Callable[[Sequence[str], int], Sequence[str]]


@dataclass(frozen=True, repr=False)
class Result:
    """What a federation gave; a notebook shows its headline figures and the curve over rounds.

    Attributes:
      model: with the final delta, in eval mode.
      tuned: the same model with its delta's names.
      records: one a round, as in `rounds.jsonl`.
      totals: bytes, seconds and the headline figures over all rounds.
    """

    model: nn.Module
    tuned: TunedModel
    records: tuple[Record, ...]
    totals: Totals

    def __repr__(self) -> str:
        """Return one line of headline figures."""
        return as_text(self.records, self.totals)

    def _repr_html_(self) -> str:
        return as_html(self.records, self.totals)


def run(
    experiment: str | Path | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Run an experiment, as `fedpeft run` does.

    Args:
      experiment: a TOML file, a table, or None for the quickstart.
      settings: overrides by dotted key, such as `{"federation.rounds": 5}`.
      out: the run folder; `runs/<name>-<time>` by default.
      resume: go on with the run in `out`.
      callbacks: called around rounds, beside those that the experiment names; one of them may end
        the run.

    Returns:
      the summary; `run_dir` names the folder, which `fedpeft.load` takes.

    Raises:
      ConfigError: listing every problem of the experiment.
      RunFolderError: if `out` cannot be used.
      RoundError: if too few clients answered.
    """
    checked = _experiment(experiment, settings)
    return start.run(checked, Path(out) if out else None, resume=resume, callbacks=callbacks)


def simulate(
    tuned: TunedModel,
    data: Federated,
    settings: Mapping[str, Any] | None = None,
    *,
    privacy: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    on_round: OnRound = lambda record: None,
    algorithm: Algorithm | None = None,
    up: Sequence[Stage] | None = None,
    sampler: Sampler | Choose | None = None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Train a tuned model of the user's own on data of the user's own.

    Args:
      tuned: from `tune` or `from_peft`; the simulation owns it from here on.
      data: from `from_torch`, `from_datasets` or `load_data`.
      settings: keys of `[federation]`, `[stability]`, `[client]`, `[wire]`, `[engine]` and `seed`,
        such as `{"federation.rounds": 20, "client.lr": 0.05}`; defaults are those of the file.
      privacy: keys of `[privacy]`, such as `{"mode": "central", "epsilon": 5.0}`; what a file may
        not ask for is refused too. The records then hold `epsilon`; rounds end at the budget.
      out: a folder that keeps records, checkpoints and the final delta; a simulation that finds its
        own unfinished folder goes on with it. What `fedpeft.load` could not build again is refused,
        but for modules from `wrap_module`, which the folder names as such. None keeps nothing.
      on_round: called with the record of each round.
      algorithm: an object in the place of `federation.algorithm`.
      up: stages in the place of `wire.up`; those of privacy come first all the same.
      sampler: an object in the place of `federation.sampling`, or a function
        (clients, round) -> cohort.
      callbacks: called around rounds; one of them may end the run.

    In a folder an object is recorded as `package.module:name` with the digest of its source; only
    what is passed again with the same digest goes on with an unfinished folder.

    Raises:
      ConfigError: if a setting is wrong or is of the model or the data, or the model cannot be
        recorded in a folder.
      PrivacyError: if the privacy asked for would not protect.
      RunFolderError: if `out` holds something else.
      RoundError: if too few clients answered.
    """
    private = {f"privacy.{key}": value for key, value in (privacy or {}).items()}
    given = Given(
        algorithm,
        None if up is None else tuple(up),
        None if sampler is None else sampler_of(sampler),
        tuple(callbacks),
    )
    resolved = _settings(tuned, data, settings or {}, private, given)
    check_device(resolved.experiment)
    built = assemble(resolved, tuned, data, engine_builder(resolved.experiment))
    try:
        records = _in_folder(built, Path(out), on_round) if out else _rounds(built, on_round)
    finally:
        built.engine.close()
    tuned.model.eval()
    return Result(tuned.model, tuned, tuple(records), totals(records, tuned.loaded.task.headline))


def _experiment(
    source: str | Path | Mapping[str, Any] | None, settings: Mapping[str, Any] | None
) -> Experiment:
    table = source if isinstance(source, Mapping) else read_toml(Path(source) if source else None)
    where = str(source) if isinstance(source, str | Path) else "experiment"
    return validate(apply_overrides(table, (settings or {}).items()), where)


def _settings(
    tuned: TunedModel,
    data: Federated,
    settings: Mapping[str, Any],
    private: Mapping[str, Any],
    given: Given,
) -> Resolved:
    """Check the settings of a simulation and describe its model and data by name."""
    allowed = ("seed", "name", "federation", "stability", "client", "wire", "engine")
    for key in settings:
        if key.split(".")[0] not in allowed:
            raise ConfigError(
                f"{key}: model, tuning and data of a simulation are the objects that you pass; "
                f"allowed are keys of {', '.join(allowed)}; privacy has its own argument, "
                "privacy={...}"
            )
    seed = settings.get("seed", Experiment().seed)
    table = apply_overrides(described(tuned, data, seed), (dict(settings) | dict(private)).items())
    experiment = validate(table, "settings")
    if not ENGINES[experiment.engine.name].in_process:
        raise ConfigError(
            f"engine.name: found {experiment.engine.name!r}; objects of your own stay in this "
            "process. Use 'local' here, or an experiment file with `fedpeft run`"
        )
    return resolve(experiment, given=given)


def _rounds(built: BuiltRun, on_round: OnRound) -> list[Record]:
    """Run all rounds in memory and leave the final delta in the model."""
    state, records, stopped = built.start, list[Record](), False
    started(built.callbacks, loop.facts_of(built, state, None))
    while built.privacy.goes_on(state.round) and not stopped:
        state, record = advance(state, built.plan, built.engine)
        records.append(loop.line_of(built, state, record))
        on_round(records[-1])
        stopped = stops(built.callbacks, records[-1])
    ended(built.callbacks, loop.summary_of(built, totals(records), digest_of(state.delta)))
    write_delta(built.tuned, state.delta)
    if built.tuned.buffers:
        write_buffers(built.tuned, state.buffers)
    return records


def _in_folder(built: BuiltRun, out: Path, on_round: OnRound) -> list[Record]:
    folder = RunFolder(out)
    check_recorded(built.experiment, built.tuned)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        summary = loop.run_experiment(built, folder, lambda done: on_round(done.record))
    apply_delta(built.tuned, folder.delta, str(summary["delta_digest"]))
    return read_records(folder.rounds)
