"""The table of a panel as HTML: a row a group, sortable, with a fold under each.

A cell carries its figure twice: as text for people, and in `data-value` for sorting; a row and its
fold are one `<tbody>`, so that they move together.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedpeft.core.metrics import Metric
from fedpeft.pictures.style import strokes
from fedpeft.report.detail import detail
from fedpeft.results.runs import Group, Panel
from fedpeft.results.table import (
    Row,
    Spread,
    bytes_text,
    count_text,
    interval_text,
    metric_text,
    row_of,
    seconds_text,
    short_bytes,
)

__all__ = ["rows_table"]


@dataclass(frozen=True)
class _Cell:
    """What a cell says.

    Attributes:
      text: HTML.
      value: what it sorts by; None comes last.
    """

    text: str
    value: float | None


@dataclass(frozen=True)
class _Look:
    """How a row is shown: its colour and whether it is the best."""

    colour: str
    is_best: bool


def rows_table(panel: Panel, *, diagnostics: bool = False) -> str:
    """Write the table.

    Args:
      panel: its rows.
      diagnostics: whether folds show figures that are not private.
    """
    rows = [row_of(group) for group in panel.groups]
    marks = strokes([group.method for group in panel.groups])
    noun = panel.metric.title
    better = "descending" if panel.metric.better == "max" else "ascending"
    head = "".join(_heading(*each) for each in _heads(noun, better))
    best = _best_of(rows, panel.metric)
    body = "".join(
        _body(group, row, _Look(f"var(--{mark.slot})", row is best), diagnostics=diagnostics)
        for group, row, mark in zip(panel.groups, rows, marks, strict=True)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table, {html.escape(noun)}">'
        f'<table class="compare sorts"><caption>{_caption(panel, rows)}</caption>'
        f"<thead><tr>{head}</tr></thead>{body}</table></div>"
    )


def _heads(noun: str, better: str) -> list[tuple[str, str, str]]:
    """Heading, what it means, and which order a first click gives."""
    return [
        ("Row", "", "ascending"),
        (noun, "last round, mean ± std", better),
        ("95 % interval", "of the mean, over seeds", better),
        ("Range", "lowest to highest seed", better),
        ("Seeds", "finished of all", "descending"),
        (f"Best {noun.lower()}", "of any round", better),
        ("Bytes up", "all clients and rounds", "ascending"),
        ("Bytes down", "all clients and rounds", "ascending"),
        ("Payload", "a client, one way", "ascending"),
        ("Trained", "parameters, share", "ascending"),
        ("Time", "of a run", "ascending"),
        ("ε", "privacy", "ascending"),
    ]


def _heading(name: str, sub: str, first: str) -> str:
    text = f'<span class="name">{html.escape(name)}</span>{_sub(sub)}'
    return f'<th scope="col" data-first="{first}">{text}</th>'


def _caption(panel: Panel, rows: Sequence[Row]) -> str:
    noun = panel.metric.title
    said = f"{noun} after the last round is the result; the best round flatters."
    if not any(row.privacy_note for row in rows):
        said += " No differential privacy was used: ε is none."
    if any(row.seconds and len(row.seeds) > 1 for row in rows):
        said += " Time is the mean over seeds."
    return said


def _best_of(rows: Iterable[Row], metric: Metric) -> Row | None:
    """The finished row with the best last round; None if there is no single one."""
    known = [(metric.sign * row.last.mean, row) for row in rows if row.last and not row.status]
    top = max((value for value, _ in known), default=0.0)
    first = [row for value, row in known if value == top]
    return first[0] if len(known) > 1 and len(first) == 1 else None


def _body(group: Group, row: Row, look: _Look, *, diagnostics: bool) -> str:
    cells = _cells(group, row, look)
    line = "".join(
        f'<td data-value="{_plain(cell.value)}">{cell.text}</td>'
        if cell.value is not None
        else f"<td>{cell.text}</td>"
        for cell in cells
    )
    label = html.escape(row.label)
    said = [row.status, *(f"seed {each.seed}: {each.why}" for each in group.absent)]
    if row.status and group.absent:
        said = said[1:]
    status = "".join(
        f'<span class="status">{html.escape(_short(text))}</span>' for text in said if text
    )
    swatch = f'<span class="swatch" style="background:{look.colour}"></span>'
    return (
        f'<tbody><tr><th scope="row" data-value="{label}">{swatch}{label}{status}</th>{line}</tr>'
        f'<tr class="fold"><td colspan="{len(cells) + 1}">'
        f"{detail(group, diagnostics=diagnostics)}</td></tr></tbody>"
    )


def _short(text: str, most: int = 160) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _plain(value: float) -> str:
    return repr(int(value)) if value == int(value) else repr(float(value))


def _cells(group: Group, row: Row, look: _Look) -> list[_Cell]:
    metric = group.runs[0].metric
    last = metric_text(row.last, metric)
    sure = row.last.interval(metric) if row.last else None
    ends = (row.last.low, row.last.high) if row.last else None
    share = "" if row.share is None else f"{100 * row.share:.3g} %"
    best = f"round {row.best_round}" if row.best_round and len(row.seeds) == 1 else ""
    return [
        _Cell(f"<b>{last}</b>" if look.is_best else last, row.last.mean if row.last else None),
        _Cell(interval_text(sure, metric), sure[0] if sure else None),
        _Cell(interval_text(ends, metric), ends[0] if ends else None),
        _seeds(group, row),
        _Cell(metric_text(row.best, metric) + _sub(best), row.best.mean if row.best else None),
        _bytes(row.bytes_up),
        _bytes(row.bytes_down),
        _Cell(_bytes_of(row.payload), row.payload),
        _Cell(count_text(row.trained) + _sub(share), row.trained),
        _Cell(
            seconds_text(row.seconds.mean if row.seconds else None),
            row.seconds.mean if row.seconds else None,
        ),
        _epsilon(row),
    ]


def _seeds(group: Group, row: Row) -> _Cell:
    done = sum(run.summary is not None for run in group.runs)
    everyone = {int(run.settings.get("seed", 0)) for run in group.runs}
    count = len(everyone | {each.seed for each in group.absent})
    named = ", ".join(map(str, row.seeds))
    return _Cell(f"{done} of {count}{_sub(named)}", done)


def _bytes(sent: Spread | None) -> _Cell:
    if sent is None:
        return _Cell("–", None)
    what = _sub(short_bytes(sent.mean)) if sent.low == sent.high else _sub("mean; seeds differ")
    return _Cell(f"{count_text(sent.mean)} B{what}", sent.mean)


def _bytes_of(count: float | None) -> str:
    return "–" if count is None else f"{count_text(count)} B{_units(count)}"


def _units(count: float) -> str:
    return "".join(_sub(part) for part in bytes_text(count).split(" · "))


def _epsilon(row: Row) -> _Cell:
    spent = "none" if row.epsilon is None else f"{row.epsilon:.4g}"
    return _Cell(f"{spent}{_sub(row.privacy_note)}", row.epsilon)


def _sub(text: str) -> str:
    return f'<span class="sub">{html.escape(text)}</span>' if text else ""
