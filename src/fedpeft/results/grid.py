"""Grids: the folders that a report is about, each with its rows and the runs that are missing.

runs/small            ->  one grid for table1, one for table2 …
runs/small/table1     ->  one grid: its run folders, and `sweep.json` for the failed runs
runs/a runs/b         ->  one grid of single runs
results/table1.jsonl  ->  one grid of a results file
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.core.errors import RunFolderError
from fedpeft.results.lines import read_lines
from fedpeft.results.runs import Group, Panel, Run, find_runs, panels_of, read_run

_SWEEP = "sweep.json"


_SweepRow = Mapping[str, Any]
"""One row of `sweep.json`."""


@dataclass(frozen=True)
class MissingRow:
    """A row of a sweep without any run folder: its label, and seed -> reason."""

    label: str
    absent: Mapping[int, str]


@dataclass(frozen=True)
class Grid:
    """The runs of one folder.

    Attributes:
      name: name of the experiment, or of the folder.
      panels: rows that can be compared; () if no run has begun.
      missing: rows without any run.
    """

    name: str
    panels: tuple[Panel, ...]
    missing: tuple[MissingRow, ...] = ()

    @property
    def groups(self) -> tuple[Group, ...]:
        """All rows."""
        return tuple(group for panel in self.panels for group in panel.groups)

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs."""
        return tuple(run for group in self.groups for run in group.runs)


def read_grids(folders: Sequence[Path]) -> list[Grid]:
    """Read each folder or results file as a grid; run folders named themselves form one together.

    Raises:
      RunFolderError: if a folder is missing, holds no run, or is corrupt.
    """
    files = [place for place in dict.fromkeys(folders) if place.is_file()]
    parts: dict[Path | None, list[Path]] = {None: []}
    for folder in dict.fromkeys(place for place in folders if place not in files):
        runs = _runs_in(folder)
        if runs == [folder]:
            parts[None] += runs
            continue
        parts |= {parent: [] for parent in ([run.parent for run in runs] or [folder])}
        for run in runs:
            parts[run.parent].append(run)
    if not parts[None]:
        del parts[None]
    grids: dict[Path | None, Grid] = {file: _grid_of_lines(file) for file in files}
    grids |= {folder: _grid(folder, runs) for folder, runs in parts.items()}
    names = [grid.name for grid in grids.values()]
    return [
        dataclasses.replace(grid, name=folder.resolve().name)
        if folder and names.count(grid.name) > 1
        else grid
        for folder, grid in grids.items()
    ]


def _grid_of_lines(file: Path) -> Grid:
    return Grid(file.stem, tuple(panels_of(read_lines(file).values())))


def _runs_in(folder: Path) -> list[Path]:
    """List the run folders in a folder; [] for a sweep of which no run has begun."""
    try:
        return find_runs([folder])
    except RunFolderError:
        if (folder / _SWEEP).is_file():
            return []
        raise


def _grid(folder: Path | None, folders: Sequence[Path]) -> Grid:
    runs = [read_run(each) for each in folders]
    rows = _rows(folder) if folder else {}
    order = {name: place for place, name in enumerate(rows)}
    runs = sorted(runs, key=lambda run: order.get(run.folder.name, len(order)))
    seeds = sorted({run.seed for run in runs})
    panels = tuple(_with_absent(panel, rows, seeds) for panel in panels_of(runs))
    known = {run.folder.name for run in runs}
    keys = {_key(row) for name, row in rows.items() if name in known}
    return Grid(_name(folder, runs), panels, tuple(_missing_rows(rows, keys)))


def _name(folder: Path | None, runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(str(run.settings.get("name", run.folder.name)) for run in runs))
    if len(names) == 1:
        return names[0]
    return folder.resolve().name if folder else ", ".join(names[:3])


def _rows(folder: Path) -> Mapping[str, _SweepRow]:
    """Read a sweep's table of its rows, by the name of their folder; {} where there is none."""
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


def _key(row: _SweepRow) -> str:
    settings = {key: value for key, value in row.get("overrides", {}).items() if key != "seed"}
    return json.dumps([row.get("method"), settings], sort_keys=True, default=str)


def _with_absent(panel: Panel, rows: Mapping[str, _SweepRow], seeds: list[int]) -> Panel:
    groups = tuple(
        dataclasses.replace(group, absent=dict(_absent(group, rows, seeds)))
        for group in panel.groups
    )
    return dataclasses.replace(panel, groups=groups)


def _absent(
    group: Group, rows: Mapping[str, _SweepRow], seeds: Sequence[int]
) -> Iterator[tuple[int, str]]:
    """Yield the seeds of a row without a finished run, with the error that the sweep recorded."""
    runs = {run.seed: run for run in group.runs}
    keys = {_key(rows[run.folder.name]) for run in group.runs if run.folder.name in rows}
    planned = {int(row["seed"]): row for row in rows.values() if _key(row) in keys}
    for seed in sorted({*seeds, *planned, *runs}):
        run, row = runs.get(seed), planned.get(seed)
        if run is not None and run.summary is not None:
            continue
        done = f"{len(run.rounds)} of {run.planned_rounds} rounds" if run is not None else "no run"
        if row is not None and "error" in row:
            yield seed, f"failed after {done}: {_first_line(row['error'])}"
        elif run is not None:
            yield seed, f"unfinished: {done}"
        else:
            yield seed, "no run"


def _first_line(text: object) -> str:
    """Return the line that names the error: the last one of a traceback, else the first."""
    lines = [line for line in str(text).splitlines() if line.strip()] or [""]
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


def _missing_rows(rows: Mapping[str, _SweepRow], known: set[str]) -> Iterator[MissingRow]:
    """Yield the rows of a sweep without any run folder."""
    found: dict[str, list[_SweepRow]] = {}
    for row in rows.values():
        if _key(row) not in known:
            found.setdefault(_key(row), []).append(row)
    for members in found.values():
        texts = [f"{k.rpartition('.')[2]} {v}" for k, v in members[0]["overrides"].items()]
        label = ", ".join(text for text in texts if not text.startswith("seed ")) or "run"
        absent = {
            int(row.get("seed", 0)): (
                f"failed: {_first_line(row['error'])}" if "error" in row else "not begun"
            )
            for row in members
        }
        yield MissingRow(label, absent)
