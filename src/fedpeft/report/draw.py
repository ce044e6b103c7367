"""The figures of one panel, chosen by what varies in it, each for a wide and for a narrow page."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fedpeft.pictures.style import Picture
from fedpeft.report.factors import budgets, curve_parts, draw_budgets, forests
from fedpeft.report.figures import Axis, curve_of, draw_curves, drawn_axes
from fedpeft.report.forest import Forest, draw_forest
from fedpeft.report.page import DrawnPanel, Figure
from fedpeft.results.runs import Panel
from fedpeft.results.table import row_of, short_bytes

__all__ = ["Asked", "PanelPictures", "draw_panel"]

_WIDE, _NARROW = 5.8, 3.6  # inches; the narrow one is the width of a phone
_WHOLE = 11.4  # inches: the width of the page
_FEW = 6
_AGAINST = {"bytes": "bytes sent", "rounds": "rounds", "time": "simulated time"}
_MOST_CURVES = 12
_MOST_PARTS = 16
_TUNED = ("bias", "adapter", "prompt")


@dataclass(frozen=True)
class Asked:
    """Which panel of the page it is, and the target that was asked for."""

    index: int
    target: float | None


@dataclass(frozen=True)
class PanelPictures:
    """A panel with its figures.

    Attributes:
      drawn: for the page.
      pictures: those that are written beside it, by what they show.
    """

    drawn: DrawnPanel
    pictures: dict[str, Picture]


def draw_panel(panel: Panel, asked: Asked) -> PanelPictures:
    """Draw what a panel asks for."""
    figures: dict[str, Figure] = {}
    split = curve_parts(panel)
    crowded = len(split) > 1 and len(panel.groups) > _MOST_CURVES
    if len(panel.groups) > 1:
        figures |= _dots(panel, asked.index)
    if not crowded:
        figures |= _curves(panel, asked)
    folded = tuple(
        (heading, tuple(_small(part, f"{asked.index}p{number}")))
        for number, (heading, part) in enumerate(split[:_MOST_PARTS] if crowded else [])
    )
    pictures = {what: figure.pictures[0] for what, figure in figures.items()}
    return PanelPictures(DrawnPanel(panel, tuple(figures.values()), folded), pictures)


def _both(
    draw: Callable[[str, float], Picture], name: str, *, spans: bool = False
) -> tuple[Picture, Picture]:
    return draw(name, _WHOLE if spans else _WIDE), draw(f"{name}n", _NARROW)


def _dots(panel: Panel, index: int) -> dict[str, Figure]:
    noun = panel.metric.title
    found: dict[str, Figure] = {}
    if budgets(panel):
        pictures = _both(
            lambda name, width: draw_budgets(panel, name=name, width=width), f"budgets{index}"
        )
        found["budgets"] = Figure(
            pictures,
            f"<b>{noun} against the number of examples.</b> Points are means over seeds; bars are "
            "one sample standard deviation each way.",
        )
    for number, forest in enumerate(forests(panel)):
        pictures = _both(partial(_draw_forest, forest), f"rows{index}f{number}")
        found[f"rows{f'-part{number + 1}' if number else ''}"] = Figure(
            pictures,
            f"<b>{noun} after the last round.</b> Large dots are means over seeds, small dots the "
            "seeds; lines are 95 % intervals of the mean, cut off at the edge.",
        )
    return found


def _curves(panel: Panel, asked: Asked) -> dict[str, Figure]:
    target, why = _target(panel, asked.target)
    spans = len(panel.groups) > _FEW
    found: dict[str, Figure] = {}
    for axis in drawn_axes(panel):
        draw = partial(_draw_curves, (panel, axis, target))
        pictures = _both(draw, f"{axis}{asked.index}", spans=spans)
        found[axis] = Figure(pictures, _caption(panel, axis, (target, why)), spans)
    return found


def _draw_forest(forest: Forest, name: str, width: float) -> Picture:
    return draw_forest(forest, name=name, width=width)


def _draw_curves(what: tuple[Panel, Axis, float | None], name: str, width: float) -> Picture:
    panel, axis, target = what
    return draw_curves(panel, axis, name=name, width=width, target=target)


def _small(panel: Panel, name: str) -> list[Figure]:
    noun = panel.metric.title
    return [
        Figure(
            (draw_curves(panel, axis, name=f"{axis}{name}", width=4.6),),
            f"{noun} against {_AGAINST[axis]}.",
        )
        for axis in drawn_axes(panel)
    ]


def _target(panel: Panel, asked: float | None) -> tuple[float | None, str]:
    """Return the target, and how it came about; None where nobody asked and nothing suggests it."""
    if asked is not None:
        return asked, ""
    rows = {group.method: row_of(group) for group in panel.groups if group.method in _TUNED}
    reached = [row.last.mean for row in rows.values() if row.last and not row.status]
    others = {group.method for group in panel.groups} - set(_TUNED)
    if panel.metric.better == "min" or len(reached) < len(_TUNED) or not others:
        return None, ""
    return min(reached), "The target is what all of bias, adapter and prompt reach in the end. "


def _caption(panel: Panel, axis: str, target: tuple[float | None, str]) -> str:

    noun = panel.metric.title
    if axis == "bytes":
        order = "Higher" if panel.metric.better == "max" else "Lower"
        return (
            f"<b>{noun} against bytes sent.</b> Both ways, all clients, as encoded, added up round "
            f"by round. {order} and further left is better. {target[1]}"
            f"{html.escape(_reached(panel, target[0]))}"
        )
    if axis == "time":
        return (
            f"<b>{noun} against simulated time.</b> Seconds on the simulated clock: download, "
            "compute and upload of the clients, and waiting for them. Runs without that clock are "
            "left out."
        )
    return f"<b>{noun} against rounds.</b> {_curve_note(panel)}"


def _curve_note(panel: Panel) -> str:
    if any(len(group.counted) > 1 for group in panel.groups):
        return "Lines are means over seeds; bands reach from the lowest seed to the highest."
    return "One seed a curve: differences of a few points may be chance."


def _reached(panel: Panel, target: float | None) -> str:
    """Say which groups reached a target, and after how many bytes; their means over seeds count."""
    if target is None:
        return ""
    costs: dict[str, float | None] = {}
    for group in panel.groups:
        curve = curve_of(group, "bytes")
        hits = [
            x for x, y in zip(curve.x, curve.mean, strict=True) if panel.metric.reaches(y, target)
        ]
        costs[group.label] = hits[0] if hits else None
    there = sorted((cost, label) for label, cost in costs.items() if cost is not None)
    if not there:
        return "Nobody reached the target."
    text = ", ".join(f"{label} after {short_bytes(cost)}" for cost, label in there)
    missed = ", ".join(label for label, cost in costs.items() if cost is None)
    return f"Target reached by {text}." + (f" Not by {missed}." if missed else "")
