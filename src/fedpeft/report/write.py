"""Reports: one self-contained page, and its figures, from run folders.

    report.html            the page: claims, tables, figures, settings, environment
    report-bytes.svg/png   metric against cumulative bytes (one pair for each panel)
    report-rounds.svg/png  metric against rounds
    report-time.svg/png    metric against simulated time, where a run had that clock
    report-rows.svg/png    rows with their seeds and intervals
    report-budgets.svg/png metric against the number of examples, where that varies
    report-table.svg/png/csv   the comparison
    report-partition.svg/png   clients x classes

Reference: the figure of accuracy against communication follows Sun et al., Exploring
Parameter-Efficient Fine-Tuning to Enable Foundation Models in Federated Learning, IEEE BigData
2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedpeft.core.errors import ConfigError
from fedpeft.core.storage import about
from fedpeft.pictures.style import Picture, write_picture
from fedpeft.report.draw import draw_panel
from fedpeft.report.forest import draw_forest, forest_of
from fedpeft.report.page import DrawnGrid, DrawnPanel, Figure, Page, html_of
from fedpeft.report.partition import draw_partition
from fedpeft.report.sentences import listed
from fedpeft.results.claims import Verdict, check_claims
from fedpeft.results.grid import Grid, read_grids
from fedpeft.results.runs import Partition, Run, describe_partition
from fedpeft.results.table import as_csv

_PAGE = "report.html"
_TABLE = "table.csv"
_MARK = b'<meta name="generator" content="fedpeft report">'
"""Stands at the top of every page: only pages with it are replaced."""
_NARROW = 3.6  # inches: the width of a phone
_WIDTH_OF_TABLE = 9.2  # inches
_DRAWN_PARTITIONS = 4
_KIND = (
    *("data.source", "data.budget", "data.partition.scheme"),
    *("data.partition.clients", "data.partition.alpha"),
)


@dataclass(frozen=True)
class ReportOptions:
    """The options of a report.

    Attributes:
      target: draw a line at this value of the metric, and list the bytes after which each row
        reached it; None takes the value that bias, adapter and prompt all reach, if they are there.
      title: title of the page; "" takes the names of the experiments.
      diagnostics: whether to show `diagnostics.jsonl` of private runs, which is not private.
    """

    target: float | None = None
    title: str = ""
    diagnostics: bool = False


def write_report(
    runs: Sequence[Path], out: Path | None, options: ReportOptions | None = None
) -> Path:
    """Write a report about runs.

    Args:
      runs: run folders, folders that hold run folders up to two levels down, or results files of
        sweeps; each folder of runs, and each file, is a grid of its own.
      out: the page; None is `report.html` in the first folder, or beside the first file. Figures
        are written beside it, with its name as their prefix. Files of an earlier report are
        replaced.
      options: what to show; None takes the defaults.

    Returns:
      The page.

    Raises:
      RunFolderError: if a folder is missing, holds no run, or is corrupt.
      ConfigError: if no run is named, or `out` is not a name of an HTML file, or is a file
        that is no report.
    """
    if not runs:
        raise ConfigError("report: no folder was named; name run folders, or a folder of runs")
    options = options or ReportOptions()
    grids = read_grids(runs)
    first = runs[0]
    place = _place(out or (first.with_suffix(".html") if first.is_file() else first / _PAGE))
    drawn = [
        DrawnGrid(grid, tuple(draw_panel(panel, options.target) for panel in grid.panels))
        for grid in grids
    ]
    page = Page(
        title=options.title or _title(grids),
        grids=tuple(drawn),
        partitions=tuple(_draw_partitions(grids, place)),
        verdicts=_verdicts(grids),
        diagnostics=options.diagnostics,
    )
    for index, panel in enumerate(each for grid in drawn for each in grid.panels):
        _write_figures(panel, place, f"-{index + 1}" if index else "")
    with about(place):
        _beside(place, _TABLE).write_text(as_csv(page.panels), "utf-8")
        place.write_text(html_of(page), "utf-8")
    return place


def _place(out: Path) -> Path:
    if out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
        kind = "a folder" if out.is_dir() else f"a name that ends in {out.suffix or 'nothing'!r}"
        raise ConfigError(f"--out {out}: found {kind}; name a file that ends in .html")
    table = _beside(out, _TABLE)
    if table.exists() and not out.exists():
        raise ConfigError(
            f"--out {out}: the table would be written to {table}, which exists without a page. "
            "Choose another name, or move that file away"
        )
    if out.is_file() and out.stat().st_size and _MARK not in out.read_bytes()[:2000]:
        raise ConfigError(
            f"--out {out}: found a file that is not a page of `fedpeft report`, and only such "
            "pages are replaced. Choose another name, or move the file away"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _title(grids: Sequence[Grid], most: int = 4) -> str:
    names = [grid.name for grid in grids]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _verdicts(grids: Sequence[Grid]) -> tuple[Verdict, ...]:
    """Check the paper's claims on all grids together; () if there is only one row."""
    if sum(len(grid.groups) for grid in grids) < 2:
        return ()
    return tuple(check_claims([run for grid in grids for run in grid.runs]))


def _beside(place: Path, what: str) -> Path:
    return place.parent / f"{place.stem}-{what}"


def _write_figures(panel: DrawnPanel, place: Path, suffix: str) -> None:
    for figure in panel.figures:
        write_picture(figure.pictures[0], _beside(place, f"{figure.what}{suffix}"))
    rows = {"": panel.panel.groups}
    table = draw_forest(forest_of(panel.panel, rows, costs=True), width=_WIDTH_OF_TABLE)
    write_picture(table, _beside(place, f"table{suffix}"))


def _draw_partitions(grids: Sequence[Grid], place: Path) -> list[Figure]:
    """Draw one partition of each kind, up to four kinds, and describe the others."""
    shared: dict[Partition, list[Run]] = {}
    for run in (run for grid in grids for run in grid.runs):
        if run.partition is not None and any(map(any, run.partition.counts)):
            shared.setdefault(run.partition, []).append(run)
    drawn: list[Figure] = []
    kinds: set[tuple[str, ...]] = set()
    for partition, users in shared.items():
        kind = tuple(str(users[0].settings.get(key)) for key in _KIND)
        pictures: tuple[Picture, ...] = ()
        if kind not in kinds and len(kinds) < _DRAWN_PARTITIONS:
            suffix = f"-{len(kinds) + 1}" if kinds else ""
            kinds.add(kind)
            pictures = (draw_partition(partition), draw_partition(partition, width=_NARROW))
            write_picture(pictures[0], _beside(place, f"partition{suffix}"))
        names = list(dict.fromkeys(f"{run.method} (seed {run.seed})" for run in users))
        caption = f"{describe_partition(partition)}. Shared by {listed(names)}."
        drawn.append(Figure("partition", pictures, caption, "Which client holds what."))
    return drawn
