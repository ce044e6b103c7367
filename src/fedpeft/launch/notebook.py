"""The printed form of a result: one line, or in a notebook a table and a curve.

Plain HTML and SVG in the notebook's own text colour: no scripts, readable on light and dark pages.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from fedpeft.core.text import byte_words
from fedpeft.pictures.style import LIGHT
from fedpeft.results.table import seconds_text
from fedpeft.runs.records import Record, Totals

_WIDTH, _HEIGHT = 420, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 14, 34


def as_text(records: Sequence[Record], totals: Totals) -> str:
    """Return one line of headline figures."""
    return f"Result({', '.join(f'{k}={v}' for k, v in _figures(records, totals).items())})"


def as_html(records: Sequence[Record], totals: Totals) -> str:
    """Return a table of headline figures and the curve of the headline metric over rounds.

    Args:
      records: lines of `rounds.jsonl`; rounds without an evaluation are left out of the curve.
      totals: of the same rounds.
    """
    cell = "text-align:left;padding:2px 12px"
    rows = "".join(
        f'<tr><th scope="row" style="{cell}">{html.escape(name.replace("_", " "))}</th>'
        f'<td style="{cell}">{html.escape(value)}</td></tr>'
        for name, value in _figures(records, totals).items()
    )
    return (
        '<div class="fedpeft-result" style="display:flex;flex-wrap:wrap;gap:16px;'
        f'align-items:center"><table style="color:inherit">{rows}</table>'
        f"{_curve(records, totals)}</div>"
    )


def _figures(records: Sequence[Record], totals: Totals) -> Mapping[str, str]:
    """Return the headline figures as text; epsilon is left out, because records hold no delta."""
    name, found = totals.metric.name, totals.last.get(totals.metric.name)
    figures = {
        "rounds": str(totals.rounds),
        name: _number(totals, found) if found is not None else "",
        f"best_{name}": _number(totals, totals.best) if totals.best is not None else "",
        "bytes_up": byte_words(totals.bytes_up),
        "bytes_down": byte_words(totals.bytes_down),
        "time": seconds_text(totals.seconds),
        "privacy": str(records[-1].get("privacy", "")) if records else "",
    }
    return {key: value for key, value in figures.items() if value}


def _number(totals: Totals, value: float) -> str:
    return f"{totals.metric.text(value)}{totals.metric.unit}"


def _curve(records: Sequence[Record], totals: Totals) -> str:
    """Draw the metric over rounds; empty without a finite value."""
    metric = totals.metric.name
    points = _points(records, metric)
    if not points:
        return ""
    low, high = min(v for _, v in points), max(v for _, v in points)
    first, last = points[0][0], points[-1][0]
    places = [(_across(n, first, last), _down(v, low, high)) for n, v in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    (begin, start), (end, final) = points[0], points[-1]
    said = (
        f"{metric} over rounds: {_number(totals, start)} after round {begin}, "
        f"{_number(totals, final)} after round {end}; lowest {_number(totals, low)}, "
        f"highest {_number(totals, high)}"
    )
    return (
        f'<svg role="img" aria-label="{html.escape(said)}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-size="12" fill="currentColor">'
        f"<title>{html.escape(said)}</title>{_axes(totals, (low, high), (first, last))}"
        f'<polyline points="{line}" fill="none" stroke="{LIGHT["s0"]}" stroke-width="2"/>'
        f'<circle cx="{places[-1][0]:.1f}" cy="{places[-1][1]:.1f}" r="3" fill="{LIGHT["s0"]}"/>'
        "</svg>"
    )


def _axes(totals: Totals, values: tuple[float, float], rounds: tuple[int, int]) -> str:
    """Draw two axes with labels at their ends."""
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    texts: list[tuple[float, float, str, str]] = [
        (_LEFT - 6, _down(value, *values) + 4, "end", _number(totals, value))
        for value in dict.fromkeys(values)
    ]
    texts += [
        (_across(number, *rounds), bottom + 15, "middle", str(number))
        for number in dict.fromkeys(rounds)
    ]
    texts.append(((_LEFT + right) / 2, _HEIGHT - 4, "middle", f"{totals.metric.name} over rounds"))
    named = "".join(
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'
        for x, y, anchor, text in texts
    )
    path = f"M{_LEFT} {_TOP - 6}V{bottom}H{right}"
    return f'<path d="{path}" fill="none" stroke="currentColor" opacity="0.4"/>{named}'


def _points(records: Sequence[Record], metric: str) -> Sequence[tuple[int, float]]:
    found = []
    for record in records:
        metrics = record["metrics"]
        value = metrics.get(metric) if isinstance(metrics, Mapping) else None
        if isinstance(value, float | int) and math.isfinite(value):
            found.append((int(str(record["round"])), float(value)))
    return found


def _across(number: int, first: int, last: int) -> float:
    share = (number - first) / (last - first) if last > first else 0.5
    return _LEFT + 8 + share * (_WIDTH - _RIGHT - _LEFT - 16)


def _down(value: float, low: float, high: float) -> float:
    share = (value - low) / (high - low) if high > low else 0.5
    return _HEIGHT - _BOTTOM - 8 - share * (_HEIGHT - _BOTTOM - _TOP - 8)
