"""The page of a report: its content, and the filters of its template.

    Page ──page.html.jinja, page.css, page.js──> one HTML file

All markup is in the template, which escapes everything that comes from runs.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from fedpeft.core.metrics import Metric
from fedpeft.core.templates import read_template
from fedpeft.core.text import dotted
from fedpeft.pictures.style import DARK, LIGHT, Picture, strokes
from fedpeft.report.detail import commands, configuration, diagnosed, of_clients
from fedpeft.report.sentences import claims_words, leader, listed, worth
from fedpeft.results.claims import Verdict, absent_words, by_bed
from fedpeft.results.grid import Grid
from fedpeft.results.paired import Comparison
from fedpeft.results.runs import Group, Panel, Run
from fedpeft.results.table import TEXTS, Row, as_csv

_OPTIONS = "tuning.options"


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
      what: its part of the file names; "" if it is not written to files.
      pictures: for a wide and for a narrow page, or one for both.
      caption: one or more sentences.
      heading: printed before the caption, in bold.
      spans: whether it takes the whole width of the page.
    """

    what: str
    pictures: tuple[Picture, ...]
    caption: str
    heading: str = ""
    spans: bool = False


@dataclass(frozen=True)
class DrawnPanel:
    """A panel and its figures.

    Attributes:
      panel: the rows of the figures.
      figures: drawn side by side if there is room.
      folded: curves of single settings, as (setting, its figures).
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
class Page:
    """The content of a page.

    Attributes:
      title: its heading.
      grids: in the order in which they were requested.
      partitions: the partitions of all grids; some have no picture.
      verdicts: on the paper's claims; () if there is nothing to compare.
      diagnostics: whether measurements that are not private are shown.
    """

    title: str
    grids: tuple[DrawnGrid, ...]
    partitions: tuple[Figure, ...]
    verdicts: tuple[Verdict, ...] = ()
    diagnostics: bool = False

    @property
    def panels(self) -> list[Panel]:
        """The panels of all grids."""
        return [panel for drawn in self.grids for panel in drawn.grid.panels]

    @property
    def groups(self) -> list[Group]:
        """The rows of all grids."""
        return [group for panel in self.panels for group in panel.groups]

    @property
    def runs(self) -> list[Run]:
        """The runs of all grids."""
        return [run for group in self.groups for run in group.runs]

    @property
    def failed(self) -> list[tuple[Group, Run]]:
        """The runs in which replies were missing or refused, with their rows."""
        return [(group, run) for group in self.groups for run in group.runs if run.failures]

    @property
    def summary(self) -> list[str]:
        """Sentences on the best row of each panel and the number of claims that pass."""
        found = [
            leader(panel, grid.name if len(grid.panels) == 1 else f"{grid.name}, {panel.source}")
            for grid in (drawn.grid for drawn in self.grids)
            for panel in grid.panels
        ]
        return [sentence for sentence in (*found, claims_words(self.verdicts)) if sentence]

    @property
    def common(self) -> dict[str, object]:
        """The settings that all runs share."""
        first = self.runs[0].settings if self.runs else {}
        return {
            key: value
            for key, value in first.items()
            if value != [] and {str(run.settings.get(key)) for run in self.runs} == {str(value)}
        }

    @property
    def environment(self) -> dict[str, object]:
        """Versions and hardware of the first run, by dotted key."""
        found = self.runs[0].environment if self.runs else {}
        return dotted({key: value for key, value in found.items() if key != "metric"})

    @property
    def differing(self) -> list[str]:
        """The settings that differ inside a panel; the options of a method count as one."""
        return list(dict.fromkeys(_column(key) for panel in self.panels for key in panel.differing))


def html_of(page: Page) -> str:
    """Return the whole page as HTML."""
    from markupsafe import Markup

    ids = count()
    template = read_template(Path(__file__).parent / "page.html.jinja", _FILTERS, markup=True)
    text = template.render(
        page=page,
        light=LIGHT,
        dark=DARK,
        inline=lambda picture: Markup(picture.inline(f"p{next(ids)}")),
    )
    return text.strip() + "\n"


def _best_of(rows: Iterable[Row], metric: Metric) -> Row | None:
    """Return the finished row with the best last round; None if there is no single best."""
    known = [(metric.sign * row.last.mean, row) for row in rows if row.last and not row.status]
    top = max((value for value, _ in known), default=0.0)
    first = [row for value, row in known if value == top]
    return first[0] if len(known) > 1 and len(first) == 1 else None


def _plain(value: float) -> str:
    return repr(int(value)) if value == int(value) else repr(float(value))


def _margin(found: Comparison) -> str:
    bound = f" (may be −{found.tolerance:g})" if found.tolerance else ""
    return f"{_signed(found.margin)}{bound}"


def _interval(found: Comparison) -> str:
    if found.seeds < 2:
        return "unknown: one seed"
    return " to ".join(_signed(end) for end in found.interval)


def _seeds(found: Comparison) -> str:
    needed = found.seeds_needed if found.verdict == "undecided" else None
    return f"{found.seeds} seeds" + (f"; {needed} would decide" if needed else "")


def _items(found: Comparison) -> str:
    if found.item_interval is None:
        return ""
    ends = " to ".join(_signed(end) for end in found.item_interval)
    return f"over {found.num_items:,} test items: {ends}"


def _beds(verdicts: Sequence[Verdict]) -> list[tuple[str, list[Verdict]]]:
    return list(by_bed(verdicts).items())


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _column(key: str) -> str:
    return _OPTIONS if key.startswith(f"{_OPTIONS}.") else key


def _setting_of(run: Run, key: str) -> str:
    if key != _OPTIONS:
        return _setting(run.settings.get(key))
    options = {name: v for name, v in run.settings.items() if _column(name) == _OPTIONS}
    texts = [f"{name.removeprefix(f'{_OPTIONS}.')} {_setting(v)}" for name, v in options.items()]
    return ", ".join(texts) or "–"


def _setting(value: object) -> str:
    if value is None:
        return "–"
    return str(value).lower() if isinstance(value, bool) else str(value)


_FILTERS: Mapping[str, Callable[..., object]] = {
    **TEXTS,
    "absent": absent_words,
    "beds": _beds,
    "best_of": _best_of,
    "commands": commands,
    "configuration": configuration,
    "csv_base64": lambda panel: base64.b64encode(as_csv([panel]).encode()).decode(),
    "diagnosed": diagnosed,
    "of_clients": of_clients,
    "interval": _interval,
    "over_items": _items,
    "listed": listed,
    "margin": _margin,
    "plain": _plain,
    "plural": lambda number, noun: f"{number} {noun}{'' if number == 1 else 's'}",
    "seeds": _seeds,
    "setting": _setting,
    "setting_of": _setting_of,
    "short": lambda text: text if len(text) <= 160 else f"{text[:159]}…",
    "strokes": strokes,
    "variables": lambda colours: " ".join(f"--{name}: {c};" for name, c in colours.items()),
    "worth": worth,
}
"""The functions that the template calls, by name."""
