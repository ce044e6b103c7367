"""The figures of one panel, chosen by what varies in it, each for a wide and for a narrow page."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Protocol

from fedpeft.core.text import byte_words
from fedpeft.pictures.style import Picture
from fedpeft.report.factors import budgets, curve_parts, forests
from fedpeft.report.figures import Axis, curve_of, draw_budgets, draw_curves, drawn_axes
from fedpeft.report.forest import draw_forest
from fedpeft.report.page import DrawnPanel, Figure
from fedpeft.results.runs import Panel
from fedpeft.results.table import row_of

__all__ = ["draw_panel"]

_WIDE, _NARROW = 5.8, 3.6  # inches; the narrow one is the width of a phone
_WHOLE = 11.4  # inches: the width of the page
_FEW = 6
_AGAINST = {"bytes": "bytes sent", "rounds": "rounds", "time": "simulated time"}
_MOST_CURVES = 12
_MOST_PARTS = 16
_TUNED = ("bias", "adapter", "prompt")


class _Draw(Protocol):
    def __call__(self, *, width: float) -> Picture: ...


def draw_panel(panel: Panel, target: float | None) -> DrawnPanel:
    """Draw the figures of a panel.

    Args:
      panel: the rows.
      target: as in `ReportOptions`.
    """
    split = curve_parts(panel)
    crowded = len(split) > 1 and len(panel.groups) > _MOST_CURVES
    figures = [*_dots(panel)] if len(panel.groups) > 1 else []
    if not crowded:
        figures += _curves(panel, target)
    folded = tuple(
        (heading, tuple(_small(part))) for heading, part in split[: _MOST_PARTS * crowded]
    )
    return DrawnPanel(panel, tuple(figures), folded)


def _both(draw: _Draw, width: float = _WIDE) -> tuple[Picture, Picture]:
    return draw(width=width), draw(width=_NARROW)


def _dots(panel: Panel) -> Iterator[Figure]:
    title = panel.metric.title
    if budgets(panel):
        yield Figure(
            "budgets",
            _both(partial(draw_budgets, panel)),
            "Points are means over seeds; bars are one sample standard deviation each way.",
            f"{title} against the number of examples.",
        )
    for number, forest in enumerate(forests(panel)):
        yield Figure(
            f"rows-part{number + 1}" if number else "rows",
            _both(partial(draw_forest, forest)),
            "Large dots are means over seeds, small dots the seeds; lines are 95 % intervals of "
            "the mean, cut off at the edge.",
            f"{title} after the last round.",
        )


def _curves(panel: Panel, given: float | None) -> Iterator[Figure]:
    suggested = _suggested(panel) if given is None else None
    target = suggested if given is None else given
    spans = len(panel.groups) > _FEW
    for axis in drawn_axes(panel):
        draw = partial(draw_curves, panel, axis, target=target)
        caption = _caption(panel, axis)
        if axis == "bytes":
            if suggested is not None:
                caption += " The target is the lowest last value of bias, adapter and prompt."
            caption += _reached(panel, target)
        heading = f"{panel.metric.title} against {_AGAINST[axis]}."
        yield Figure(axis, _both(draw, _WHOLE if spans else _WIDE), caption, heading, spans)


def _small(panel: Panel) -> Iterator[Figure]:
    for axis in drawn_axes(panel):
        caption = f"{panel.metric.title} against {_AGAINST[axis]}."
        yield Figure("", (draw_curves(panel, axis, width=4.6),), caption)


def _suggested(panel: Panel) -> float | None:
    """Return the value that bias, adapter and prompt all reach; None unless others are there."""
    rows = {group.method: row_of(group) for group in panel.groups if group.method in _TUNED}
    reached = [row.last.mean for row in rows.values() if row.last and not row.status]
    others = {group.method for group in panel.groups} - set(_TUNED)
    if panel.metric.better == "min" or len(reached) < len(_TUNED) or not others:
        return None
    return min(reached)


def _caption(panel: Panel, axis: Axis) -> str:
    if axis == "bytes":
        order = "Higher" if panel.metric.better == "max" else "Lower"
        return (
            "Both ways, all clients, as encoded, added up round by round. "
            f"{order} and further left is better."
        )
    if axis == "time":
        return (
            "Seconds on the simulated clock: download, compute and upload of the clients, and "
            "waiting for them. Runs without a simulated clock are left out."
        )
    if any(len(group.counted) > 1 for group in panel.groups):
        return "Lines are means over seeds; bands reach from the lowest seed to the highest."
    return "One seed a curve: differences of a few points may be chance."


def _reached(panel: Panel, target: float | None) -> str:
    """List the groups whose mean over seeds reached a target, and after how many bytes."""
    if target is None:
        return ""
    there, missed = [], []
    for group in panel.groups:
        curve = curve_of(group, "bytes")
        points = zip(curve.x, curve.mean, strict=True)
        cost = next((x for x, y in points if panel.metric.reaches(y, target)), None)
        if cost is None:
            missed.append(group.label)
        else:
            there.append((cost, group.label))
    if not there:
        return " No row reached the target."
    text = ", ".join(f"{label} after {byte_words(cost)}" for cost, label in sorted(there))
    return f" Target reached by {text}." + (f" Not by {', '.join(missed)}." if missed else "")
