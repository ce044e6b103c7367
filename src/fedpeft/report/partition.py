"""The partition as a picture: clients across, classes down, darker for more examples.

examples  ▂▅▁▇▂▃    of each client
class 0   █ ░ ▒     opacity = sqrt(count / largest count), so that small shares stay visible
class 1    ▒█  ░
          clients
"""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.ticker import MaxNLocator

from fedpeft.pictures.style import LIGHT, Picture, new_figure, picture_of
from fedpeft.results.runs import Partition, describe_partition

_COLOUR = LIGHT["s0"]
_MOST_NAMES = 40


def draw_partition(partition: Partition, *, width: float = 11.6) -> Picture:
    """Draw one partition.

    Args:
      partition: has at least one client and one label.
      width: in inches.
    """
    rows = len(partition.labels)
    body = min(6.5, max(1.6, rows * (0.2 if rows <= _MOST_NAMES else 0.07)))
    height = body + 1.75
    with new_figure(width, height) as figure:
        shown = partition.labels if rows <= _MOST_NAMES else ("",)
        left = min(0.3, (0.085 * max(map(len, shown)) + 0.55) / width)
        span = 0.985 - left
        top = figure.add_axes((left, (body + 0.85) / height, span, 0.6 / height))
        cells = figure.add_axes((left, 0.75 / height, span, body / height))
        key = figure.add_axes((left, 0.06 / height, span, 0.16 / height))
        _bars(top, partition)
        _cells(cells, partition)
        _key(key, partition, width * span)
        return picture_of(figure, title=describe_partition(partition))


def _bars(axes: Axes, partition: Partition) -> None:
    sizes = [sum(row) for row in partition.counts]
    axes.bar(range(len(sizes)), sizes, width=0.82, color=LIGHT["s6"])
    axes.set_xlim(-0.5, len(sizes) - 0.5)
    axes.set_xticks([])
    axes.set_yticks([0, max(sizes)], ["0", f"{max(sizes):,}"])
    axes.set_title("Examples of each client", loc="left", fontsize=9, color=LIGHT["soft"], pad=4)


def _cells(axes: Axes, partition: Partition) -> None:
    largest = max(max(row) for row in partition.counts)
    filled = [
        (client, label, count)
        for client, row in enumerate(partition.counts)
        for label, count in enumerate(row)
        if count
    ]
    filled.sort(key=lambda cell: cell[2])  # neighbours of one shade are one shape on a page
    squares = [_square(client, label) for client, label, _ in filled]
    alphas = [_opacity(count, largest) for _, _, count in filled]
    axes.add_collection(
        PolyCollection(squares, facecolors=[(_COLOUR, a) for a in alphas], linewidths=0)
    )
    rows, columns = len(partition.labels), len(partition.clients)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    if rows <= _MOST_NAMES:
        axes.set_yticks(range(rows), [_short(label) for label in partition.labels])
    else:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=False)
    axes.set_ylabel("Class")
    axes.set_xlabel(f"Client, {partition.clients[0]} to {partition.clients[-1]}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))


def _square(x: float, y: float) -> list[tuple[float, float]]:
    half = 0.44
    return [(x + half * a, y + half * b) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]


def _opacity(count: int, largest: int) -> float:
    return round(0.1 + 0.9 * math.sqrt(count / largest), 2)


def _short(label: str) -> str:
    return label if len(label) <= 24 else f"{label[:23]}…"


def _key(axes: Axes, partition: Partition, inches: float) -> None:
    """Draw a row of squares with the counts that their shades mean."""
    largest = max(max(row) for row in partition.counts)
    steps = sorted({max(1, round(largest * share)) for share in (0, 0.05, 0.25, 0.5, 1)})
    units = inches / 0.16
    axes.set_xlim(0, units)
    axes.set_ylim(0, 1)
    axes.axis("off")
    axes.text(0, 0.5, "Examples", va="center", fontsize=8, color=LIGHT["soft"])
    places = [5.0 + min(3.6, (units - 6.5) / len(steps)) * i for i in range(len(steps))]
    squares = [_square(place, 0.5) for place in places]
    colours = [(_COLOUR, _opacity(step, largest)) for step in steps]
    axes.add_collection(PolyCollection(squares, facecolors=colours, linewidths=0))
    for place, step in zip(places, steps, strict=True):
        axes.text(place + 0.8, 0.5, f"{step:,}", va="center", fontsize=8, color=LIGHT["soft"])
