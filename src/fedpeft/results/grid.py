"""Grids: the folders that a report was asked for, each with its rows and what is missing in them.

runs/small            ->  one grid for table1, one for table2 …
runs/small/table1     ->  one grid: its run folders, and `sweep.json` for what failed
runs/a runs/b         ->  one grid of single runs
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.core.errors import RunFolderError
from fedpeft.results.runs import (
    Absent,
    Group,
    Panel,
    Run,
    find_runs,
    panels_of,
    read_run,
)

__all__ = ["Grid", "Lost", "read_grids"]

_SWEEP = "sweep.json"


@dataclass(frozen=True)
class Lost:
    """A row of a sweep of which no seed has a run folder."""

    label: str
    absent: tuple[Absent, ...]


@dataclass(frozen=True)
class Grid:
    """What one folder holds.

    Attributes:
      name: of the experiment, or of the folder.
      panels: rows that can be compared; no panel where nothing has begun.
      lost: rows without any run.
    """

    name: str
    panels: tuple[Panel, ...]
    lost: tuple[Lost, ...] = ()

    @property
    def groups(self) -> tuple[Group, ...]:
        """All rows."""
        return tuple(group for panel in self.panels for group in panel.groups)

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs."""
        return tuple(run for group in self.groups for run in group.runs)


def read_grids(folders: Sequence[Path]) -> list[Grid]:
    """Read every folder as a grid; run folders that were named themselves form one together.

    Raises:
      RunFolderError: if a folder is missing, holds no run, or is corrupt.
    """
    single: list[Path] = []
    parts: list[tuple[Path | None, list[Path]]] = []
    for folder in dict.fromkeys(folders):
        if (folder / _SWEEP).is_file() and not _has_runs(folder):
            parts.append((folder, []))
            continue
        runs = find_runs([folder])
        if runs == [folder]:
            single += runs
        else:
            parts += _split(folder, runs)
    if single:
        parts.insert(0, (None, single))
    grids = [_grid(folder, runs) for folder, runs in parts]
    names = [grid.name for grid in grids]
    return [
        dataclasses.replace(grid, name=folder.resolve().name)
        if folder and names.count(grid.name) > 1
        else grid
        for grid, (folder, _) in zip(grids, parts, strict=True)
    ]


def _has_runs(folder: Path) -> bool:
    try:
        return bool(find_runs([folder]))
    except RunFolderError:
        return False


def _split(folder: Path, runs: Sequence[Path]) -> Iterator[tuple[Path, list[Path]]]:
    """Yield one grid for the runs right inside a folder, and one for each folder of runs in it."""
    inside: dict[Path, list[Path]] = {}
    for run in runs:
        inside.setdefault(run.parent, []).append(run)
    yield from inside.items()


def _grid(folder: Path | None, folders: Sequence[Path]) -> Grid:
    runs = [read_run(each) for each in folders]
    rows = _rows(folder) if folder else {}
    order = {name: place for place, name in enumerate(rows)}
    runs = sorted(runs, key=lambda run: order.get(run.folder.name, len(order)))
    seeds = sorted({run.seed for run in runs})
    panels = tuple(_with_absent(panel, rows, seeds) for panel in panels_of(runs))
    known = {run.folder.name for run in runs}
    keys = {_key(row) for name, row in rows.items() if name in known}
    return Grid(_name(folder, runs), panels, tuple(_lost(rows, keys)))


def _name(folder: Path | None, runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(str(run.settings.get("name", run.folder.name)) for run in runs))
    if len(names) == 1:
        return names[0]
    return folder.resolve().name if folder else ", ".join(names[:3])


def _rows(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """Read what a sweep wrote about its rows; {} where the folder holds no sweep."""
    file = folder / _SWEEP
    if not file.is_file():
        return {}
    try:
        return {str(row["row"]): row for row in json.loads(file.read_text("utf-8"))}
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{file}: {type(error).__name__}: {error}; found no list of a sweep's rows. Run the "
            "sweep again (finished runs are skipped), or name its run folders one by one"
        ) from error


def _key(row: Mapping[str, Any]) -> str:
    told = {key: value for key, value in row.get("overrides", {}).items() if key != "seed"}
    return json.dumps([row.get("method"), told], sort_keys=True, default=str)


def _with_absent(panel: Panel, rows: Mapping[str, Mapping[str, Any]], seeds: list[int]) -> Panel:
    groups = tuple(
        dataclasses.replace(group, absent=tuple(_absent(group, rows, seeds)))
        for group in panel.groups
    )
    return dataclasses.replace(panel, groups=groups)


def _absent(
    group: Group, rows: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]
) -> Iterator[Absent]:
    """Yield the seeds of a row that have no finished run; what the sweep says of them counts."""
    there = {run.seed: run for run in group.runs}
    keys = {_key(rows[run.folder.name]) for run in group.runs if run.folder.name in rows}
    told = {int(row["seed"]): row for row in rows.values() if _key(row) in keys}
    for seed in sorted({*seeds, *told, *there}):
        run, row = there.get(seed), told.get(seed)
        if run is not None and run.summary is not None:
            continue
        done = f"{len(run.rounds)} of {run.planned_rounds} rounds" if run is not None else "no run"
        if row is not None and "error" in row:
            yield Absent(seed, f"failed after {done}: {_first_line(row['error'])}")
        elif run is not None:
            yield Absent(seed, f"unfinished: {done}")
        else:
            yield Absent(seed, "no run")


def _first_line(text: object) -> str:
    """The line that says what happened: the last one of a traceback, else the first."""
    lines = [line for line in str(text).splitlines() if line.strip()] or [""]
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


def _lost(rows: Mapping[str, Mapping[str, Any]], known: set[str]) -> Iterator[Lost]:
    """Yield the rows of a sweep of which nothing is on disk."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows.values():
        if _key(row) not in known:
            found.setdefault(_key(row), []).append(row)
    for members in found.values():
        told = [f"{k.rpartition('.')[2]} {v}" for k, v in members[0]["overrides"].items()]
        label = ", ".join(text for text in told if not text.startswith("seed ")) or "run"
        yield Lost(label, tuple(_told(row) for row in members))


def _told(row: Mapping[str, Any]) -> Absent:
    why = f"failed: {_first_line(row['error'])}" if "error" in row else "not begun"
    return Absent(int(row.get("seed", 0)), why)
