"""From Python: run an experiment file, or a federation of your own model and data.

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

from fedpeft.answers.scores import AnswerScore
from fedpeft.build.engine import engine_builder
from fedpeft.build.model import check_device
from fedpeft.build.run import BuiltRun, assemble
from fedpeft.core.errors import ConfigError
from fedpeft.core.text import home
from fedpeft.data.examples import Federated
from fedpeft.experiment.callbacks import Callback, ended
from fedpeft.experiment.engines import ENGINES
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.paths import read_from
from fedpeft.experiment.read import apply_overrides, read_toml, validate
from fedpeft.experiment.resolve import Given, Resolved, resolve
from fedpeft.launch import start
from fedpeft.launch.notebook import as_html, as_text
from fedpeft.launch.recorded import check_recorded, described
from fedpeft.runs import loop
from fedpeft.runs.files import read_object
from fedpeft.runs.folder import RunFolder
from fedpeft.runs.judged import judge_run
from fedpeft.runs.load import apply_delta
from fedpeft.runs.lock import locked
from fedpeft.runs.records import Record, Totals, read_records, totals
from fedpeft.runs.summary import summary_of
from fedpeft.server.sampling import Sampler, sampler_of
from fedpeft.server.state import Algorithm
from fedpeft.tuning.tuned import TunedModel, write_buffers, write_delta
from fedpeft.wire.stages import Stage

OnRound = Callable[[Record], None]
Scores = Mapping[str, Callable[[str, str], float]]
_Kept = tuple[list[Record], Mapping[str, Any] | None]
"""The records of a simulation, and what its language model answered."""
Choose = Callable[[Sequence[str], int], Sequence[str]]


@dataclass(frozen=True, repr=False)
class Result:
    """The result of a simulation; a notebook shows its headline figures and the curve over rounds.

    Attributes:
      model: the model with the final delta, in eval mode.
      tuned: the same model with the names of its delta.
      records: one for each round, as in `rounds.jsonl`.
      totals: bytes, seconds and the headline figures over all rounds.
      answers: what a language model answered before and after, as in `answers.json`; None where
        `answers` is not among the settings.
    """

    model: nn.Module
    tuned: TunedModel
    records: tuple[Record, ...]
    totals: Totals
    answers: Mapping[str, Any] | None = None

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
    scores: Scores | None = None,
) -> dict[str, Any]:
    """Run an experiment, as `fedpeft run` does.

    Args:
      experiment: a TOML file, a table, or None for the quickstart.
      settings: overrides by dotted key, such as `{"federation.rounds": 5}`.
      out: the run folder; `runs/<name>-<time>` by default.
      resume: go on with the run in `out`.
      callbacks: called around rounds, beside those that the experiment names; one of them may end
        the run.
      scores: name -> function (answer, reference) -> number, beside those of `answers.scores`.

    Returns:
      the summary; `run_dir` names the folder, which `fedpeft.load` takes.

    Raises:
      ConfigError: listing every problem of the experiment.
      RunFolderError: if `out` cannot be used.
      RoundError: if too few clients replied.

    Example:
      >>> quick = {"federation.rounds": 1, "client.epochs": 1, "engine.workers": 1}
      >>> summary = fedpeft.run({"model": {"name": "preset:tiny-vit"}}, quick, out="example")
      >>> summary["rounds"], summary["stopped"], summary["run_dir"]
      (1, 'rounds', 'example')
    """
    checked = _experiment(experiment, settings)
    given = Given(callbacks=tuple(callbacks), scores=_scores(scores))
    return start.run(checked, home(out) if out else None, resume=resume, given=given)


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
    scores: Scores | None = None,
) -> Result:
    """Train a tuned model on federated data, both of your own.

    Args:
      tuned: from `tune` or `from_peft`; the simulation trains this object.
      data: from `from_torch`, `from_datasets` or `load_data`.
      settings: keys of `[federation]`, `[stability]`, `[client]`, `[wire]`, `[engine]`, `[answers]`
        and `seed`, such as `{"federation.rounds": 20, "client.lr": 0.05}`; defaults are those of
        the file.
      privacy: keys of `[privacy]`, such as `{"mode": "central", "epsilon": 5.0}`; settings that are
        refused in a file are refused here too. The records then hold `epsilon`, and rounds end at
        the budget.
      out: a folder for records, checkpoints and the final delta; a simulation resumes its own
        unfinished folder. A model that `fedpeft.load` could not rebuild is refused, except modules
        from `wrap_module`, which the folder records as such. None keeps nothing.
      on_round: called with the record of each round.
      algorithm: replaces `federation.algorithm`.
      up: stages that replace `wire.up`; those of privacy still come first.
      sampler: replaces `federation.sampling`; an object, or a function (clients, round) -> cohort.
      callbacks: called around rounds; one of them may end the run.
      scores: name -> function (answer, reference) -> number, beside those of `answers.scores`.

    A folder records an object as `package.module:name` with the digest of its source; an unfinished
    folder is resumed only with objects of the same digest.

    Raises:
      ConfigError: if a setting is wrong or is of the model or the data, or the model cannot be
        recorded in a folder.
      PrivacyError: if the privacy settings would not protect.
      RunFolderError: if `out` holds something else.
      RoundError: if too few clients replied.

    Example:
      >>> import torch
      >>> net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
      >>> task = fedpeft.classification_task(lambda net, batch: net(batch["inputs"]))
      >>> loaded = fedpeft.wrap_module(net, task=task, head=["2"])
      >>> tuned = fedpeft.tune(loaded, fedpeft.TuningRequest("bias"))
      >>> rows = [(torch.randn(2), i % 2) for i in range(40)]
      >>> clients = fedpeft.PartitionRequest("iid", clients=4, min_examples=1)
      >>> data = fedpeft.from_torch(rows, rows[:10], clients)
      >>> settings = {"federation.rounds": 2, "federation.clients_per_round": 2}
      >>> result = fedpeft.simulate(tuned, data, settings)
      >>> [record["round"] for record in result.records], result.totals.bytes_up > 0
      ([1, 2], True)
    """
    private = {f"privacy.{key}": value for key, value in (privacy or {}).items()}
    given = Given(
        algorithm,
        None if up is None else tuple(up),
        None if sampler is None else sampler_of(sampler),
        tuple(callbacks),
        _scores(scores),
    )
    resolved = _settings(tuned, data, settings or {}, private, given)
    check_device(resolved.experiment)
    built = assemble(resolved, tuned, data, engine_builder(resolved.experiment))
    try:
        kept = _in_folder(built, home(out), on_round) if out else _rounds(built, on_round)
    finally:
        built.engine.close()
    tuned.model.eval()
    records, answers = kept
    figures = totals(records, tuned.loaded.task.headline)
    return Result(tuned.model, tuned, tuple(records), figures, answers)


def _scores(given: Scores | None) -> dict[str, AnswerScore]:
    return {name: AnswerScore(score) for name, score in (given or {}).items()}


def _experiment(
    source: str | Path | Mapping[str, Any] | None, settings: Mapping[str, Any] | None
) -> Experiment:
    if source is None or isinstance(source, str | Path):
        file = home(source) if source else None
        table: Mapping[str, Any] = read_from(file, read_toml(file), list(settings or {}))
    else:
        table = source
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
    allowed = ("seed", "name", "federation", "stability", "client", "wire", "engine", "answers")
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


def _rounds(built: BuiltRun, on_round: OnRound) -> _Kept:
    """Run all rounds in memory and leave the final delta in the model."""
    state, records = built.start, list[Record]()
    initial = loop.initial_metrics(built)
    for state, _, line in loop.rounds_of(built, built.start, None):  # noqa: B007  # the last is kept
        records.append(line)
        on_round(line)
    ended(built.callbacks, summary_of(built, totals(records), state, initial))
    answers = judge_run(built, state)
    write_delta(built.tuned, state.delta)
    if built.tuned.buffers:
        write_buffers(built.tuned, state.buffers)
    return records, answers


def _in_folder(built: BuiltRun, out: Path, on_round: OnRound) -> _Kept:
    folder = RunFolder(out)
    check_recorded(built.experiment, built.tuned)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        summary = loop.run_experiment(built, folder, lambda done: on_round(done.record))
    apply_delta(built.tuned, folder.delta, str(summary["delta_digest"]))
    return read_records(folder.rounds), read_object(folder.answers)
