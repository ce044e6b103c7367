"""The page of a report: one HTML file that asks for nothing else.

    heading ── contents ── claims ── grid: table, figures ── partitions ── failures ── setup

No font, no address outside the file, and one script that sorts the tables; light, dark, narrow and
printed from one sheet of styles.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedpeft.pictures.style import Picture
from fedpeft.report.claims import claims_section, claims_words
from fedpeft.report.css import stylesheet
from fedpeft.report.rows import rows_table
from fedpeft.report.script import SCRIPT
from fedpeft.report.summary import leader, privacy_paragraph
from fedpeft.report.words import MEANINGS
from fedpeft.results.claims import Verdict
from fedpeft.results.grid import Grid
from fedpeft.results.runs import Group, Panel, Run, flat_settings
from fedpeft.results.table import as_csv

__all__ = ["DrawnGrid", "DrawnPanel", "DrawnPartition", "Figure", "Page", "page"]

_OPTIONS = "tuning.options"


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
      pictures: for a wide and for a narrow page; one for both.
      caption: HTML.
      spans: whether it takes the whole width.
    """

    pictures: tuple[Picture, ...]
    caption: str
    spans: bool = False


@dataclass(frozen=True)
class DrawnPanel:
    """A panel and its figures.

    Attributes:
      panel: what they show.
      figures: side by side where there is room.
      folded: curves of single settings; (setting, its figures).
    """

    panel: Panel
    figures: tuple[Figure, ...]
    folded: tuple[tuple[str, tuple[Figure, ...]], ...] = ()


@dataclass(frozen=True)
class DrawnGrid:
    """A grid and its panels."""

    grid: Grid
    panels: tuple[DrawnPanel, ...]


@dataclass(frozen=True)
class DrawnPartition:
    """A partition's pictures (none: the words are enough), what it says, and who shares it."""

    pictures: tuple[Picture, ...]
    text: str
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """What a page is made of.

    Attributes:
      title: its heading.
      grids: in the order in which they were asked for.
      partitions: of all of them.
      verdicts: on the paper's claims; () where there is nothing to compare.
      diagnostics: whether figures that are not private are shown.
    """

    title: str
    grids: tuple[DrawnGrid, ...]
    partitions: tuple[DrawnPartition, ...]
    verdicts: tuple[Verdict, ...] = ()
    diagnostics: bool = False


def page(told: Page) -> str:
    """Write the whole page."""
    panels = [drawn for grid in told.grids for drawn in grid.panels]
    groups = [group for grid in told.grids for group in grid.grid.groups]
    runs = [run for group in groups for run in group.runs]
    parts = [
        _header(told, groups, runs),
        _contents(told),
        claims_section(told.verdicts) if told.verdicts else "",
        *(_grid(drawn, index, told) for index, drawn in enumerate(told.grids)),
        _partitions(told.partitions),
        _failures(groups),
        _meaning(panels),
        _setup(panels, runs),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(told.title)}</title>\n<style>\n{stylesheet()}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(parts)}</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _header(told: Page, groups: Sequence[Group], runs: Sequence[Run]) -> str:
    waiting = [run for run in runs if run.summary is None]
    seeds = sorted({int(run.settings.get("seed", 0)) for run in runs})
    models = list(dict.fromkeys(str(run.settings.get("model.name", "?")) for run in runs))
    lead = (
        f"{_plural(len(groups), 'configuration')}, {_plural(len(runs), 'run')}, "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}; "
        f"{'model' if len(models) == 1 else 'models'} {_listed(models)}."
    )
    note = ""
    if waiting:
        note = (
            f'<p class="note">{_plural(len(waiting), "run")} not finished: they count in no mean '
            "as long as another seed of their row has finished; a row without a finished run shows "
            "the rounds so far, and its curve ends in a hollow dot.</p>"
        )
    found = [leader(panel, _name(grid, panel)) for grid in told.grids for panel in grid.grid.panels]
    items = [html.escape(text) for text in [*found, claims_words(told.verdicts)] if text]
    summary = f'<ul class="summary">{"".join(f"<li>{i}</li>" for i in items)}</ul>' if items else ""
    return (
        f'<header><p class="kind">fedpeft report</p><h1>{html.escape(told.title)}</h1>'
        f'<p class="lead">{html.escape(lead)}</p>{summary}{note}</header>\n'
    )


def _name(drawn: DrawnGrid, panel: Panel) -> str:
    grid = drawn.grid
    return grid.name if len(grid.panels) == 1 else f"{grid.name}, {panel.source}"


def _contents(told: Page) -> str:
    links = [("claims", "The claims of the paper")] if told.verdicts else []
    links += [(f"grid-{i}", drawn.grid.name) for i, drawn in enumerate(told.grids)]
    links += [("partition", "The partition")] if told.partitions else []
    links += [("failures", "Failures"), ("meaning", "What the figures mean"), ("setup", "Setup")]
    items = "".join(f'<li><a href="#{at}">{html.escape(text)}</a></li>' for at, text in links)
    return f'<nav aria-label="Contents"><h2>Contents</h2><ol>{items}</ol></nav>\n'


def _grid(drawn: DrawnGrid, index: int, told: Page) -> str:
    grid = drawn.grid
    body = "".join(
        _panel(panel, alone=len(drawn.panels) == 1, diagnostics=told.diagnostics)
        for panel in drawn.panels
    )
    lost = "".join(
        f"<li><b>{html.escape(row.label)}</b>: "
        + html.escape("; ".join(f"seed {each.seed} {each.why}" for each in row.absent))
        + "</li>"
        for row in grid.lost
    )
    missing = f"<h3>Rows without any run</h3><ul>{lost}</ul>" if lost else ""
    return (
        f'<section id="grid-{index}"><h2>{html.escape(grid.name)}</h2>{body}{missing}</section>\n'
    )


def _panel(drawn: DrawnPanel, *, alone: bool, diagnostics: bool) -> str:
    panel = drawn.panel
    name = html.escape(f"{panel.source}, {panel.evaluated_on} set")
    figures = "".join(map(_figure, drawn.figures))
    data = base64.b64encode(as_csv([panel]).encode()).decode()
    return (
        f"{f'<p class=lead>Data: {name}.</p>' if alone else f'<h3>{name}</h3>'}"
        f"{privacy_paragraph(panel)}{rows_table(panel, diagnostics=diagnostics)}"
        f'<p class="files"><a download="table.csv" href="data:text/csv;base64,{data}">'
        "This table as CSV, with full precision</a></p>"
        f'<div class="pair">{figures}</div>{_folded(drawn)}'
    )


def _folded(drawn: DrawnPanel) -> str:
    if not drawn.folded:
        return ""
    parts = "".join(
        f'<h4>{html.escape(name)}</h4><div class="pair">{"".join(map(_figure, figures))}</div>'
        for name, figures in drawn.folded
    )
    return f"<details><summary>Curves for each setting</summary>{parts}</details>"


def _figure(figure: Figure) -> str:
    if len(figure.pictures) == 1:
        shown = f'<div class="both">{figure.pictures[0].inline}</div>'
    else:
        wide, narrow = figure.pictures
        shown = f'<div class="wide">{wide.inline}</div><div class="narrow">{narrow.inline}</div>'
    spans = ' class="spans"' if figure.spans else ""
    return f"<figure{spans}>{shown}<figcaption>{figure.caption}</figcaption></figure>"


def _partitions(partitions: Sequence[DrawnPartition]) -> str:
    """Show the first few partitions, and fold the others away."""
    if not partitions:
        return ""
    figures = [
        _figure(
            Figure(
                drawn.pictures,
                f"<b>Which client holds what.</b> {html.escape(drawn.text)}. "
                f"Shared by {html.escape(_listed(drawn.runs))}.",
            )
        )
        for drawn in partitions
        if drawn.pictures
    ]
    others = "".join(
        f"<li>{html.escape(drawn.text)}: {html.escape(_listed(drawn.runs))}</li>"
        for drawn in partitions
        if not drawn.pictures
    )
    more = f"<details><summary>Other partitions</summary><ul>{others}</ul></details>"
    return (
        f'<section id="partition"><h2>The partition</h2>{"".join(figures)}'
        f"{more if others else ''}</section>\n"
    )


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
    return f'<section id="failures"><h2>Failures</h2>{body}</section>\n'


def _failed(record: Mapping[str, object]) -> list[tuple[str, str]]:
    failures = record.get("failures")
    return [(str(c), str(w)) for c, w in failures.items()] if isinstance(failures, Mapping) else []


def _meaning(panels: Sequence[DrawnPanel]) -> str:
    metrics = dict.fromkeys(drawn.panel.metric for drawn in panels)
    shown = {html.escape(m.title): html.escape(m.about, quote=False) for m in metrics if m.about}
    body = "".join(
        f"<dt>{term}</dt><dd>{text}</dd>" for term, text in {**shown, **MEANINGS}.items()
    )
    return f'<section id="meaning"><h2>What the figures mean</h2><dl>{body}</dl></section>\n'


def _setup(panels: Sequence[DrawnPanel], runs: Sequence[Run]) -> str:
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    common = [
        key
        for key in keys
        if len({str(run.settings.get(key)) for run in runs}) == 1 and runs[0].settings[key] != []
    ]
    found = runs[0].environment if runs else {}
    environment = {key: value for key, value in found.items() if key != "metric"}
    folders = "".join(f"<li><code>{html.escape(str(run.folder))}</code></li>" for run in runs)
    return (
        f'<section id="setup"><h2>Setup</h2>{_differing(panels)}'
        + _pairs("What is common", {key: runs[0].settings[key] for key in common})
        + _pairs("Environment", flat_settings(environment))
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
