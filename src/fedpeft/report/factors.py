"""The choice of figures for a grid, by what varies in it besides the method.

    only the number of examples      accuracy against it, one line for each method
    several settings, filled         dots in a section for each setting; one picture for each scheme
    a list of rows                   dots, one line for each row

A setting counts as varied if it differs between rows of one method; a learning rate that depends
only on the method does not.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fedpeft.report.figures import metric_axis
from fedpeft.report.forest import Forest, Section, limits
from fedpeft.results.names import describe, distinguishing
from fedpeft.results.runs import Group, Panel

__all__ = ["budgets", "curve_parts", "forests", "parts", "varied"]

_FILLED = 0.75
_BUDGET = "data.budget"
_SCHEME = "data.partition.scheme"


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
    sections: dict[str, list[Section]] = {}
    for name, part in parts(panel):
        settings = part.groups[0].settings
        scheme = describe([_SCHEME], settings) if by_scheme else ""
        heading = _heading(describe(others, settings) if by_scheme else name, part)
        sections.setdefault(scheme, []).append(Section(heading, part.groups))
    return [_forest(panel, scheme, tuple(found)) for scheme, found in sections.items()]


def _heading(name: str, part: Panel) -> str:
    """Return the heading of a section, with the runs' note on their privacy."""
    notes = list(dict.fromkeys(group.privacy_note for group in part.groups if group.privacy_note))
    return f"{name} ({notes[0]})" if len(notes) == 1 else name


def _forest(panel: Panel, scheme: str, sections: tuple[Section, ...]) -> Forest:
    axis = metric_axis(panel, log=False)
    where = ", ".join(filter(None, [panel.source, scheme]))
    return Forest(
        f"{axis}, {where}: rows with their seeds and 95 % intervals",
        ", ".join(filter(None, [axis, scheme])),
        panel.metric,
        sections,
        limits(panel.groups),
    )
