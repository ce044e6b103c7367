"""The figures of a report: metric against bytes, metric against rounds, the comparison.

    metric │      ╭──── bias          metric │   ╭───── bias         bias   ──●──
           │   ╭──╯  ╭─ full                 │ ╭─╯ ╭─── full         full     ──●─
           └─────────────── bytes (log)      └──────────── rounds             └────── metric

Curves are means over seeds; bands reach from the worst seed to the best. A hollow end marks a run
that has not finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedpeft.core.metrics import Metric
from fedpeft.pictures.labels import Label, place_labels
from fedpeft.pictures.style import LIGHT, Picture, Stroke, picture_of, strokes, styled
from fedpeft.results.runs import Group, Panel
from fedpeft.results.table import (
    Spread,
    count_text,
    metric_text,
    row_of,
    seconds_text,
    short_bytes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Axis",
    "Curve",
    "curve_of",
    "draw_comparison",
    "draw_curves",
    "drawn_axes",
    "metric_axis",
]

Axis = Literal["bytes", "rounds", "time"]

_X_LABELS = {
    "bytes": "Bytes sent so far, all clients (log scale)",
    "rounds": "Round",
    "time": "Simulated time",
}


@dataclass(frozen=True)
class Curve:
    """The mean course of a group.

    Attributes:
      x: rounds, mean bytes so far, or mean simulated seconds so far.
      mean: of the metric over the seeds that have reached this round.
      low: the smallest value of a seed there.
      high: the largest.
    """

    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def curve_of(group: Group, axis: Axis) -> Curve:
    """Average the seeds of a group, round by round, over the rounds that all of them have."""
    clocks = [run.simulated() if axis == "time" else None for run in group.counted]
    runs = [
        {
            r: (total if clock is None else clock[r], value)
            for r, total, value in run.curve()
            if clock is None or r in clock
        }
        for run, clock in zip(group.counted, clocks, strict=True)
    ]
    runs = [run for run in runs if run]
    common = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    values = [[run[r][1] for run in runs] for r in common]
    spent = [sum(run[r][0] for run in runs) / len(runs) for r in common]
    return Curve(
        tuple(float(r) for r in common) if axis == "rounds" else tuple(spent),
        tuple(sum(v) / len(v) for v in values),
        tuple(map(min, values)),
        tuple(map(max, values)),
    )


def drawn_axes(panel: Panel) -> tuple[Axis, ...]:
    """List what a panel's metric is drawn against; simulated time where a run had that clock."""
    timed = any(run.simulated() for group in panel.groups for run in group.runs)
    return ("bytes", "rounds", "time") if timed else ("bytes", "rounds")


def metric_axis(panel: Panel) -> str:
    """Name the metric of a panel, with its split and what is better."""
    split = f"{panel.evaluated_on} set"
    notes = ["log scale"] * panel.metric.log + ["lower is better"] * (panel.metric.better == "min")
    return f"{panel.metric.title}, {split}" + (f" ({', '.join(notes)})" if notes else "")


def draw_curves(
    panel: Panel, axis: Axis, *, name: str, width: float = 6.4, target: float | None = None
) -> Picture:
    """Draw the metric of every group against bytes, rounds or simulated time.

    Args:
      panel: what to draw.
      axis: what the figure is against.
      name: unique on the page.
      width: in inches.
      target: draw a line at this value of the metric.
    """
    from matplotlib.figure import Figure

    keyed = _needs_key(panel, width)
    below = 13.0 * len(panel.groups) + 6 if keyed else 0.0
    with styled():
        tall = 3.7 if keyed else max(3.9, 0.22 * len(panel.groups) + 1.2)
        figure = Figure(figsize=(width, tall + below / 72))
        axes = figure.add_subplot()
        lines = list(zip(panel.groups, strokes([g.method for g in panel.groups]), strict=True))
        faint = 0.16 if len(lines) <= 6 else 0.07
        plotted = [(_plot(axes, group, stroke, (axis, faint)), stroke) for group, stroke in lines]
        labels = [label for label, _ in plotted if label]
        if target is not None:
            _target_line(axes, target, panel.metric)
        _scales(axes, panel, axis)
        axes.set_xlabel(axes.get_xlabel() or _X_LABELS[axis])
        axes.set_title(metric_axis(panel), loc="left", fontsize=9, color=LIGHT["soft"], pad=10)
        if keyed:
            labels = _key(figure, labels, [stroke for label, stroke in plotted if label])
        place_labels(figure, axes, labels, below=below)
        what = "simulated time" if axis == "time" else axis
        title = f"{metric_axis(panel)} against {what}, {panel.source}"
        return picture_of(figure, name=name, title=title, text=_ends(panel, axis))


_WIDE_ENOUGH = 5.0  # inches, for labels of any length beside the curves


def _needs_key(panel: Panel, width: float) -> bool:
    """Whether labels would leave no room for the curves."""
    longest = max(len(group.label) for group in panel.groups)
    return width < _WIDE_ENOUGH and (longest > 16 or len(panel.groups) > 8)


def _key(figure: Figure, labels: Sequence[Label], marks: Sequence[Stroke]) -> list[Label]:
    """Write the labels under the axes, best last score first, and return letters in their place."""
    ranked = sorted(range(len(labels)), key=lambda i: -labels[i].y)
    letters = list(labels)
    full = figure.get_figheight() * 72
    for place, index in enumerate(ranked):
        label, letter = labels[index], chr(ord("a") + place % 26)
        letters[index] = Label(letter, label.x, label.y, label.colour)
        height = (13.0 * (len(labels) - place) - 5) / full
        _sample(figure, marks[index], height)
        figure.text(0.13, height, f"{letter}  {label.text}", fontsize=8.5, va="center")
    return letters


def _sample(figure: Figure, stroke: Stroke, height: float) -> None:
    axes = figure.add_axes((0.02, height - 0.005, 0.09, 0.01))
    axes.axis("off")
    axes.plot([0, 1], [0, 0], color=stroke.colour, linestyle=stroke.dash)


def _ends(panel: Panel, axis: Axis) -> str:
    """Say where every curve ends."""
    said: Mapping[Axis, Callable[[float], str]] = {
        "bytes": short_bytes,
        "time": seconds_text,
        "rounds": lambda x: f"round {x:.0f}",
    }
    ends = []
    for group in panel.groups:
        curve = curve_of(group, axis)
        if curve.x:
            last = metric_text(Spread(curve.mean[-1], None), panel.metric)
            ends.append(f"{group.label}: {last} at {said[axis](curve.x[-1])}")
    return "Curves end here. " + "; ".join(ends) + "."


def _scales(axes: Axes, panel: Panel, axis: Axis) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if axis == "bytes":
        axes.set_xscale("log")
        low, high = axes.dataLim.intervalx
        few = 0 < high / low < 60
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=7))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short_bytes(x)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif axis == "time":
        _time_axis(axes)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    if panel.metric.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif panel.metric.percent:
        _widen(axes, 0.04)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: panel.metric.tick(y)))


_TIME_UNITS = {"seconds": 1.0, "minutes": 60.0, "hours": 3_600.0, "days": 86_400.0}


def _time_axis(axes: Axes) -> None:
    """Count simulated time in the largest unit of which there are at least three."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    high = axes.dataLim.intervalx[1]
    fitting = [name for name, unit in _TIME_UNITS.items() if high >= 3 * unit]
    name = fitting[-1] if fitting else "seconds"
    unit = _TIME_UNITS[name]
    ticks = MaxNLocator(nbins=4).tick_values(0, high / unit)
    axes.xaxis.set_major_locator(FixedLocator([tick * unit for tick in ticks]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / unit:g}"))
    axes.set_xlim(0, 1.04 * high)
    axes.set_xlabel(f"{_X_LABELS['time']}, {name}")


def _widen(axes: Axes, least: float) -> None:
    """Show at least this much of the y axis, so that noise does not look like a difference."""
    axes.autoscale_view()
    low, high = axes.get_ylim()
    if high - low < least:
        middle = (low + high) / 2
        axes.set_ylim(middle - least / 2, middle + least / 2)


def _plot(axes: Axes, group: Group, stroke: Stroke, how: tuple[Axis, float]) -> Label | None:
    axis, faint = how
    curve = curve_of(group, axis)
    if not curve.x:
        return None
    colour = stroke.colour
    axes.plot(curve.x, curve.mean, color=colour, linestyle=stroke.dash)
    if len(group.counted) > 1:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=faint, linewidth=0)
    axes.plot(
        curve.x[-1:],
        curve.mean[-1:],
        "o",
        markersize=5,
        color=colour,
        markerfacecolor=colour if group.is_finished else LIGHT["page"],
    )
    text = group.label if group.is_finished else f"{group.label}, unfinished"
    return Label(text, curve.x[-1], curve.mean[-1], colour)


def _target_line(axes: Axes, target: float, metric: Metric) -> None:
    axes.axhline(target, color=LIGHT["soft"], linewidth=0.9, linestyle=(0, (2, 2)))
    axes.annotate(
        f"target {metric.tick(target)}",
        (0, target),
        (2, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        color=LIGHT["soft"],
        fontsize=8,
    )


def draw_comparison(panel: Panel, *, name: str) -> Picture:
    """Draw the comparison table: the metric as points, the costs as columns beside them."""
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=(9.2, 0.34 * len(panel.groups) + 1.15))
        axes = figure.add_subplot()
        label_width = 0.09 * max(len(group.label) for group in panel.groups) + 0.15
        left = min(0.4, label_width / 9.2)
        bottom = 0.55 / figure.get_figheight()
        axes.set_position((left, bottom, 0.56 - left, 1 - bottom - 0.4 / figure.get_figheight()))
        for place, (group, stroke) in enumerate(
            zip(panel.groups, strokes([g.method for g in panel.groups]), strict=True)
        ):
            _dot(axes, group, stroke, place)
            _columns(axes, _cells(group, panel.metric), place)
        _columns(axes, _HEADINGS, -1, heading=True)
        _dot_axes(axes, panel)
        title = f"{metric_axis(panel)}, and what it cost, {panel.source}"
        return picture_of(figure, name=name, title=title)


_HEADINGS: Mapping[str, str] = {
    "metric": "last round",
    "trained": "trained",
    "message": "a message",
    "total": "both ways",
    "time": "time",
}
_COLUMNS = {"metric": 1.20, "trained": 1.41, "message": 1.57, "total": 1.74, "time": 1.88}


def _cells(group: Group, metric: Metric) -> Mapping[str, str]:
    row = row_of(group)
    return {
        "metric": metric_text(row.last, metric),
        "trained": count_text(row.trained),
        "message": short_bytes(row.payload) if row.payload is not None else "–",
        "total": short_bytes(row.total_bytes.mean) if row.total_bytes else "–",
        "time": seconds_text(row.seconds.mean if row.seconds else None),
    }


def _dot(axes: Axes, group: Group, stroke: Stroke, place: int) -> None:
    finals = [curve[-1][2] for run in group.counted if (curve := run.curve())]
    if not finals:
        return
    mean = sum(finals) / len(finals)
    axes.plot([min(finals), max(finals)], [place, place], color=stroke.colour, linewidth=2.4)
    fill = stroke.colour if group.is_finished else LIGHT["page"]
    axes.plot([mean], [place], "o", color=stroke.colour, markerfacecolor=fill, markersize=6)


def _columns(axes: Axes, cells: Mapping[str, str], place: int, *, heading: bool = False) -> None:
    for key, text in cells.items():
        axes.annotate(
            text,
            (_COLUMNS[key], place),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="center",
            fontsize=8 if heading else 9,
            color=LIGHT["soft" if heading else "ink"],
            annotation_clip=False,
        )


def _dot_axes(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter

    count: Sequence[Group] = panel.groups
    axes.set_ylim(len(count) - 0.5, -0.6)
    axes.set_yticks(range(len(count)), [group.label for group in count])
    axes.tick_params(axis="y", labelcolor=LIGHT["ink"])
    axes.set_xlabel(metric_axis(panel))
    written = FuncFormatter(lambda x, _: panel.metric.tick(x))
    if panel.metric.log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(written)
    axes.xaxis.set_major_formatter(written)
    axes.margins(x=0.08)
