"""Scores as dots with their seeds and intervals, one line for each row, in sections.

    16 clients, 2 a round
    full              ·──●─·──        78.1 ± 1.2 %
    bias                  ·─●─·       83.0 ± 0.8 %
                    accuracy

The large dot is the mean over seeds, hollow if no run has finished; small dots are the seeds, and
the line is the 95 % interval of the mean (Student's t), clipped at the edge of the picture. The
comparison is the same picture with columns for the costs of the rows.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedpeft.core.metrics import Metric
from fedpeft.core.text import byte_words
from fedpeft.pictures.style import LIGHT, Picture, Stroke, new_figure, note, picture_of
from fedpeft.report.figures import marked, metric_axis
from fedpeft.results.runs import Group, Panel
from fedpeft.results.table import (
    Spread,
    count_text,
    interval_text,
    metric_text,
    row_of,
    seconds_text,
)

_WIDE = 5.0  # inches
_COLUMN = 0.85  # inches
_COSTS = ("trained", "a message", "both ways", "time")


@dataclass(frozen=True)
class Forest:
    """The content of a dot plot.

    Attributes:
      title: title of the picture.
      axis: label of the metric's axis.
      metric: the metric of the scores.
      sections: heading ("" for none) -> its rows, from top to bottom.
      span: smallest and largest metric shown; pictures side by side share it.
      costs: whether there are columns for the costs of each row.
    """

    title: str
    axis: str
    metric: Metric
    sections: Mapping[str, tuple[Group, ...]]
    span: tuple[float, float]
    costs: bool = False


def forest_of(
    panel: Panel,
    sections: Mapping[str, tuple[Group, ...]],
    scheme: str = "",
    *,
    costs: bool = False,
) -> Forest:
    """Return the dot plot of some sections of a panel.

    Args:
      panel: all rows; they decide the span.
      sections: as in `Forest`.
      scheme: the partition scheme that the sections share; "" if they need not be told apart by it.
      costs: as in `Forest`.
    """
    axis = metric_axis(panel, log=False)
    where = ", ".join(filter(None, [panel.source, scheme]))
    shown = "and what it cost, " if costs else ""
    title = f"{axis}, {shown}{where}" + (
        "" if costs else ": rows with their seeds and 95 % intervals"
    )
    label = ", ".join(filter(None, [axis, scheme]))
    return Forest(title, label, panel.metric, sections, _limits(panel.groups), costs)


def draw_forest(forest: Forest, *, width: float = 5.8) -> Picture:
    """Draw one dot plot.

    Args:
      forest: its content.
      width: in inches.
    """
    lines = _lines(forest, most=14 if width < _WIDE else 34)
    texts = [line for text, group, _ in lines if group for line in text.split("\n")]
    left = 0.074 * max(map(len, texts), default=1) + 0.15
    inside = width - left - 1.08 - len(_COSTS) * _COLUMN * forest.costs
    extents = [text.count("\n") + 1 if group else 1.5 for text, group, _ in lines]
    height = 0.2 * sum(extents) + 0.8 + 0.2 * forest.costs
    with new_figure(width, height) as figure:
        axes = figure.add_axes(
            (left / width, 0.5 / height, inside / width, 1 - (0.6 + 0.2 * forest.costs) / height)
        )
        place = 0.0
        ticks = []
        for (text, group, stroke), extent in zip(lines, extents, strict=True):
            middle, place = place - extent / 2, place - extent
            if group is None or stroke is None:
                note(axes, text, (0, place + 0.5), (-72 * left + 4, 0), fontweight="bold")
                continue
            ticks.append((middle, text))
            _draw_row(axes, middle, group, stroke, forest)
        if forest.costs:
            heads = ("last round", *_COSTS)
            _write_cells(axes, 0.5, heads, color=LIGHT["soft"], fontsize=8)
        axes.set_yticks([at for at, _ in ticks], [text for _, text in ticks])
        axes.set_ylim(place - 0.3, 0)
        axes.set_xlim(*forest.span)
        axes.tick_params(axis="y", labelcolor=LIGHT["ink"], pad=5)
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=3 if width < _WIDE else 5))
        axes.xaxis.set_major_formatter(lambda x, _: forest.metric.tick(x))
        axes.set_xlabel(forest.axis)
        return picture_of(figure, title=forest.title, text=_text(forest))


def _lines(forest: Forest, *, most: int) -> list[tuple[str, Group | None, Stroke | None]]:
    lines: list[tuple[str, Group | None, Stroke | None]] = []
    for heading, rows in forest.sections.items():
        if heading:
            lines.append((heading, None, None))
        lines += [
            ("\n".join(textwrap.wrap(group.label, most)), group, mark)
            for group, mark in marked(rows)
        ]
    return lines


def _draw_row(axes: Axes, place: float, group: Group, stroke: Stroke, forest: Forest) -> None:
    colour, scores = stroke.colour, group.scores
    spread = Spread.of(scores)
    if spread is None:
        note(axes, "no figure", (1, place), (6, 0), color=LIGHT["soft"])
        return
    low, high = forest.span
    ends = spread.interval(forest.metric)
    if ends:
        cut = [max(low, ends[0]), min(high, ends[1])]
        axes.plot(cut, [place, place], color=colour, linewidth=1.5)
        axes.plot(scores, [place] * len(scores), ".", color=LIGHT["soft"], markersize=4, zorder=4)
    fill = colour if group.is_finished else LIGHT["page"]
    axes.plot(spread.mean, place, "o", color=colour, markerfacecolor=fill, markersize=6)
    cells = (metric_text(spread, forest.metric), *(_costs(group) if forest.costs else ()))
    _write_cells(axes, place, cells)


def _write_cells(axes: Axes, place: float, cells: Sequence[str], **look: object) -> None:
    """Write the score at the right of the axes, and costs in columns beyond it."""
    note(axes, cells[0], (1, place), (6, 0), **look)
    for number, text in enumerate(cells[1:], 1):
        note(axes, text, (1, place), (72 * (1.0 + number * _COLUMN), 0), ha="right", **look)


def _costs(group: Group) -> tuple[str, ...]:
    row = row_of(group)
    return (
        count_text(row.trained),
        byte_words(row.payload) if row.payload is not None else "–",
        byte_words(row.total_bytes.mean) if row.total_bytes else "–",
        seconds_text(row.seconds.mean if row.seconds else None),
    )


def _text(forest: Forest) -> str:
    texts = []
    for heading, groups in forest.sections.items():
        rows = []
        for group in groups:
            spread = Spread.of(group.scores)
            ends = spread.interval(forest.metric) if spread else None
            interval = f", 95 % interval {interval_text(ends, forest.metric)}" if ends else ""
            rows.append(f"{group.label} {metric_text(spread, forest.metric)}{interval}")
        texts.append(": ".join(filter(None, [heading, "; ".join(rows)])))
    return ". ".join(texts) + "."


def _limits(groups: Sequence[Group]) -> tuple[float, float]:
    """Return a span that holds every seed of every group, with a margin; 0 to 1 for none."""
    scores = [score for group in groups for score in group.scores]
    if not scores:
        return 0.0, 1.0
    low, high = min(scores), max(scores)
    margin = max(0.08 * (high - low), 0.01)
    return low - margin, high + margin
