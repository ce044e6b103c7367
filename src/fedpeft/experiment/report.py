"""Reports: run folders in, one self-contained page and its figures out.

    report.html            the page: tables, figures, settings, environment
    report-bytes.svg/png   metric against cumulative bytes (one pair a panel)
    report-rounds.svg/png  metric against rounds
    report-time.svg/png    metric against simulated time, where a run had that clock
    report-table.svg/png/csv   the comparison
    report-partition.svg/png   clients x classes

Reference: the figure of accuracy against communication is that of Sun et al., Exploring
Parameter-Efficient Fine-Tuning to Enable Foundation Models in Federated Learning, IEEE BigData
2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedpeft.core.errors import ConfigError
from fedpeft.experiment.report_data import Panel, Partition, Run, find_runs, panels_of, read_run
from fedpeft.experiment.report_figures import (
    curve_of,
    draw_comparison,
    draw_curves,
    drawn_axes,
)
from fedpeft.experiment.report_page import DrawnPanel, DrawnPartition, page
from fedpeft.experiment.report_partition import describe_partition, draw_partition
from fedpeft.experiment.report_style import Picture
from fedpeft.experiment.report_table import as_csv, short_bytes

__all__ = ["write_report"]

_NARROW = 3.6  # inches: the width of a phone


def write_report(runs: Sequence[Path], out: Path | None, *, target: float | None = None) -> Path:
    """Write a report about runs.

    Args:
      runs: run folders, or folders that hold run folders up to two levels down.
      out: the page; None is `report.html` in the first folder. Figures go beside it, under its
        name. Files of an earlier report are replaced.
      target: draw a line at this value of the metric, and say who reached it at what cost.

    Returns:
      The page.

    Raises:
      RunFolderError: if a folder is missing, holds no run, or is corrupt.
      ConfigError: if `out` is no place for a page.
    """
    if not runs:
        raise ConfigError("report: no folder was named; name run folders, or a folder of runs")
    read = [read_run(folder) for folder in find_runs(runs)]
    place = _place(out or runs[0] / "report.html")
    panels = [panel for panel in panels_of(read)]
    drawn = [_draw(panel, place, index, target) for index, panel in enumerate(panels)]
    (place.parent / f"{place.stem}-table.csv").write_text(as_csv(panels), "utf-8")
    place.write_text(page(_title(read, runs), drawn, _draw_partitions(read, place)), "utf-8")
    return place


def _place(out: Path) -> Path:
    if out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
        kind = "a folder" if out.is_dir() else f"a name that ends in {out.suffix or 'nothing'!r}"
        raise ConfigError(f"--out {out}: found {kind}; name a file that ends in .html")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _title(read: Sequence[Run], named: Sequence[Path]) -> str:
    names = dict.fromkeys(str(run.settings.get("name", run.folder.name)) for run in read)
    if len(names) == 1:
        return next(iter(names))
    return ", ".join(folder.resolve().name for folder in named[:3])


def _draw(panel: Panel, place: Path, index: int, target: float | None) -> DrawnPanel:
    """Draw a panel's figures and write them beside the page."""
    suffix = f"-{index + 1}" if index else ""
    wide, narrow = {}, {}
    axes = drawn_axes(panel)
    for axis in axes:
        name = f"{axis}{index}"
        wide[axis] = draw_curves(panel, axis, name=name, width=5.8, target=target)
        narrow[axis] = draw_curves(panel, axis, name=f"{name}n", width=_NARROW, target=target)
        _write(wide[axis], place, f"{axis}{suffix}")
    _write(draw_comparison(panel, name=f"table{index}"), place, f"table{suffix}")
    return DrawnPanel(
        panel,
        bytes=(wide["bytes"], narrow["bytes"]),
        rounds=(wide["rounds"], narrow["rounds"]),
        files=tuple(_files(place, suffix, axes)),
        reached=_reached(panel, target),
        time=(wide["time"], narrow["time"]) if "time" in axes else None,
    )


def _write(picture: Picture, place: Path, what: str) -> None:
    (place.parent / f"{place.stem}-{what}.svg").write_text(picture.svg, "utf-8")
    (place.parent / f"{place.stem}-{what}.png").write_bytes(picture.png)


def _files(place: Path, suffix: str, axes: Sequence[str]) -> list[tuple[str, str]]:
    names = [f"{what}{suffix}.{kind}" for what in (*axes, "table") for kind in ("svg", "png")]
    return [(f"{place.stem}-{name}", name) for name in [*names, "table.csv"]]


def _reached(panel: Panel, target: float | None) -> str:
    """Say which groups reached a target, and after how many bytes; their means over seeds count."""
    if target is None:
        return ""
    costs: dict[str, float | None] = {}
    for group in panel.groups:
        curve = curve_of(group, "bytes")
        hits = [
            x
            for x, y in zip(curve.x, curve.mean, strict=True)
            if (y <= target if panel.metric == "perplexity" else y >= target)
        ]
        costs[group.label] = hits[0] if hits else None
    there = sorted((cost, label) for label, cost in costs.items() if cost is not None)
    if not there:
        return "Nobody reached the target."
    text = ", ".join(f"{label} after {short_bytes(cost)}" for cost, label in there)
    missed = ", ".join(label for label, cost in costs.items() if cost is None)
    return f"Target reached by {text}." + (f" Not by {missed}." if missed else "")


def _draw_partitions(runs: Sequence[Run], place: Path) -> list[DrawnPartition]:
    """Draw each different partition once."""
    shared: dict[Partition, list[str]] = {}
    for run in runs:
        if run.partition is not None and any(map(any, run.partition.counts)):
            seed = run.settings.get("seed")
            shared.setdefault(run.partition, []).append(f"{run.method} (seed {seed})")
    drawn = []
    for index, (partition, names) in enumerate(shared.items()):
        wide = draw_partition(partition, name=f"partition{index}")
        narrow = draw_partition(partition, name=f"partition{index}n", width=_NARROW)
        _write(wide, place, f"partition{f'-{index + 1}' if index else ''}")
        drawn.append(DrawnPartition((wide, narrow), describe_partition(partition), tuple(names)))
    return drawn
