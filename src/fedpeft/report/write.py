"""Reports: run folders in, one self-contained page and its figures out.

    report.html            the page: claims, tables, figures, settings, environment
    report-bytes.svg/png   metric against cumulative bytes (one pair a panel)
    report-rounds.svg/png  metric against rounds
    report-time.svg/png    metric against simulated time, where a run had that clock
    report-rows.svg/png    rows with their seeds and intervals
    report-budgets.svg/png metric against the number of examples, where that varies
    report-table.svg/png/csv   the comparison
    report-partition.svg/png   clients x classes

Reference: the figure of accuracy against communication is that of Sun et al., Exploring
Parameter-Efficient Fine-Tuning to Enable Foundation Models in Federated Learning, IEEE BigData
2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedpeft.core.errors import ConfigError
from fedpeft.pictures.style import Picture
from fedpeft.report.draw import Asked, draw_panel
from fedpeft.report.figures import draw_comparison
from fedpeft.report.page import DrawnGrid, DrawnPartition, Page, page
from fedpeft.report.partition import draw_partition
from fedpeft.results.claims import Verdict, check_claims
from fedpeft.results.grid import Grid, read_grids
from fedpeft.results.runs import Panel, Partition, Run, describe_partition
from fedpeft.results.table import as_csv

__all__ = ["Wanted", "write_report"]

_NARROW = 3.6  # inches: the width of a phone
_DRAWN_PARTITIONS = 4
_KIND = (
    *("data.source", "data.budget", "data.partition.scheme"),
    *("data.partition.clients", "data.partition.alpha"),
)


@dataclass(frozen=True)
class Wanted:
    """What a report is asked to show.

    Attributes:
      target: draw a line at this value of the metric, and say who reached it at what cost; None
        chooses what all of bias, adapter and prompt reach, where they are there.
      title: of the page; "" takes the names of the experiments.
      diagnostics: show what `diagnostics.jsonl` says of private runs, which is not private.
    """

    target: float | None = None
    title: str = ""
    diagnostics: bool = False


def write_report(
    runs: Sequence[Path],
    out: Path | None,
    *,
    target: float | None = None,
    wanted: Wanted | None = None,
) -> Path:
    """Write a report about runs.

    Args:
      runs: run folders, or folders that hold run folders up to two levels down; each folder of
        runs is a grid of its own.
      out: the page; None is `report.html` in the first folder. Figures go beside it, under its
        name. Files of an earlier report are replaced.
      target: as in `Wanted`, which it is short for.
      wanted: what to show; None is all defaults.

    Returns:
      The page.

    Raises:
      RunFolderError: if a folder is missing, holds no run, or is corrupt.
      ConfigError: if `out` is no place for a page.
    """
    if not runs:
        raise ConfigError("report: no folder was named; name run folders, or a folder of runs")
    asked = wanted or Wanted(target)
    grids = read_grids(runs)
    place = _place(out or runs[0] / "report.html")
    panels = [panel for grid in grids for panel in grid.panels]
    read = [run for grid in grids for run in grid.runs]
    told = Page(
        title=asked.title or _title(grids),
        grids=tuple(_draw_grids(grids, place, asked)),
        partitions=tuple(_draw_partitions(read, place)),
        verdicts=_verdicts(grids),
        diagnostics=asked.diagnostics,
    )
    (place.parent / f"{place.stem}-table.csv").write_text(as_csv(panels), "utf-8")
    place.write_text(page(told), "utf-8")
    return place


def _place(out: Path) -> Path:
    if out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
        kind = "a folder" if out.is_dir() else f"a name that ends in {out.suffix or 'nothing'!r}"
        raise ConfigError(f"--out {out}: found {kind}; name a file that ends in .html")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _title(grids: Sequence[Grid], most: int = 4) -> str:
    names = [grid.name for grid in grids]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _verdicts(grids: Sequence[Grid]) -> tuple[Verdict, ...]:
    """Check the paper's claims on all grids together; () where there is but one row."""
    if sum(len(grid.groups) for grid in grids) < 2:
        return ()
    return tuple(check_claims([run for grid in grids for run in grid.runs]))


def _draw_grids(grids: Sequence[Grid], place: Path, wanted: Wanted) -> list[DrawnGrid]:
    drawn, index = [], 0
    for grid in grids:
        panels = []
        for panel in grid.panels:
            panels.append(draw_panel(panel, Asked(index, wanted.target)))
            _write_all(panel, panels[-1].pictures, place, index)
            index += 1
        drawn.append(DrawnGrid(grid, tuple(each.drawn for each in panels)))
    return drawn


def _write_all(panel: Panel, pictures: dict[str, Picture], place: Path, index: int) -> None:
    suffix = f"-{index + 1}" if index else ""
    for what, picture in pictures.items():
        _write(picture, place, f"{what}{suffix}")
    _write(draw_comparison(panel, name=f"table{index}"), place, f"table{suffix}")


def _write(picture: Picture, place: Path, what: str) -> None:
    (place.parent / f"{place.stem}-{what}.svg").write_text(picture.svg, "utf-8")
    (place.parent / f"{place.stem}-{what}.png").write_bytes(picture.png)


def _draw_partitions(runs: Sequence[Run], place: Path) -> list[DrawnPartition]:
    """Draw one partition of each kind, up to a few, and describe the others."""
    shared: dict[Partition, list[Run]] = {}
    for run in runs:
        if run.partition is not None and any(map(any, run.partition.counts)):
            shared.setdefault(run.partition, []).append(run)
    drawn: list[DrawnPartition] = []
    kinds: set[tuple[str, ...]] = set()
    for index, (partition, users) in enumerate(shared.items()):
        kind = tuple(str(users[0].settings.get(key)) for key in _KIND)
        pictures: tuple[Picture, ...] = ()
        if kind not in kinds and len(kinds) < _DRAWN_PARTITIONS:
            suffix = f"-{len(kinds) + 1}" if kinds else ""
            kinds.add(kind)
            wide = draw_partition(partition, name=f"partition{index}")
            narrow = draw_partition(partition, name=f"partition{index}n", width=_NARROW)
            _write(wide, place, f"partition{suffix}")
            pictures = (wide, narrow)
        names = dict.fromkeys(f"{run.method} (seed {run.settings.get('seed')})" for run in users)
        drawn.append(DrawnPartition(pictures, describe_partition(partition), tuple(names)))
    return drawn
