"""The details of a report's row: the command that repeats it, its configuration, its diagnostics.

The command names the run folder's own `experiment.toml`, which holds every default resolved; other
seeds use that file with `--set`. With the same versions it gives the same delta digest. A run from
a line of a results file has no folder: its configuration, as shown, is to be saved under that name.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedpeft.core.errors import RunFolderError
from fedpeft.results.runs import Group, Run
from fedpeft.results.table import Spread

_UNSAVED = Path("experiment.toml")
_HARMLESS = ("name", "sweep", "engine.workers", "engine.clients_per_pass")
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
