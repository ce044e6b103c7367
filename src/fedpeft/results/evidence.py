"""Measured evidence on tuning methods: results lines, condensed to what advice needs.

    results lines ──condense──> cells: one data set (bed), one model, one setting
                                  └ entries: one method each, accuracy by round and seed

Accuracy is kept for a few rounds (1, 2, 3, 5, 8, 13 ... and the last) and interpolated between
them. Bytes grow by the same number in each round, so that the curve against bytes follows from the
curve against rounds. Test accuracy of finished runs counts, of pretrained models only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path, PurePath
from typing import Any, TypeAlias

import numpy as np

from fedpeft.core.errors import ConfigError
from fedpeft.core.strict_json import to_json
from fedpeft.results.runs import Run
from fedpeft.results.settings import Setting, setting_of
from fedpeft.runs.records import messages_of
from fedpeft.tuning.methods import resolve_options

_KEPT = (1, 2, 3, 5, 8, 13, 20, 32, 50, 80, 130, 200)
_NOT_OF_A_CELL = ("tuning.", "engine.", "run.", "client.prefix_", "federation.eval_", "objects.")
_SEARCHED = ("client.lr", "privacy.clip_norm")
_NOR = ("name", "seed", "sweep", *_SEARCHED)
_FROM_EPSILON = ("privacy.noise_multiplier", "privacy.examples_per_client")
_UNTRAINED = "preset:"
_OPTION = "tuning.options."
_DIGITS = 4


@dataclass(frozen=True)
class Facts:
    """What a run knows from its model and its data.

    Attributes:
      kind: name of the task.
      clients: number of clients; None if it is not known.
      examples: number of training examples of all clients; None if it is not known.
    """

    kind: str
    clients: int | None = None
    examples: int | None = None


FactsOf: TypeAlias = Callable[[Run], Facts]


@dataclass(frozen=True)
class Entry:
    """One tuning method, measured in one cell.

    Attributes:
      label: the method, with the options that tell it from others of the cell.
      method: name of the tuning method.
      options: its options that are not the defaults.
      lr: local learning rate.
      trained: number of trained parameters.
      bytes_up: encoded bytes that one client sends in one round.
      bytes_down: encoded bytes that one client receives in one round.
      seeds: the seeds, ascending.
      rounds: the rounds that were kept, ascending.
      scores: accuracy, 0 to 1, [round][seed].
    """

    label: str
    method: str
    options: Mapping[str, Any]
    lr: float
    trained: int
    bytes_up: float
    bytes_down: float
    seeds: tuple[int, ...]
    rounds: tuple[int, ...]
    scores: tuple[tuple[float, ...], ...]

    def at(self, rounds: float) -> dict[int, float]:
        """Return seed -> accuracy after some rounds: after the last, that of the last.

        Before the first evaluated round nothing is known: {}.
        """
        if rounds < self.rounds[0]:
            return {}
        columns = zip(*self.scores, strict=True)
        found = (float(np.interp(rounds, self.rounds, column)) for column in columns)
        return dict(zip(self.seeds, found, strict=True))


@dataclass(frozen=True)
class Cell:
    """The methods that were measured on one bed in one setting.

    Attributes:
      bed: short name of the data set.
      model: name of the model.
      setting: the setting.
      entries: one for each method.
    """

    bed: str
    model: str
    setting: Setting
    entries: tuple[Entry, ...]

    def entry(self, label: str) -> Entry | None:
        """Return the entry of a label; None if it was not measured here."""
        return next((each for each in self.entries if each.label == label), None)


@dataclass(frozen=True)
class Evidence:
    """All cells.

    Attributes:
      cells: at least two methods each.
      runs: number of runs in them.
    """

    cells: tuple[Cell, ...]
    runs: int = 0

    @property
    def beds(self) -> tuple[str, ...]:
        """Names of the beds, in order."""
        return tuple(dict.fromkeys(cell.bed for cell in self.cells))


def condense(runs: Sequence[Run], facts_of: FactsOf) -> Evidence:
    """Condense runs; cells with a single method are left out.

    Args:
      runs: as for `group_runs`.
      facts_of: called for what no run with the same data and model tells: private runs keep the
        number of their examples to themselves.
    """
    told = _told(runs)
    cells = [
        _cell(group, told.get(_data_of(group[0])) or facts_of(group[0]))
        for group in group_runs(runs)
    ]
    return Evidence(tuple(cells), sum(len(entry.seeds) for c in cells for entry in c.entries))


def _told(runs: Iterable[Run]) -> dict[str, Facts]:
    """Return the facts that the runs' environments tell, by data and model."""
    found = {}
    for run in runs:
        counts = run.environment.get("data") or {}
        if "task" in run.environment and "examples" in counts:
            clients, examples = int(counts["clients"]), int(counts["examples"])
            found[_data_of(run)] = Facts(str(run.environment["task"]), clients, examples)
    return found


def _data_of(run: Run) -> str:
    """Return what decides task, clients and number of examples, as text."""
    keys = ("model.name", "model.task", "data.source", "data.subset", "data.budget")
    partition = ("data.partition.scheme", "data.partition.clients", "data.partition.options")
    return _key([run.settings.get(key) for key in (*keys, *partition)])


def group_runs(runs: Iterable[Run]) -> list[list[Run]]:
    """Group the runs that count as evidence by cell; cells with a single method are left out.

    Of two runs of one method, setting and seed the one that was evaluated more often counts, of
    equals the later one.
    """
    groups: dict[str, dict[str, Run]] = {}
    for run in filter(_counts, runs):
        members = groups.setdefault(_key(_of_cell(run.settings)), {})
        known = members.setdefault(key := _key([_variant(run), run.seed]), run)
        if len(run.curve()) >= len(known.curve()):
            members[key] = run
    found = [list(members.values()) for members in groups.values()]
    return [members for members in found if len({_key(_variant(run)) for run in members}) > 1]


def _counts(run: Run) -> bool:
    return (
        run.summary is not None
        and run.metric.name == "accuracy"
        and run.settings.get("data.evaluate_on", "test") == "test"
        and not run.model.startswith(_UNTRAINED)
        and bool(run.curve())
    )


def _of_cell(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes a cell: everything but the method, the seed, and how runs were computed."""
    others = (*_NOR, *(_FROM_EPSILON if "privacy.epsilon" in settings else ()))
    return {
        key: value
        for key, value in settings.items()
        if key not in others and not key.startswith(_NOT_OF_A_CELL)
    }


def _variant(run: Run) -> dict[str, Any]:
    """Return what makes an entry: the method with its options, and what was searched for it."""
    return {
        key: value
        for key, value in run.settings.items()
        if key.startswith("tuning.") or key in _SEARCHED
    }


def _key(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _cell(runs: Sequence[Run], facts: Facts) -> Cell:
    variants: dict[str, list[Run]] = {}
    for run in runs:
        variants.setdefault(_key(_variant(run)), []).append(run)
    entries = [_entry(sorted(same, key=lambda run: run.seed)) for same in variants.values()]
    first, summaries = runs[0], [run.summary or {} for run in runs]
    sizes = [int(each["total_parameters"]) for each in summaries if "total_parameters" in each]
    spent = [each["epsilon"] for each in summaries if each.get("epsilon") is not None]
    setting = setting_of(
        first.settings,
        kind=facts.kind,
        parameters=min(sizes, default=0),
        clients=facts.clients,
        examples=facts.examples,
        epsilon=float(spent[0]) if spent else None,
    )
    bed = PurePath(_without_digest(first.settings.get("data.source", "?"))).stem
    model = PurePath(_without_digest(first.model)).name
    return Cell(bed, model, setting, tuple(_labelled(entries)))


def _without_digest(name: object) -> str:
    """Return the name of local data or of a local model: `questions.csv@1f0a22c4` loses its end."""
    return str(name).partition("@")[0]


def _entry(runs: Sequence[Run]) -> Entry:
    curves = [{at: value for at, _, value in run.curve()} for run in runs]
    common = sorted(set.intersection(*map(set, curves)))
    kept = [at for at in common if at in _KEPT or at == common[-1]]
    method, settings = runs[0].method, runs[0].settings
    given = {
        key.removeprefix(_OPTION): value
        for key, value in settings.items()
        if key.startswith(_OPTION)
    }
    defaults = resolve_options(method, {})
    return Entry(
        label=method,
        method=method,
        options={k: v for k, v in given.items() if defaults.get(k) != v},
        lr=float(settings.get("client.lr", 0.0)),
        trained=int((runs[0].summary or {}).get("trainable_parameters", 0)),
        bytes_up=_per_message(runs, "bytes_up"),
        bytes_down=_per_message(runs, "bytes_down"),
        seeds=tuple(run.seed for run in runs),
        rounds=tuple(kept),
        scores=tuple(tuple(round(curve[at], _DIGITS) for curve in curves) for at in kept),
    )


def _per_message(runs: Sequence[Run], key: str) -> float:
    records = [record for run in runs for record in run.rounds]
    messages = sum(messages_of(record)[key == "bytes_up"] for record in records)
    return round(sum(int(record.get(key, 0)) for record in records) / max(1, messages), 1)


def _labelled(entries: Sequence[Entry]) -> list[Entry]:
    """Label entries by their method, and where a method has several, by what sets them apart."""
    methods = [entry.method for entry in entries]
    named = [
        entry if methods.count(entry.method) == 1 else replace(entry, label=_label(entry))
        for entry in entries
    ]
    labels = [entry.label for entry in named]
    return [
        entry
        if labels.count(entry.label) == 1
        else replace(entry, label=f"{entry.label}, learning rate {entry.lr:g}")
        for entry in named
    ]


def _label(entry: Entry) -> str:
    return ", ".join([entry.method, *(f"{key} {value}" for key, value in entry.options.items())])


def write_evidence(evidence: Evidence, file: Path) -> None:
    """Write evidence as JSON, one line for each cell."""
    cells = ",\n".join(to_json(_as_json(cell)) for cell in evidence.cells)
    file.write_text(f'{{"runs": {evidence.runs}, "cells": [\n{cells}\n]}}\n', "utf-8")


def read_evidence(file: Path | None = None) -> Evidence:
    """Read evidence.

    Args:
      file: None: the one that comes with the package.

    Raises:
      ConfigError: if the file is missing or holds no evidence.
    """
    place = resources.files(__package__ or "").joinpath("evidence.json") if file is None else file
    try:
        found = json.loads(place.read_text("utf-8"))
        return Evidence(tuple(map(_from_json, found["cells"])), int(found["runs"]))
    except OSError as error:
        raise ConfigError(
            f"{place}: cannot be read: {error.strerror}. Name a file that "
            "`scripts/write_evidence.py` wrote"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{place}: holds no evidence ({type(error).__name__}: {error}). Name a file that "
            "`scripts/write_evidence.py` wrote"
        ) from error


def _as_json(cell: Cell) -> dict[str, Any]:
    return {
        "bed": cell.bed,
        "model": cell.model,
        "setting": cell.setting.as_json(),
        "entries": [dict(vars(entry)) for entry in cell.entries],
    }


def _from_json(found: Mapping[str, Any]) -> Cell:
    entries = tuple(
        Entry(
            **{
                **each,
                "seeds": tuple(each["seeds"]),
                "rounds": tuple(each["rounds"]),
                "scores": tuple(map(tuple, each["scores"])),
            }
        )
        for each in found["entries"]
    )
    return Cell(found["bed"], found["model"], Setting(**found["setting"]), entries)
