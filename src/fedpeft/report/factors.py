"""Which figures a grid asks for: what varies in it besides the method decides.

    number of examples alone         accuracy against it, one line a method
    several settings, filled         dots in sections, one a setting; beside each other by skew
    a list of rows                   dots, one line a row

A setting counts as varied where it differs between rows of one method, so that a learning rate
that follows from the method does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fedpeft.pictures.labels import Label, place_labels
from fedpeft.pictures.style import LIGHT, Picture, Stroke, picture_of, strokes, styled
from fedpeft.report.figures import metric_axis
from fedpeft.report.forest import Forest, Section, limits
from fedpeft.results.names import say, telling
from fedpeft.results.runs import Group, Panel
from fedpeft.results.table import Spread, metric_text, row_of

__all__ = ["budgets", "curve_parts", "draw_budgets", "forests", "parts", "varied"]

_FILLED = 0.75
_BUDGET = "data.budget"
_SCHEME = "data.partition.scheme"


def varied(panel: Panel) -> list[str]:
    """Return the settings that make up the grid besides the method; [] where rows are a list."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for group in panel.groups:
        kinds.setdefault(group.method, []).append(_told(group))
    keys = [
        key
        for key in panel.differing
        if key != "tuning.method"
        and any(len({str(told.get(key)) for told in same}) > 1 for same in kinds.values())
    ]
    chosen = telling(keys, [_told(group) for group in panel.groups])
    points = {_point(group, chosen) for group in panel.groups}
    full = len(points) * len(kinds)
    is_grid = len(points) > 1 and len(panel.groups) >= _FILLED * full
    return chosen if is_grid else []


def _told(group: Group) -> Mapping[str, Any]:
    return group.runs[0].settings


def _point(group: Group, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(_told(group).get(key)) for key in keys)


def parts(panel: Panel) -> list[tuple[str, Panel]]:
    """Split a grid by everything but the method: (what is common, its rows, named by method)."""
    keys = varied(panel)
    if not keys:
        return [("", panel)]
    found: dict[tuple[str, ...], list[Group]] = {}
    for group in panel.groups:
        found.setdefault(_point(group, keys), []).append(group)
    split = []
    for members in found.values():
        names = [_short(group, members, keys) for group in members]
        short = [dataclasses.replace(g, label=n) for g, n in zip(members, names, strict=True)]
        heading = say(keys, _told(members[0]))
        split.append((heading, dataclasses.replace(panel, groups=tuple(short))))
    return split


def curve_parts(panel: Panel) -> list[tuple[str, Panel]]:
    """Split a grid for its curves: as `parts`, but modes of training share a picture."""
    if "federation.mode" not in varied(panel):
        return parts(panel)
    found: dict[str, list[Group]] = {}
    for group in panel.groups:
        found.setdefault(group.method, []).append(group)
    return [(name, dataclasses.replace(panel, groups=tuple(same))) for name, same in found.items()]


def _short(group: Group, members: Sequence[Group], keys: Sequence[str]) -> str:
    """Name a row by its method, and by its whole label where that is not enough."""
    alone = sum(other.method == group.method for other in members) == 1
    return group.method if alone else group.label


def budgets(panel: Panel) -> bool:
    """Whether the number of training examples is what varies."""
    keys = varied(panel)
    return keys == [_BUDGET] and all(
        isinstance(_told(group).get(_BUDGET), int) for group in panel.groups
    )


def forests(panel: Panel) -> list[Forest]:
    """Return the pictures of dots that a panel asks for: one, or one a kind of skew."""
    keys = varied(panel)
    split = parts(panel)
    span = limits(panel.groups)
    if _SCHEME in keys and len(keys) > 1:
        schemes = dict.fromkeys(_told(group).get(_SCHEME) for group in panel.groups)
        return [
            _forest(panel, say([_SCHEME], {_SCHEME: scheme}), _of_scheme(split, scheme, keys), span)
            for scheme in schemes
        ]
    sections = [Section(_heading(name, part), _rows(part)) for name, part in split]
    return [_forest(panel, "", sections, span)]


def _of_scheme(split: list[tuple[str, Panel]], scheme: object, keys: list[str]) -> list[Section]:
    others = [key for key in keys if key != _SCHEME]
    return [
        Section(_heading(say(others, _told(part.groups[0])), part), _rows(part))
        for _, part in split
        if _told(part.groups[0]).get(_SCHEME) == scheme
    ]


def _rows(panel: Panel) -> tuple[tuple[str, Group], ...]:
    return tuple((group.label, group) for group in panel.groups)


def _heading(name: str, part: Panel) -> str:
    """Put what the runs say of their privacy beside the setting."""
    notes = list(dict.fromkeys(group.privacy_note for group in part.groups if group.privacy_note))
    return f"{name} ({notes[0]})" if len(notes) == 1 else name


def _forest(
    panel: Panel, scheme: str, sections: Sequence[Section], span: tuple[float, float]
) -> Forest:
    where = ", ".join(filter(None, [panel.source, scheme]))
    axis = f"{metric_axis(panel)}{f', {scheme}' if scheme else ''}"
    return Forest(
        f"{metric_axis(panel)}, {where}: rows with their seeds and 95 % intervals",
        axis,
        panel.metric,
        tuple(sections),
        span,
    )


def draw_budgets(panel: Panel, *, name: str, width: float = 5.8) -> Picture:
    """Draw the metric against the number of training examples, one line a method.

    Args:
      panel: a grid in which that number varies.
      name: unique on the page.
      width: in inches.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    methods = list(dict.fromkeys(group.method for group in panel.groups))
    with styled():
        figure = Figure(figsize=(width, 3.9))
        axes = figure.add_subplot()
        lines = [
            (method, stroke, _line(panel, method))
            for method, stroke in zip(methods, strokes(methods), strict=True)
        ]
        labels = [_plot(axes, method, stroke, line) for method, stroke, line in lines if line]
        axes.set_xticks(sorted({x for _, _, line in lines for x, _ in line}))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: panel.metric.tick(y)))
        axes.set_xlabel("Training examples of all clients")
        axes.set_title(metric_axis(panel), loc="left", fontsize=9, color=LIGHT["soft"], pad=10)
        place_labels(figure, axes, labels)
        title = f"{metric_axis(panel)} against the number of training examples, {panel.source}"
        return picture_of(figure, name=name, title=title, text=_said(panel, lines))


def _line(panel: Panel, method: str) -> list[tuple[int, Spread]]:
    points = [
        (int(_told(group)[_BUDGET]), row_of(group).last)
        for group in panel.groups
        if group.method == method
    ]
    return sorted(((x, spread) for x, spread in points if spread), key=lambda point: point[0])


def _plot(axes: Any, method: str, stroke: Stroke, line: list[tuple[int, Spread]]) -> Label:  # noqa: ANN401
    x, means = [at for at, _ in line], [spread.mean for _, spread in line]
    axes.errorbar(
        x,
        means,
        yerr=[spread.std or 0.0 for _, spread in line],
        color=stroke.colour,
        linestyle=stroke.dash,
        marker="o",
        markersize=5,
        elinewidth=1,
        capsize=3,
    )
    return Label(method, x[-1], means[-1], stroke.colour)


def _said(panel: Panel, lines: list[tuple[str, Stroke, list[tuple[int, Spread]]]]) -> str:
    rows = [
        f"{method}: "
        + ", ".join(f"{metric_text(spread, panel.metric)} with {x} examples" for x, spread in line)
        for method, _, line in lines
    ]
    return ". ".join(rows) + "."
