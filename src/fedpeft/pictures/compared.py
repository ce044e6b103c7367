"""Tuning methods side by side: after the same rounds, and after the same upload.

            same rounds          same upload
full     ───────────── ●  ■    cannot send once
bias     ──────── ●  ■         ────── ●  ■         one mark a bed, with its 95 % interval
head     ─ ●  ■                ─ ●  ■
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fedpeft.core.metrics import ACCURACY
from fedpeft.pictures.style import LIGHT, Picture, new_figure, note, picture_of
from fedpeft.results.advice import Rounds, rank
from fedpeft.results.evidence import Cell
from fedpeft.results.table import Spread, interval_text

_MARKS = ("o", "s", "D", "^", "v", "P", "X")
_APART = 0.5  # of a row, over which the beds of a method are spread


def draw_methods(
    title: str, cells: Sequence[Cell], views: Mapping[str, Rounds], *, width: float = 7.6
) -> Picture:
    """Draw the accuracy of every method on every bed, one panel for each way to compare them.

    Args:
      title: of the picture.
      cells: one for each bed; not empty.
      views: heading of a panel -> the rounds after which its entries are scored.
      width: in inches.
    """
    first = next(iter(views.values()))
    ranked = [row.label for row in rank(cells, first)]
    labels = ranked + [
        label
        for label in dict.fromkeys(entry.label for cell in cells for entry in cell.entries)
        if label not in ranked
    ]
    height = 1.15 + 0.3 * len(labels)
    left = 0.3 + 0.075 * max(map(len, labels))
    inside = (width - left - 0.25 * len(views)) / len(views)
    with new_figure(width, height) as figure:
        shared: Axes | None = None
        for number, (heading, rounds) in enumerate(views.items()):
            place = left + number * (inside + 0.25)
            frame = (place / width, 0.8 / height, inside / width, 1 - 1.1 / height)
            axes = figure.add_axes(frame, sharex=shared)
            shared = axes
            _panel(axes, labels, cells, rounds)
            axes.set_title(heading, loc="left", fontsize=9, color=LIGHT["soft"])
            axes.tick_params(axis="y", labelcolor=LIGHT["ink"], labelleft=number == 0)
        figure.legend(
            handles=[_sample(number, cell.bed) for number, cell in enumerate(cells)],
            loc="lower left",
            bbox_to_anchor=(left / width - 0.02, 0),
            ncols=len(cells),
            frameon=False,
            fontsize=8.5,
            handletextpad=0.1,
        )
        return picture_of(figure, title=title, text=_text(cells, views))


def _panel(axes: Axes, labels: Sequence[str], cells: Sequence[Cell], rounds: Rounds) -> None:
    for row, label in enumerate(labels):
        if row % 2 == 0:
            axes.axhspan(-row - 0.5, -row + 0.5, color=LIGHT["wash"], linewidth=0, zorder=0)
        found = {number: _spread(cell, label, rounds) for number, cell in enumerate(cells)}
        for number, spread in found.items():
            if spread is not None:
                _mark(axes, _APART * (0.5 - (number + 0.5) / len(cells)) - row, spread, number)
        if not any(found.values()):
            words = _why(cells, label, rounds)
            note(axes, words, (0.02, -row), color=LIGHT["soft"], fontsize=8)
    axes.set_yticks([-row for row in range(len(labels))], labels)
    axes.set_ylim(0.5 - len(labels), 0.5)
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_major_formatter(lambda x, _: ACCURACY.tick(x))
    axes.set_xlabel("Accuracy, test set")


def _why(cells: Sequence[Cell], label: str, rounds: Rounds) -> str:
    """Say why a method has no figure: too large, or not evaluated so early."""
    found = [(cell, cell.entry(label)) for cell in cells]
    least = [rounds(cell, entry) for cell, entry in found if entry]
    return "cannot be sent once" if max(least) < 1 else "not evaluated so early"


def _spread(cell: Cell, label: str, rounds: Rounds) -> Spread | None:
    entry = cell.entry(label)
    if entry is None or (at := rounds(cell, entry)) < 1:
        return None
    return Spread.of(list(entry.at(at).values()))


def _mark(axes: Axes, place: float, spread: Spread, number: int) -> None:
    colour = LIGHT[f"s{number % len(_MARKS)}"]
    if ends := spread.interval(ACCURACY):
        axes.plot(ends, [place, place], color=colour, linewidth=1.4)
    axes.plot(spread.mean, place, _MARKS[number % len(_MARKS)], color=colour, markersize=5)


def _sample(number: int, bed: str) -> Line2D:
    look = LIGHT[f"s{number % len(_MARKS)}"], _MARKS[number % len(_MARKS)]
    return Line2D([], [], color=look[0], marker=look[1], linestyle="", markersize=5, label=bed)


def _text(cells: Sequence[Cell], views: Mapping[str, Rounds]) -> str:
    parts = []
    for heading, rounds in views.items():
        for cell in cells:
            rows = []
            for entry in cell.entries:
                if spread := _spread(cell, entry.label, rounds):
                    ends = spread.interval(ACCURACY)
                    within = f" ({interval_text(ends, ACCURACY)})" if ends else ""
                    rows.append(f"{entry.label} {ACCURACY.text(spread.mean)} %{within}")
            parts.append(f"{heading}, {cell.bed}: {'; '.join(rows)}.")
    return " ".join(parts)
