"""Run folders, read and grouped for tables and figures.

    run folders ──read──> Run ──same settings but the seed──> Group ──same data and metric──> Panel
                                (a row, a curve)                    (a table, two figures)

Nothing here draws or formats. A corrupt folder is an error; a run that has not finished, or has not
begun, is not.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.core.errors import RunFolderError
from fedpeft.core.items import unpack_items
from fedpeft.core.metrics import Metric, metric_in
from fedpeft.core.text import dotted, median_words
from fedpeft.results.names import describe, distinguishing
from fedpeft.runs.files import read_object
from fedpeft.runs.records import read_records

_FILES = ("experiment.toml", "environment.json", "rounds.jsonl", "summary.json", "checkpoints")
_OF_ONE_MODE = "federation.buffered."
_MODEL = "model.name"
_NO_GUARANTEE = "guarantees nothing"
_ADVICE = "Restore the file, or leave this folder out"
_NOT_COMPARED = ("seed", "name", "sweep", "engine.workers", "engine.clients_per_pass")


@dataclass(frozen=True)
class Partition:
    """The number of examples of each label at each client.

    Attributes:
      clients: names of the clients.
      labels: names of the classes.
      counts: number of examples, [client][label].
    """

    clients: tuple[str, ...]
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
      folder: where it is.
      settings: dotted key -> value, from `experiment.toml`.
      rounds: the records of the rounds, from `rounds.jsonl`.
      summary: the headline figures; None if the run has not finished.
      environment: versions and hardware.
      partition: None if the run wrote none (no labels).
    """

    folder: Path
    settings: Mapping[str, Any]
    rounds: tuple[Mapping[str, Any], ...]
    summary: Mapping[str, Any] | None
    environment: Mapping[str, Any]
    partition: Partition | None = None

    @property
    def method(self) -> str:
        """Name of the tuning method."""
        return str(self.settings.get("tuning.method", "?"))

    @property
    def metric(self) -> Metric:
        """The headline metric of its task."""
        found = [record.get("metrics", {}) for record in self.rounds] + [self.summary or {}]
        return metric_in(found, self.environment.get("metric"))

    @property
    def seed(self) -> int:
        """Seed of the experiment."""
        return int(self.settings.get("seed", 0))

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(self.settings.get(_MODEL, "?"))

    @property
    def last(self) -> float | None:
        """The metric after the last evaluated round; None before the first."""
        curve = self.curve()
        return curve[-1][2] if curve else None

    @property
    def right(self) -> NDArray[np.bool_] | None:
        """Whether the final model got each test example right [N], in the test set's order.

        None without a summary, or where the examples of the task are not right or wrong.

        Raises:
          RunFolderError: if the summary's `items` cannot be read.
        """
        packed = (self.summary or {}).get("items")
        if packed is None:
            return None
        try:
            return unpack_items(packed)
        except (ValueError, AttributeError) as error:
            raise RunFolderError(f"{self.folder}: {error}. {_ADVICE}") from error

    @property
    def failures(self) -> list[tuple[int, str, str]]:
        """Replies that were missing or refused: (round, client, reason)."""
        return [
            (int(record["round"]), str(client), str(why))
            for record in self.rounds
            for client, why in dict(record.get("failures") or {}).items()
        ]

    @property
    def planned_rounds(self) -> int:
        """The number of rounds in the experiment."""
        return int(self.settings.get("federation.rounds", len(self.rounds)))

    def curve(self) -> list[tuple[int, int, float]]:
        """Return the evaluated rounds: (round, bytes so far, both ways and all clients; metric)."""
        points, total, name = [], 0, self.metric.name
        for record in self.rounds:
            total += int(record.get("bytes_up", 0)) + int(record.get("bytes_down", 0))
            value = record.get("metrics", {}).get(name)
            if value is not None:
                points.append((int(record["round"]), total, float(value)))
        return points

    def simulated(self) -> dict[int, float]:
        """Return round -> simulated seconds since the start; {} without a simulated clock."""
        return {
            int(record["round"]): float(record["simulated_time"])
            for record in self.rounds
            if "simulated_time" in record
        }


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed: one row of the table, one curve.

    Attributes:
      label: the method and the settings that distinguish it from the other groups of its panel.
      runs: one run for each seed, ordered by seed.
      absent: seed without a finished run -> the reason.
    """

    label: str
    runs: tuple[Run, ...]
    absent: Mapping[int, str] = field(default_factory=dict)

    @property
    def counted(self) -> tuple[Run, ...]:
        """The runs that count in means: the finished ones; all of them while none has finished."""
        return tuple(run for run in self.runs if run.summary is not None) or self.runs

    @property
    def settings(self) -> Mapping[str, Any]:
        """Dotted key -> value, of the first seed."""
        return self.runs[0].settings

    @property
    def method(self) -> str:
        """Name of the tuning method."""
        return self.runs[0].method

    @property
    def scores(self) -> list[float]:
        """The metric of each counted run after its last evaluated round."""
        return [run.last for run in self.counted if run.last is not None]

    @property
    def is_finished(self) -> bool:
        """Whether any of its runs has finished."""
        return any(run.summary is not None for run in self.runs)

    @property
    def privacy_note(self) -> str:
        """The runs' note on their privacy, such as `simulation: not private`; "" without one."""
        found = [(run.summary or {}).get("privacy") for run in self.runs]
        notes = [str(each["note"]) for each in found if isinstance(each, Mapping)]
        if not notes or self.settings.get("privacy.mode") != "paper":
            return notes[0] if notes else ""
        return notes[0] if _NO_GUARANTEE in notes[0] else f"{notes[0]}; {_NO_GUARANTEE}"


@dataclass(frozen=True)
class Panel:
    """Groups that can be compared in one figure: one data set, one test split, one metric.

    Attributes:
      source: the data set, as in `data.source`.
      evaluated_on: `test` or `validation`.
      metric: the headline metric of the runs.
      groups: in the order in which the runs were given.
      differing: keys of the settings that differ between the groups.
    """

    source: str
    evaluated_on: str
    metric: Metric
    groups: tuple[Group, ...]
    differing: tuple[str, ...] = field(default_factory=tuple)


_OTHERS = {
    "audit.json": "an audit, not a run; its picture is {0}/audit.png, its figures are in audit.json"
    ", and `fedpeft audit` makes such a folder",
    "gap.json": "the measures of `fedpeft gap`, not a run; its picture is {0}/gap.png",
    "fedpeft.json": "an export, not a run; its README.md describes it, `fedpeft.load` reads it",
    "config.json": "a model, not a run",
    "site.toml": "a site's file, not a run; `fedpeft node {0}/site.toml --check` reads it",
}
"""A file -> what else a folder with it is."""


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """List run folders: those given, and those up to two levels below a given folder.

    Raises:
      RunFolderError: if a folder is missing or holds no run.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise RunFolderError(
                f"{folder}: there is no such folder; name a run folder, or a folder of runs"
            )
        inside = [folder] if _is_run(folder) else list(_runs_below(folder, depth=2))
        other = next((name for name in _OTHERS if (folder / name).is_file()), None)
        if not inside and other:
            raise RunFolderError(
                f"{folder}: holds {_OTHERS[other].format(folder)}. Name run folders for a report"
            )
        if not inside:
            raise RunFolderError(
                f"{folder}: holds no run (no folder with experiment.toml, up to two levels down); "
                "name the folder that `fedpeft run` or `fedpeft sweep` printed"
            )
        found += [run for run in inside if run not in found]
    return found


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in _FILES[1:]) or (folder / _FILES[0]).is_file()


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        if _is_run(child):
            yield child
        elif depth > 1:
            yield from _runs_below(child, depth - 1)


def read_run(folder: Path) -> Run:
    """Read one run folder.

    Raises:
      RunFolderError: naming the file that is missing or cannot be read.
    """
    settings = dotted(_read_toml(folder / "experiment.toml"))
    summary = read_object(folder / "summary.json")
    rounds = folder / "rounds.jsonl"
    if summary is not None and not rounds.is_file():
        raise RunFolderError(
            f"{folder}: rounds.jsonl is missing, though summary.json says it finished. {_ADVICE}"
        )
    return Run(
        folder=folder,
        settings=settings,
        rounds=tuple(read_records(rounds, whole=summary is not None)),
        summary=summary,
        environment=read_object(folder / "environment.json") or {},
        partition=_read_partition(folder / "partition.json"),
    )


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise RunFolderError(f"{file.parent}: {file.name} is missing. {_ADVICE}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{file}: not valid TOML: {error}. {_ADVICE}") from error


def _read_partition(file: Path) -> Partition | None:
    found = read_object(file)
    if found is None or not found.get("labels"):
        return None
    try:
        return Partition(
            tuple(map(str, found["clients"])),
            tuple(map(str, found["labels"])),
            tuple(tuple(map(int, row)) for row in found["counts"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{file}: {type(error).__name__}: {error}. {_ADVICE}") from error


def panels_of(runs: Iterable[Run]) -> list[Panel]:
    """Group runs by seed, and groups by what can be compared, in the order given."""
    panels: dict[tuple[str, str, Metric], list[Run]] = {}
    for run in runs:
        source = str(run.settings.get("data.source", "?"))
        split = str(run.settings.get("data.evaluate_on", "test"))
        panels.setdefault((source, split, run.metric), []).append(run)
    return [_panel(key, members) for key, members in panels.items()]


def _panel(key: tuple[str, str, Metric], runs: Sequence[Run]) -> Panel:
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(json.dumps(_compared(run), sort_keys=True, default=str), []).append(run)
    groups = [tuple(sorted(same, key=lambda run: run.seed)) for same in members.values()]
    firsts = [group[0] for group in groups]
    labelled = tuple(Group(_label(group[0], firsts), group) for group in groups)
    return Panel(*key, groups=labelled, differing=tuple(_differing(firsts)))


def _compared(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.settings.items() if key not in _NOT_COMPARED}


def _differing(runs: Sequence[Run]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for key in _compared(run))
    return [key for key in keys if len({str(run.settings.get(key)) for run in runs}) > 1]


def _label(run: Run, others: Sequence[Run]) -> str:
    """Return the method, and the settings that distinguish the run from others of that method."""
    same = [other for other in others if other.method == run.method]
    keys = distinguishing(_differing(same), [_compared(other) for other in same])
    keys = [key for key in keys if key in run.settings or not key.startswith(_OF_ONE_MODE)]
    if 2 * sum(other.model == run.model for other in others) > len(others):
        keys = [key for key in keys if key != _MODEL]  # the usual model needs no mention
    return ", ".join(filter(None, [run.method, describe(keys, run.settings)]))


def describe_partition(partition: Partition) -> str:
    """Return one sentence on how examples and classes are spread over the clients."""
    sizes = sorted(sum(row) for row in partition.counts)
    held = [sum(count > 0 for count in row) for row in partition.counts]
    mean = sum(held) / len(held)
    return (
        f"{len(sizes)} clients hold {sizes[0]:,} to {sizes[-1]:,} examples "
        f"(median {median_words(sizes)}) and {mean:.1f} of {len(partition.labels)} classes on "
        "average"
    )
