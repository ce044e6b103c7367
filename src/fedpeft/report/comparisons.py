"""Comparisons of a claim as a picture: margins over seeds, with both of their intervals.

                              :  |
    bias against full         :  |   ──●──      passes: the interval is right of its bound
                              :  |    ───       the same margin over draws of the test items
    prompt against head     ──:─○|──            undecided
                              :  0     accuracy

The solid line is 0, the dotted one the bound where "comparable" is enough. Colour and fill tell the
verdict: filled where the seeds decide.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedpeft.pictures.style import LIGHT, Picture, new_figure, note, picture_of
from fedpeft.results.paired import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = Sequence[tuple[str, Comparison]]
"""Label of a line, and what it shows; from top to bottom."""

_COLOURS: Mapping[str, str] = {"pass": "s2", "equivalent": "s0", "fail": "s1", "undecided": "soft"}
_MOST_LETTERS = 50
_LETTER = 0.078  # inches


def draw_comparisons(title: str, lines: Lines, unit: str, *, width: float = 9.0) -> Picture:
    """Draw the margin of each comparison with its intervals over seeds and over test items, as SVG.

    Args:
      title: what the lines have in common.
      lines: one or more.
      unit: of the margins.
      width: in inches.
    """
    unbroken = (label.replace(" = ", "\u00a0=\u00a0") for label, _ in lines)
    texts = ["\n".join(textwrap.wrap(label, _MOST_LETTERS)) for label in unbroken]
    letters = max(len(line) for text in texts for line in text.split("\n"))
    left, right = _LETTER * letters + 0.2, 1.35
    extents = [1.3 + text.count("\n") for text in texts]
    height = 0.17 * sum(extents) + 0.75
    with new_figure(width, height) as figure:
        axes = figure.add_axes(
            (left / width, 0.5 / height, (width - left - right) / width, 1 - 0.62 / height)
        )
        place, ticks = 0.0, []
        for (_, found), extent in zip(lines, extents, strict=True):
            ticks.append(place - extent / 2)
            _draw(axes, ticks[-1], found)
            place -= extent
        axes.axvline(0, color=LIGHT["ink"], linewidth=0.8)
        for bound in {-found.tolerance for _, found in lines} - {0.0}:
            axes.axvline(bound, color=LIGHT["ink"], linewidth=0.8, linestyle=":")
        axes.set_yticks(ticks, texts)
        axes.set_ylim(place, 0)
        axes.set_xlim(*_span([found for _, found in lines]))
        axes.tick_params(axis="y", labelcolor=LIGHT["ink"], labelsize=8)
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"margin, {unit}: mean over seeds, 90 % interval; thin: over test items")
        spoken = ". ".join(f"{label}: {_words(found)}" for label, found in lines)
        return picture_of(figure, title=title, text=spoken + ".", png=False)


def _draw(axes: Axes, place: float, found: Comparison) -> None:
    colour = LIGHT[_COLOURS[found.verdict]]
    low, high = found.interval
    if math.isfinite(low):
        axes.plot([low, high], [place, place], color=colour, linewidth=2.2)
    if found.item_interval is not None:
        under = place - 0.32
        axes.plot(found.item_interval, [under, under], color=LIGHT["soft"], linewidth=0.9)
    fill = LIGHT["page"] if found.verdict == "undecided" else colour
    axes.plot(found.margin, place, "o", color=colour, markerfacecolor=fill, markersize=5)
    note(axes, f"{found.margin:+.3f} {found.verdict}", (1, place), (6, 0), fontsize=8)


def _span(found: Sequence[Comparison]) -> tuple[float, float]:
    """Return a span that holds every interval over seeds, item interval and bound."""
    values = [0.0]
    for each in found:
        ends = (*each.interval, *(each.item_interval or ()), each.margin, -each.tolerance)
        values += [end for end in ends if math.isfinite(end)]
    space = max(0.06 * (max(values) - min(values)), 1e-3)
    return min(values) - space, max(values) + space


def _words(found: Comparison) -> str:
    low, high = found.interval
    interval = f", {low:+.3f} to {high:+.3f}" if math.isfinite(low) else ""
    return f"{found.margin:+.3f}{interval}, {found.seeds} seeds, {found.verdict}"
