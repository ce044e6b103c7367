"""The picture of a domain gap: every example in the LDA plane, all of them and equally many.

The axes have no meaning of their own and no ticks; both have the same scale, in standard deviations
within a set. The balanced plane is rotated to match the other as closely as possible.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from fedpeft.pictures.style import Picture, new_figure, picture_of, strokes
from fedpeft.studies.gap.measures import Gap, plane_of

_SHOWN = 1500


def draw_gap(unbalanced: Gap, balanced: Gap) -> Picture:
    """Draw the LDA planes side by side; the legend gives the distance of centroids in each."""
    with new_figure(8.4, 4.4, constrained=True) as figure:
        left, right = figure.subplots(1, 2)
        _scatter(left, unbalanced, like=unbalanced)
        left.set_title("all examples")
        _scatter(right, balanced, like=unbalanced)
        right.set_title("equally many of each set")
        return picture_of(figure, title="Data sets in the plane of LDA")


def draw_runs(gap: Gap, methods: Mapping[str, str], about: str) -> Picture:
    """Draw the features of several runs, one colour a tuning method.

    Args:
      gap: a gap whose sets are runs.
      methods: run -> tuning method.
      about: model and data, for the title.
    """
    with new_figure(4.6, 4.8, constrained=True) as figure:
        axes = figure.subplots()
        _scatter(axes, gap, like=gap, methods=methods)
        axes.set_title(f"Features after tuning: {about}", fontsize=9)
        return picture_of(figure, title="Features of tuned models in the plane of LDA")


def _scatter(axes: Axes, gap: Gap, *, like: Gap, methods: Mapping[str, str] | None = None) -> None:
    plane = gap.plane if gap is like else plane_of(gap, like)
    chosen = strokes([methods[name] for name in plane] if methods else list(plane))
    for number, (name, stroke) in enumerate(zip(plane, chosen, strict=True)):
        rows = plane[name]
        shown = rows[np.linspace(0, len(rows) - 1, min(len(rows), _SHOWN)).astype(int)]
        axes.scatter(
            shown[:, 0], shown[:, 1], s=7, alpha=0.6, linewidths=0, rasterized=True,
            color=stroke.colour, marker="os^Dvp*"[number % 7],
            label=f"{name}: {gap.distances['lda2'][name]:.2f}",
        )  # fmt: skip
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_axis_off()
    axes.legend(
        title=f"distance of the mean from that of {gap.reference}, in deviations",
        title_fontsize=8, fontsize=8, frameon=False, markerscale=2, ncols=2,
        loc="upper center", bbox_to_anchor=(0.5, -0.02),
    )  # fmt: skip
