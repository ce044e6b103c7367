"""The figures of one panel, chosen by what varies in it, each for a wide and for a narrow page.

    only the number of examples      accuracy against it, one line for each method
    several settings, filled         dots in a section for each setting; one picture for each scheme
    a list of rows                   dots, one line for each row

A setting counts as varied if it differs between rows of one method; a learning rate that depends
only on the method does not.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from fedpeft.core.text import byte_words
from fedpeft.pictures.style import Picture
from fedpeft.report.figures import Axis, curve_of, draw_budgets, draw_curves, drawn_axes
from fedpeft.report.forest import Forest, draw_forest, forest_of
from fedpeft.report.page import DrawnPanel, Figure
from fedpeft.results.names import describe, distinguishing
from fedpeft.results.runs import Group, Panel
from fedpeft.results.table import row_of

_WIDE, _NARROW = 5.8, 3.6  # inches; the narrow one is the width of a phone
_WHOLE = 11.4  # inches: the width of the page
_FEW = 6
_AGAINST = {"bytes": "bytes sent", "rounds": "rounds", "time": "simulated time"}
_MOST_CURVES = 12
_MOST_PARTS = 16
_TUNED = ("bias", "adapter", "prompt")
_FILLED = 0.75
_BUDGET = "data.budget"
_SCHEME = "data.partition.scheme"


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


def varied(panel: Panel) -> list[str]:
    """Return the settings that span the grid besides the method; [] if rows are only a list."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for group in panel.groups:
        kinds.setdefault(group.method, []).append(group.settings)
    keys = [
        key
        for key in panel.differing
        if key != "tuning.method"
        and any(len({str(settings.get(key)) for settings in same}) > 1 for same in kinds.values())
    ]
    chosen = distinguishing(keys, [group.settings for group in panel.groups])
    points = {_point(group, chosen) for group in panel.groups}
    full = len(points) * len(kinds)
    is_grid = len(points) > 1 and len(panel.groups) >= _FILLED * full
    return chosen if is_grid else []


def _point(group: Group, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(group.settings.get(key)) for key in keys)


def parts(panel: Panel) -> list[tuple[str, Panel]]:
    """Split a grid by everything but the method: (common settings, rows labelled by method)."""
    keys = varied(panel)
    if not keys:
        return [("", panel)]
    found: dict[tuple[str, ...], list[Group]] = {}
    for group in panel.groups:
        found.setdefault(_point(group, keys), []).append(group)
    split = []
    for members in found.values():
        counts = Counter(group.method for group in members)
        short = [
            dataclasses.replace(group, label=group.method) if counts[group.method] == 1 else group
            for group in members
        ]
        heading = describe(keys, members[0].settings)
        split.append((heading, dataclasses.replace(panel, groups=tuple(short))))
    return split


def curve_parts(panel: Panel) -> list[tuple[str, Panel]]:
    """Split a grid for its curves: like `parts`, but training modes share a picture."""
    if "federation.mode" not in varied(panel):
        return parts(panel)
    found: dict[str, list[Group]] = {}
    for group in panel.groups:
        found.setdefault(group.method, []).append(group)
    return [(name, dataclasses.replace(panel, groups=tuple(same))) for name, same in found.items()]


def budgets(panel: Panel) -> bool:
    """Whether only the number of training examples varies."""
    keys = varied(panel)
    return keys == [_BUDGET] and all(
        isinstance(group.settings.get(_BUDGET), int) for group in panel.groups
    )


def forests(panel: Panel) -> list[Forest]:
    """Return the dot plots of a panel: one, or one for each partition scheme."""
    keys = varied(panel)
    by_scheme = _SCHEME in keys and len(keys) > 1
    others = [key for key in keys if key != _SCHEME]
    sections: dict[str, dict[str, tuple[Group, ...]]] = {}
    for name, part in parts(panel):
        settings = part.groups[0].settings
        scheme = describe([_SCHEME], settings) if by_scheme else ""
        heading = _heading(describe(others, settings) if by_scheme else name, part)
        found = sections.setdefault(scheme, {})
        found[heading] = (*found.get(heading, ()), *part.groups)
    return [forest_of(panel, found, scheme) for scheme, found in sections.items()]


def _heading(name: str, part: Panel) -> str:
    """Return the heading of a section, with the runs' note on their privacy."""
    notes = list(dict.fromkeys(group.privacy_note for group in part.groups if group.privacy_note))
    return f"{name} ({notes[0]})" if len(notes) == 1 else name
