"""Labels at the ends of curves, moved apart until none overlaps another.

──────● full                        ──────●── full
──────● bias      overlapping  ->   ──────●── bias      each of a pair moves by half the overlap
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from fedpeft.pictures.style import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_GAP = 11.0  # points between the end of a curve and its label


@dataclass(frozen=True)
class Label:
    """A text for the point (x, y), in data coordinates."""

    text: str
    x: float
    y: float
    colour: str


@dataclass(frozen=True)
class Box:
    """The box of a text, in pixels; `left` is its left edge, `middle` the height of its middle."""

    left: float
    width: float
    height: float
    middle: float


def spread(boxes: Sequence[Box], *, low: float, high: float) -> list[float]:
    """Move boxes up and down, as little as necessary, until none overlaps another.

    Args:
      boxes: the preferred places.
      low: lower limit of all boxes.
      high: upper limit of all boxes.

    Returns:
      The new middles; boxes keep their order from bottom to top.
    """
    middles = [box.middle for box in boxes]
    pairs = [(a, b) for a, b in combinations(range(len(boxes)), 2) if _share_columns(boxes, a, b)]
    for _ in range(400):
        moved = False
        for a, b in pairs:
            lower, upper = sorted((a, b), key=lambda i: (boxes[i].middle, -i))
            needed = (boxes[a].height + boxes[b].height) / 2
            overlap = needed - (middles[upper] - middles[lower])
            if overlap > 0.1:
                middles[lower] -= overlap / 2
                middles[upper] += overlap / 2
                moved = True
        for i, box in enumerate(boxes):
            half = box.height / 2
            middles[i] = max(low + half, min(high - half, middles[i]))
        if not moved:
            break
    return middles


def _share_columns(boxes: Sequence[Box], a: int, b: int) -> bool:
    first, second = boxes[a], boxes[b]
    return first.left < second.left + second.width and second.left < first.left + first.width


def place_labels(
    figure: Figure, axes: Axes, labels: Sequence[Label], *, below: float = 0.0
) -> None:
    """Write labels beside their points, and leave room for them at the right of the axes.

    Args:
      figure: the figure of the axes.
      axes: the axes with the points.
      labels: the labels to write.
      below: space to leave free under the axes and their texts, in points.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    texts = [
        axes.annotate(label.text, (label.x, label.y), annotation_clip=False) for label in labels
    ]
    renderer = canvas.get_renderer()
    extents = [text.get_window_extent(renderer) for text in texts]
    for text in texts:
        text.remove()
    pixels = figure.dpi / 72
    axes.autoscale_view()
    _fit_axes(figure, axes, labels, [extent.width / pixels for extent in extents], below)
    points = [axes.transData.transform((label.x, label.y)) for label in labels]
    boxes = [
        Box(float(point[0]) + _GAP * pixels, extent.width, extent.height * 1.08, float(point[1]))
        for point, extent in zip(points, extents, strict=True)
    ]
    frame = axes.get_window_extent(renderer)
    middles = spread(boxes, low=frame.y0, high=frame.y1 + 12 * pixels)
    for label, box, middle in zip(labels, boxes, middles, strict=True):
        _write(axes, label, (middle - box.middle) / pixels)


def _fit_axes(
    figure: Figure, axes: Axes, labels: Sequence[Label], widths: Sequence[float], below: float
) -> None:
    """Make the axes as wide as the labels allow; `widths` are the labels' widths in points."""
    full_width, full_height = figure.get_figwidth() * 72, figure.get_figheight() * 72
    left, bottom, top = 42.0, 40.0 + below, 26.0
    room = full_width - left - 4
    inside = axes.transAxes.inverted()
    wide = room
    for label, width in zip(labels, widths, strict=True):
        share = float(inside.transform(axes.transData.transform((label.x, label.y)))[0])
        wide = min(wide, (room - _GAP - width) / max(share, 0.05))
    axes.set_position(
        (
            left / full_width,
            bottom / full_height,
            wide / full_width,
            1 - (bottom + top) / full_height,
        )
    )


def _write(axes: Axes, label: Label, lift: float) -> None:
    """Write one label `lift` points above its point, joined to it by a thin line."""
    axes.annotate(
        label.text,
        (label.x, label.y),
        (_GAP, lift),
        textcoords="offset points",
        va="center",
        color=LIGHT["ink"],
        annotation_clip=False,
        bbox={"facecolor": LIGHT["page"], "edgecolor": "none", "pad": 0.6, "alpha": 0.75},
        arrowprops={
            "arrowstyle": "-",
            "color": label.colour,
            "linewidth": 0.9,
            "relpos": (0, 0.5),
            "shrinkA": 0.5,
            "shrinkB": 3,
        },
    )
