"""Scores as dots with their seeds and intervals, one line a row, in sections.

    16 clients, 2 a round
    full              ·──●─·──        78.1 ± 1.2 %
    bias                  ·─●─·       83.0 ± 0.8 %
                    accuracy

The large dot is the mean over seeds, small dots are the seeds, the line is the 95 % interval of the
mean (Student's t), cut off at the edge of the picture.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedpeft.core.metrics import Metric
from fedpeft.pictures.style import LIGHT, Picture, Stroke, picture_of, strokes, styled
from fedpeft.results.runs import Group
from fedpeft.results.table import Spread, interval_text, metric_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Forest", "Section", "draw_forest", "limits"]

_WIDE = 5.0  # inches


@dataclass(frozen=True)
class Section:
    """Rows under one heading.

    Attributes:
      heading: "" for none.
      rows: what a line is called, and its runs.
    """

    heading: str
    rows: tuple[tuple[str, Group], ...]


@dataclass(frozen=True)
class Forest:
    """What a picture shows.

    Attributes:
      title: of the picture.
      axis: what the metric is called.
      metric: what the scores are.
      sections: from top to bottom.
      span: smallest and largest metric shown; pictures side by side share it.
    """

    title: str
    axis: str
    metric: Metric
    sections: tuple[Section, ...]
    span: tuple[float, float]


def limits(groups: Sequence[Group]) -> tuple[float, float]:
    """Return a span that holds every seed of every group, with a margin; 0 to 1 for none."""
    scores = [score for group in groups for score in _scores(group)]
    if not scores:
        return 0.0, 1.0
    low, high = min(scores), max(scores)
    margin = max(0.08 * (high - low), 0.01)
    return low - margin, high + margin


def _scores(group: Group) -> list[float]:
    return [curve[-1][2] for run in group.counted if (curve := run.curve())]


def draw_forest(forest: Forest, *, name: str, width: float = 5.8) -> Picture:
    """Draw one picture.

    Args:
      forest: what it shows.
      name: unique on the page.
      width: in inches.
    """
    from matplotlib.figure import Figure

    lines = _lines(forest, most=14 if width < _WIDE else 34)
    extents = [_lines_high(text, group) for text, group, _ in lines]
    height = 0.2 * sum(extents) + 0.8
    with styled():
        figure = Figure(figsize=(width, height))
        axes = figure.add_subplot()
        texts = [line for text, group, _ in lines if group for line in text.split("\n")]
        left = 0.074 * max(map(len, texts), default=1) + 0.15
        right = 1.08
        axes.set_position(
            (left / width, 0.5 / height, (width - left - right) / width, 1 - 0.6 / height)
        )
        place = 0.0
        ticks = []
        for (text, group, stroke), extent in zip(lines, extents, strict=True):
            middle, place = place - extent / 2, place - extent
            if group is None or stroke is None:
                _heading(axes, text, place + 0.5, left=left)
                continue
            ticks.append((middle, text))
            _dots(axes, _scores(group), (middle, stroke, forest))
        axes.set_yticks([at for at, _ in ticks], [text for _, text in ticks])
        axes.set_ylim(place - 0.3, 0)
        _look(axes, forest, ticks=3 if width < _WIDE else 5)
        return picture_of(figure, name=name, title=forest.title, text=_text(forest))


def _lines_high(text: str, group: Group | None) -> float:
    """How many lines of text a row takes, with the room above a heading."""
    return 1.0 * (text.count("\n") + 1) if group else 1.5


def _lines(forest: Forest, *, most: int) -> list[tuple[str, Group | None, Stroke | None]]:
    lines: list[tuple[str, Group | None, Stroke | None]] = []
    for section in forest.sections:
        if section.heading:
            lines.append((section.heading, None, None))
        marks = strokes([group.method for _, group in section.rows])
        lines += [
            ("\n".join(textwrap.wrap(label, most)), group, mark)
            for (label, group), mark in zip(section.rows, marks, strict=True)
        ]
    return lines


def _heading(axes: Axes, text: str, place: float, *, left: float) -> None:
    axes.annotate(
        text,
        (0, place),
        (-72 * left + 4, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
        fontweight="bold",
        color=LIGHT["ink"],
        annotation_clip=False,
    )


def _dots(axes: Axes, scores: Sequence[float], how: tuple[float, Stroke, Forest]) -> None:
    place, stroke, forest = how
    spread = Spread.of(scores)
    if spread is None:
        axes.annotate(
            "no figure",
            (1, place),
            (6, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=LIGHT["soft"],
        )
        return
    low, high = forest.span
    ends = spread.interval(forest.metric)
    if ends:
        cut = [max(low, ends[0]), min(high, ends[1])]
        axes.plot(cut, [place, place], color=stroke.colour, linewidth=1.5)
        axes.plot(scores, [place] * len(scores), ".", color=LIGHT["soft"], markersize=4, zorder=4)
    axes.plot([spread.mean], [place], "o", color=stroke.colour, markersize=6)
    axes.annotate(
        metric_text(spread, forest.metric),
        (1, place),
        (6, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
        color=LIGHT["ink"],
        annotation_clip=False,
    )


def _look(axes: Axes, forest: Forest, *, ticks: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlim(*forest.span)
    axes.tick_params(axis="y", labelcolor=LIGHT["ink"], pad=5)
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: forest.metric.tick(x)))
    axes.set_xlabel(forest.axis)


def _text(forest: Forest) -> str:
    said = []
    for section in forest.sections:
        rows = []
        for label, group in section.rows:
            spread = Spread.of(_scores(group))
            ends = spread.interval(forest.metric) if spread else None
            sure = f", 95 % interval {interval_text(ends, forest.metric)}" if ends else ""
            rows.append(f"{label} {metric_text(spread, forest.metric)}{sure}")
        said.append(": ".join(filter(None, [section.heading, "; ".join(rows)])))
    return ". ".join(said) + "."
