"""The page of a report: one HTML file that asks for nothing else.

    heading ── panel: table, two figures, settings ── partitions ── failures ── how to read ── setup

No script, no font, no address outside the file; light, dark, narrow and printed from one sheet of
styles.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedpeft.experiment.report_css import stylesheet
from fedpeft.experiment.report_data import Group, Panel, Run, flat_settings
from fedpeft.experiment.report_style import Picture, strokes
from fedpeft.experiment.report_table import (
    Row,
    Spread,
    bytes_text,
    count_text,
    metric_text,
    row_of,
    seconds_text,
)
from fedpeft.experiment.report_words import MEANINGS

__all__ = ["DrawnPanel", "DrawnPartition", "page"]

_OPTIONS = "tuning.options"


@dataclass(frozen=True)
class DrawnPanel:
    """A panel and its figures, each for a wide and for a narrow page.

    Attributes:
      panel: what they show.
      bytes: metric against bytes.
      rounds: metric against rounds.
      files: where the pictures stand beside the page; (name of the file, what it is).
      reached: what to say about a target, or "".
      time: metric against simulated time; None where no clock ran.
    """

    panel: Panel
    bytes: tuple[Picture, Picture]
    rounds: tuple[Picture, Picture]
    files: tuple[tuple[str, str], ...] = ()
    reached: str = ""
    time: tuple[Picture, Picture] | None = None


@dataclass(frozen=True)
class DrawnPartition:
    """A partition's picture, wide and narrow, what it says, and the runs that share it."""

    pictures: tuple[Picture, Picture]
    text: str
    runs: tuple[str, ...]


def page(title: str, panels: Sequence[DrawnPanel], partitions: Sequence[DrawnPartition]) -> str:
    """Write the whole page."""
    groups = [group for drawn in panels for group in drawn.panel.groups]
    runs = [run for group in groups for run in group.runs]
    parts = [
        _header(title, groups, runs),
        *(_panel(drawn) for drawn in panels),
        _partitions(partitions),
        _failures(groups),
        _meaning(panels),
        _setup(panels, runs),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{stylesheet()}</style>\n</head>\n<body>\n"
        f"<main>\n{''.join(parts)}</main>\n</body>\n</html>\n"
    )


def _header(title: str, groups: Sequence[Group], runs: Sequence[Run]) -> str:
    waiting = [run for run in runs if run.summary is None]
    seeds = sorted({int(run.settings.get("seed", 0)) for run in runs})
    lead = (
        f"{_plural(len(groups), 'configuration')}, {_plural(len(runs), 'run')}, "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}."
    )
    note = ""
    if waiting:
        note = (
            f'<p class="note">{_plural(len(waiting), "run")} not finished: figures are those of '
            "the rounds so far, curves end in a hollow dot.</p>"
        )
    return (
        f'<header><p class="kind">fedpeft report</p><h1>{html.escape(title)}</h1>'
        f'<p class="lead">{lead}</p>{note}</header>\n'
    )


def _panel(drawn: DrawnPanel) -> str:
    panel = drawn.panel
    name = f"{panel.source}, {panel.evaluated_on} set"
    noun = panel.metric.capitalize()
    files = " ".join(
        f'<a href="{html.escape(file)}">{html.escape(what)}</a>' for file, what in drawn.files
    )
    order = "Lower" if panel.metric == "perplexity" else "Higher"
    return (
        f"<section><h2>{html.escape(name)}</h2>{_table(panel)}"
        f'<p class="files">Files: {files}</p><div class="pair">'
        + _figure(
            drawn.bytes,
            f"<b>{noun} against bytes sent.</b> Both ways, all clients, as encoded, added up round "
            f"by round. {order} and further left is better. {html.escape(drawn.reached)}",
        )
        + _figure(
            drawn.rounds,
            f"<b>{noun} against rounds.</b> {_curve_note(panel)}",
        )
        + _time_figure(drawn, noun)
        + "</div></section>\n"
    )


def _time_figure(drawn: DrawnPanel, noun: str) -> str:
    if drawn.time is None:
        return ""
    return _figure(
        drawn.time,
        f"<b>{noun} against simulated time.</b> Seconds on the simulated clock: download, compute "
        "and upload of the clients, and waiting for them. Runs without that clock are left out.",
    )


def _curve_note(panel: Panel) -> str:
    if any(len(group.runs) > 1 for group in panel.groups):
        return "Lines are means over seeds; bands reach from the lowest seed to the highest."
    return "One seed a curve: differences of a few points may be chance."


def _figure(pictures: tuple[Picture, Picture], caption: str) -> str:
    wide, narrow = pictures
    return (
        f'<figure><div class="wide">{wide.inline}</div><div class="narrow">{narrow.inline}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(panel: Panel) -> str:
    rows = [row_of(group) for group in panel.groups]
    marks = strokes([group.method for group in panel.groups])
    private = any(row.epsilon is not None for row in rows)
    noun = panel.metric.capitalize()
    heads = [
        ("Method", ""),
        (noun, "last round"),
        (noun, "best round"),
        ("Trained", "parameters, share"),
        ("Payload", "a client, one way"),
        ("Encoded", "a message, up / down"),
        ("Total bytes", "both ways, all clients"),
        ("Time", ""),
        ("ε", "privacy"),
        ("Seeds", ""),
    ]
    head = "".join(f'<th scope="col">{a}{_sub(b)}</th>' for a, b in heads)
    best = _best_of(rows, panel.metric)
    body = "".join(
        _row(row, f"var(--{mark.slot})", panel.metric, is_best=row is best)
        for row, mark in zip(rows, marks, strict=True)
    )
    foot = "" if private else " No differential privacy was used: ε is none."
    return (
        f'<div class="scroll" tabindex="0"><table class="compare"><caption>{noun} after the last '
        f"round is the headline; the best round stands beside it.{foot}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _best_of(rows: Iterable[Row], metric: str) -> Row | None:
    """The finished row with the best last round; None if there is no single one."""
    sign = -1 if metric == "perplexity" else 1
    known = [(sign * row.last.mean, row) for row in rows if row.last and not row.status]
    top = max((value for value, _ in known), default=0.0)
    first = [row for value, row in known if value == top]
    return first[0] if len(known) > 1 and len(first) == 1 else None


def _row(row: Row, colour: str, metric: str, *, is_best: bool) -> str:
    status = f'<span class="status">{html.escape(row.status)}</span>' if row.status else ""
    last = metric_text(row.last, metric)
    share = "" if row.share is None else f"{100 * row.share:.3g} %"
    best = f"round {row.best_round}" if row.best_round else ""
    down = f"{count_text(row.encoded_down)} B"
    cells = [
        f"<b>{last}</b>" if is_best else last,
        metric_text(row.best, metric) + _sub(best if len(row.seeds) == 1 else ""),
        count_text(row.trained) + _sub(share),
        _bytes_cell(row.payload),
        f'{count_text(row.encoded_up)} B<span class="sub">{down}</span>',
        _bytes_cell(row.total_bytes.mean if row.total_bytes else None),
        _time(row.seconds),
        "none" if row.epsilon is None else f"{row.epsilon:.3g}",
        ", ".join(map(str, row.seeds)),
    ]
    line = "".join(f"<td>{cell}</td>" for cell in cells)
    swatch = f'<span class="swatch" style="background:{colour}"></span>'
    return f'<tr><th scope="row">{swatch}{html.escape(row.label)}{status}</th>{line}</tr>'


def _bytes_cell(count: float | None) -> str:
    return "–" if count is None else f"{count_text(count)} B{_sub(bytes_text(count))}"


def _time(seconds: Spread | None) -> str:
    return seconds_text(seconds.mean if seconds else None)


def _sub(text: str) -> str:
    return f'<span class="sub">{html.escape(text)}</span>' if text else ""


def _partitions(partitions: Sequence[DrawnPartition]) -> str:
    """Show the first few partitions, and fold the others away."""
    if not partitions:
        return ""
    figures = [
        _figure(
            drawn.pictures,
            f"<b>Which client holds what.</b> {html.escape(drawn.text)}. "
            f"Shared by {html.escape(_listed(drawn.runs))}.",
        )
        for drawn in partitions
    ]
    shown, folded = "".join(figures[:3]), "".join(figures[3:])
    more = f"<details><summary>More partitions</summary>{folded}</details>" if folded else ""
    return f"<section><h2>The partition</h2>{shown}{more}</section>\n"


def _failures(groups: Iterable[Group]) -> str:
    items = []
    for group in groups:
        for run in group.runs:
            failed = [(r["round"], c, w) for r in run.rounds for c, w in _failed(r)]
            if failed:
                number, client, why = failed[0]
                items.append(
                    f"<li><b>{html.escape(group.label)}</b>, seed {run.settings.get('seed')}: "
                    f"{_plural(len(failed), 'answer')} missing or refused; the first in round "
                    f"{number}, {html.escape(client)}: {html.escape(why)}</li>"
                )
    body = f"<ul>{''.join(items)}</ul>" if items else "<p>Every client that was asked answered.</p>"
    return f"<section><h2>Failures</h2>{body}</section>\n"


def _failed(record: Mapping[str, object]) -> list[tuple[str, str]]:
    failures = record.get("failures")
    return [(str(c), str(w)) for c, w in failures.items()] if isinstance(failures, Mapping) else []


def _meaning(panels: Sequence[DrawnPanel]) -> str:
    metrics = {drawn.panel.metric for drawn in panels}
    body = "".join(
        f"<dt>{term}</dt><dd>{text}</dd>"
        for term, text in MEANINGS.items()
        if term.lower() in metrics or term not in ("Accuracy", "Perplexity")
    )
    return f"<section><h2>What the figures mean</h2><dl>{body}</dl></section>\n"


def _setup(panels: Sequence[DrawnPanel], runs: Sequence[Run]) -> str:
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    common = [
        key
        for key in keys
        if len({str(run.settings.get(key)) for run in runs}) == 1 and runs[0].settings[key] != []
    ]
    folders = "".join(f"<li><code>{html.escape(str(run.folder))}</code></li>" for run in runs)
    return (
        f"<section><h2>Setup</h2>{_differing(panels)}"
        + _pairs("What is common", {key: runs[0].settings[key] for key in common})
        + _pairs("Environment", flat_settings(runs[0].environment))
        + f"<details><summary>Run folders</summary><ul>{folders}</ul></details></section>\n"
    )


def _differing(panels: Sequence[DrawnPanel]) -> str:
    """A table of the settings that differ; the options of a method share a column."""
    keys = dict.fromkeys(_column(key) for drawn in panels for key in drawn.panel.differing)
    if not keys:
        return ""
    head = "".join(f'<th scope="col">{html.escape(key)}</th>' for key in keys)
    body = "".join(
        f'<tr><th scope="row">{html.escape(group.label)}</th>'
        + "".join(f"<td>{_setting(group.runs[0], key)}</td>" for key in keys)
        + "</tr>"
        for drawn in panels
        for group in drawn.panel.groups
    )
    return (
        '<h3>What differs</h3><div class="scroll" tabindex="0"><table class="differs"><thead><tr>'
        f'<th scope="col">Configuration</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _column(key: str) -> str:
    return _OPTIONS if key.startswith(f"{_OPTIONS}.") else key


def _setting(run: Run, key: str) -> str:
    if key != _OPTIONS:
        return _value(run.settings.get(key))
    options = {name: v for name, v in run.settings.items() if _column(name) == _OPTIONS}
    texts = [f"{name.removeprefix(f'{_OPTIONS}.')} {_value(v)}" for name, v in options.items()]
    return ", ".join(texts) or "–"


def _pairs(title: str, values: Mapping[str, object]) -> str:
    rows = "".join(
        f"<div><dt>{html.escape(key)}</dt><dd>{_value(value)}</dd></div>"
        for key, value in values.items()
    )
    return f'<h3>{title}</h3><dl class="pairs">{rows or "<div>not recorded</div>"}</dl>'


def _value(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    return html.escape(str(value))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
