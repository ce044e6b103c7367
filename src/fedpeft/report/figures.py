"""Curves: metric against bytes, rounds, simulated time, or the number of training examples.

    metric │      ╭──── bias          metric │   ╭───── bias
           │   ╭──╯  ╭─ full                 │ ╭─╯ ╭─── full
           └─────────────── bytes (log)      └──────────── rounds

Curves are means over seeds; bands extend from the worst seed to the best. A hollow end marks a run
that has not finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator

from fedpeft.core.text import byte_words
from fedpeft.pictures.labels import Label, place_labels
from fedpeft.pictures.style import LIGHT, Picture, Stroke, new_figure, note, picture_of, strokes
from fedpeft.results.runs import Group, Panel
from fedpeft.results.table import Spread, metric_text, row_of, seconds_text

Axis = Literal["bytes", "rounds", "time"]

_X_LABELS: Mapping[Axis, str] = {
    "bytes": "Bytes sent so far, all clients (log scale)",
    "rounds": "Round",
    "time": "Simulated time",
}
_X_TEXTS: Mapping[Axis, Callable[[float], str]] = {
    "bytes": byte_words,
    "rounds": lambda x: f"round {x:.0f}",
    "time": seconds_text,
}
_TIME_UNITS = {"seconds": 1.0, "minutes": 60.0, "hours": 3_600.0, "days": 86_400.0}
_WIDE_ENOUGH = 5.0  # inches, for labels of any length beside the curves
_LEAST_SPAN = 0.04  # of a metric in percent; with less, noise looks like a difference


@dataclass(frozen=True)
class Curve:
    """The mean curve of a group.

    Attributes:
      x: rounds, mean bytes so far, or mean simulated seconds so far.
      mean: mean of the metric over the seeds.
      low: the smallest value of a seed.
      high: the largest value of a seed.
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


def marked(groups: Sequence[Group]) -> list[tuple[Group, Stroke]]:
    """Pair each group with its stroke."""
    return list(zip(groups, strokes([group.method for group in groups]), strict=True))


def drawn_axes(panel: Panel) -> tuple[Axis, ...]:
    """List the x axes of a panel's curves; simulated time if a run has a simulated clock."""
    timed = any(run.simulated() for group in panel.groups for run in group.runs)
    return ("bytes", "rounds", "time") if timed else ("bytes", "rounds")


def metric_axis(panel: Panel, *, log: bool = True) -> str:
    """Return the axis label of a panel's metric, with its split and its better direction.

    Args:
      panel: the rows.
      log: whether the axis is logarithmic for metrics that allow it.
    """
    metric = panel.metric
    notes = ["log scale"] * (log and metric.log) + ["lower is better"] * (metric.better == "min")
    return f"{metric.title}, {panel.evaluated_on} set" + f" ({', '.join(notes)})" * bool(notes)


def draw_curves(
    panel: Panel, axis: Axis, *, width: float = 6.4, target: float | None = None
) -> Picture:
    """Draw the metric of every group against bytes, rounds or simulated time.

    Args:
      panel: the groups to draw.
      axis: the x axis.
      width: in inches.
      target: draw a line at this value of the metric; None draws none.
    """
    count = len(panel.groups)
    keyed = _needs_key(panel, width)
    below = 13.0 * count + 6 if keyed else 0.0
    tall = 3.7 if keyed else max(3.9, 0.22 * count + 1.2)
    drawn = [(curve_of(group, axis), group, stroke) for group, stroke in marked(panel.groups)]
    lines = [line for line in drawn if line[0].x]
    with new_figure(width, tall + below / 72) as figure:
        axes = figure.add_subplot()
        labels = [_plot(axes, *line, faint=0.16 if count <= 6 else 0.07) for line in lines]
        if target is not None:
            axes.axhline(target, color=LIGHT["soft"], linewidth=0.9, linestyle=(0, (2, 2)))
            text = f"target {panel.metric.text(target)}{panel.metric.unit}"
            look = {"color": LIGHT["soft"], "fontsize": 8, "va": "baseline"}
            note(axes, text, (0, target), (2, 3), **look)
        _scale_metric(axes, panel)
        _scale_x(axes, axis)
        if keyed:
            labels = _key(figure, labels, [stroke for _, _, stroke in lines])
        place_labels(figure, axes, labels, below=below)
        against = "simulated time" if axis == "time" else axis
        ends = (
            f"{group.label}: {metric_text(Spread(curve.mean[-1], None), panel.metric)} at "
            f"{_X_TEXTS[axis](curve.x[-1])}"
            for curve, group, _ in lines
        )
        return picture_of(
            figure,
            title=f"{metric_axis(panel)} against {against}, {panel.source}",
            text=f"Curves end here. {'; '.join(ends)}.",
        )


def _needs_key(panel: Panel, width: float) -> bool:
    """Whether labels would leave no room for the curves."""
    longest = max(len(group.label) for group in panel.groups)
    return width < _WIDE_ENOUGH and (longest > 16 or len(panel.groups) > 8)


def _plot(axes: Axes, curve: Curve, group: Group, stroke: Stroke, *, faint: float) -> Label:
    colour = stroke.colour
    axes.plot(curve.x, curve.mean, color=colour, linestyle=stroke.dash)
    if len(group.counted) > 1:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=faint, linewidth=0)
    fill = colour if group.is_finished else LIGHT["page"]
    end = curve.x[-1], curve.mean[-1]
    axes.plot(*end, "o", markersize=5, color=colour, markerfacecolor=fill)
    return Label(group.label if group.is_finished else f"{group.label}, unfinished", *end, colour)


def _scale_metric(axes: Axes, panel: Panel) -> None:
    """Label and scale the metric's axis; a small span is widened, so that noise looks small."""
    axes.set_title(metric_axis(panel), loc="left", fontsize=9, color=LIGHT["soft"], pad=10)
    if panel.metric.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axes.yaxis.set_minor_formatter("")
    elif panel.metric.percent:
        axes.autoscale_view()
        low, high = axes.get_ylim()
        if high - low < _LEAST_SPAN:
            axes.set_ylim((low + high - _LEAST_SPAN) / 2, (low + high + _LEAST_SPAN) / 2)
    axes.yaxis.set_major_formatter(lambda y, _: panel.metric.tick(y))


def _scale_x(axes: Axes, axis: Axis) -> None:
    axes.set_xlabel(_X_LABELS[axis])
    if axis == "bytes" and axes.lines:  # a logarithmic axis needs a point: every figure may be null
        axes.set_xscale("log")
        low, high = axes.dataLim.intervalx
        few = 0 < high / low < 60
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=7))
        axes.xaxis.set_major_formatter(lambda x, _: byte_words(x))
        axes.xaxis.set_minor_formatter("")
    elif axis == "time":
        _count_time(axes)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def _count_time(axes: Axes) -> None:
    """Scale simulated time in the largest unit that gives at least three."""
    high = axes.dataLim.intervalx[1]
    name = next((n for n, unit in reversed(_TIME_UNITS.items()) if high >= 3 * unit), "seconds")
    unit = _TIME_UNITS[name]
    ticks = MaxNLocator(nbins=4).tick_values(0, high / unit)
    axes.xaxis.set_major_locator(FixedLocator([tick * unit for tick in ticks]))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / unit:g}")
    axes.set_xlim(0, 1.04 * high)
    axes.set_xlabel(f"{_X_LABELS['time']}, {name}")


def _key(figure: Figure, labels: Sequence[Label], marks: Sequence[Stroke]) -> list[Label]:
    """Write the labels under the axes, highest last score first; return letters in their place."""
    ranked = sorted(range(len(labels)), key=lambda i: -labels[i].y)
    letters = list(labels)
    for place, index in enumerate(ranked):
        label, letter = labels[index], chr(ord("a") + place % 26)
        letters[index] = replace(label, text=letter)
        height = (13.0 * (len(labels) - place) - 5) / (figure.get_figheight() * 72)
        sample = figure.add_axes((0.02, height - 0.005, 0.09, 0.01))
        sample.axis("off")
        sample.plot([0, 1], [0, 0], color=marks[index].colour, linestyle=marks[index].dash)
        figure.text(0.13, height, f"{letter}  {label.text}", fontsize=8.5, va="center")
    return letters


def draw_budgets(panel: Panel, *, width: float = 5.8) -> Picture:
    """Draw the metric against the number of training examples, one line for each method.

    Args:
      panel: a grid in which that number varies.
      width: in inches.
    """
    lines: dict[str, list[tuple[int, Spread]]] = {}
    for group in panel.groups:
        if last := row_of(group).last:
            point = int(group.settings["data.budget"]), last
            lines.setdefault(group.method, []).append(point)
    lines = {method: sorted(line, key=lambda point: point[0]) for method, line in lines.items()}
    with new_figure(width, 3.9) as figure:
        axes = figure.add_subplot()
        labels = []
        for (method, line), stroke in zip(lines.items(), strokes([*lines]), strict=True):
            x, means = [at for at, _ in line], [spread.mean for _, spread in line]
            errors = [spread.std or 0.0 for _, spread in line]
            axes.errorbar(
                x, means, errors, fmt="o", color=stroke.colour, linestyle=stroke.dash,
                markersize=5, elinewidth=1, capsize=3,
            )  # fmt: skip
            labels.append(Label(method, x[-1], means[-1], stroke.colour))
        _scale_metric(axes, panel)
        axes.set_xticks(sorted({x for line in lines.values() for x, _ in line}))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("Training examples of all clients")
        place_labels(figure, axes, labels)
        texts = (
            ", ".join(f"{metric_text(y, panel.metric)} with {x} examples" for x, y in line)
            for line in lines.values()
        )
        return picture_of(
            figure,
            title=f"{metric_axis(panel)} against the number of training examples, {panel.source}",
            text=". ".join(f"{m}: {words}" for m, words in zip(lines, texts, strict=True)) + ".",
        )
