"""The details of a report's row: the command that repeats it, its configuration, its diagnostics.

The command names the run folder's own `experiment.toml`, which holds every default resolved; other
seeds use that file with `--set`. With the same versions it gives the same delta digest. A run from
a line of a results file has no folder: its configuration, as shown, is to be saved under that name.
"""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedpeft.core.errors import RunFolderError
from fedpeft.core.metrics import Metric
from fedpeft.results.runs import Group, Run
from fedpeft.results.table import Spread

_UNSAVED = Path("experiment.toml")
_HARMLESS = ("name", "sweep", "engine.workers", "engine.clients_per_pass")
_OF_CLIENTS = {
    "client_metrics": "on the clients' own test rows",
    "client_metrics_by_class": "estimated from the clients' classes",
}
_DIAGNOSED = {"clip_fraction": "clip fraction", "noise_to_signal": "noise over signal"}


def commands(group: Group) -> list[str]:
    """Return one shell command for each seed."""
    return [shlex.join(_command(group.runs[0], run)) for run in group.runs]


def _command(first: Run, run: Run) -> list[str]:
    """Return a command that repeats a run, from the first seed's file if `--set` can express it."""
    changed = {
        key: value
        for key, value in run.settings.items()
        if key not in _HARMLESS and first.settings.get(key) != value
    }
    gone = set(first.settings) - set(run.settings) - set(_HARMLESS)
    if gone or not all(isinstance(v, bool | int | float | str) for v in changed.values()):
        return ["fedpeft", "run", str(_file_of(run))]
    sets = [part for key, v in changed.items() for part in ("--set", f"{key}={json.dumps(v)}")]
    return ["fedpeft", "run", str(_file_of(first)), *sets]


def configuration(run: Run) -> str:
    """Return the text of a run's `experiment.toml`."""
    if (file := _file_of(run)) != _UNSAVED:
        return file.read_text("utf-8")
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in run.settings.items())


def _file_of(run: Run) -> Path:
    own = run.folder / _UNSAVED
    return own if run.folder.is_dir() else _UNSAVED


def diagnosed(group: Group) -> Iterator[tuple[int, str, str]]:
    """Yield the measurements of the local engine before the noise, which are not private.

    Yields:
      (seed, means over the rounds as text, the file's own note) of each run that has the file.

    Raises:
      RunFolderError: if a file is corrupt, or its note does not contain "not private".
    """
    for run in group.runs:
        file = run.folder / "diagnostics.jsonl"
        if file.is_file():
            note, records = _diagnostics(file)
            yield run.seed, ", ".join(_means(records)), note


def of_clients(group: Group) -> Iterator[tuple[int, str]]:
    """Yield the spread of the headline metric over clients, after the last round that has it.

    Yields:
      (seed, the number of clients, lowest, median and highest as text) of each run that has it.
    """
    for run in group.runs:
        for record in reversed(run.rounds):
            name = next((name for name in _OF_CLIENTS if record.get(name)), None)
            if name is not None:
                text = _spread_of_clients(record[name], run.metric)
                yield run.seed, f"round {record['round']}, {_OF_CLIENTS[name]}: {text}"
                break


def _spread_of_clients(figures: Mapping[str, float | None], metric: Metric) -> str:
    known = {client: value for client, value in figures.items() if value is not None}
    without = len(figures) - len(known)
    left = f", {without} without a figure" if without else ""
    if not known:
        return f"{len(figures)} clients, none with a figure"
    low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    shown = {client: f"{metric.text(known[client])}{metric.unit}" for client in (low, high)}
    middle = f"{metric.text(statistics.median(known.values()))}{metric.unit}"
    return (
        f"{len(figures)} clients from {shown[low]} ({low}) to {shown[high]} ({high}), median "
        f"{middle}{left}"
    )


def _diagnostics(file: Path) -> tuple[str, list[Mapping[str, Any]]]:
    try:
        head, *records = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        note = str(head["note"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{file}: {type(error).__name__}: {error}; leave out --diagnostics, or restore the file"
        ) from error
    if "not private" not in note:
        raise RunFolderError(
            f"{file}: its first line does not say that it is not private; leave out --diagnostics"
        )
    return note, records


def _means(records: list[Mapping[str, Any]]) -> Iterator[str]:
    for key, words in _DIAGNOSED.items():
        spread = Spread.of([float(r[key]) for r in records if r.get(key) is not None])
        yield f"{words} {spread.mean:.3g}" if spread else f"{words} not measured"
