"""Put the verdicts on the paper's claims, on each test bed, into the documentation.

    experiments/results/BED.jsonl     runs of a bed, as `fedpeft sweep --results` writes them
    experiments/results/gap*.json     domain gaps, as `fedpeft gap` writes them; the sets that the
                                      protocol chose for its series count
    experiments/why.toml              paragraphs on claims that fail:  [BED] 1 = "..."
        -> docs/lab/results.md, docs/lab/results-rows.md, docs/lab/results/*.svg

Every figure of the pages is read from the files; a bed without rows is "not run yet".

    python scripts/write_results.py
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedpeft.core.text import byte_words
from fedpeft.report.comparisons import draw_comparisons
from fedpeft.results.beds import Gaps, read_gaps
from fedpeft.results.claims import ABSENT, CLAIMS, OVER_GAP, Verdict, by_bed, check_claims
from fedpeft.results.lines import read_lines
from fedpeft.results.paired import Comparison
from fedpeft.results.runs import Run, panels_of
from fedpeft.results.table import metric_text, row_of
from protocol import BEDS, GAP_SETS, settings_of

ROOT = Path(__file__).resolve().parent.parent

PLANNED: Mapping[str, tuple[int, ...]] = {
    "characters": (1, 2, 3, 6, 7, 8),
    "characters-hard": (1, 2, 3, 7, 8),
    "text": (1, 2, 3, 7, 8),
    "clothes": (1, 3, 6, 7, 8),
    "gap": (4, 5),
}
"""Results file, without its suffix -> the claims that the protocol gives its bed."""
_ANY = tuple(number for number in CLAIMS if number not in OVER_GAP)
_GAP = "gap"
_IN_SERIES = "characters"
"""The bed whose own rows are the gap series' too."""
_SEARCH = "search-"
"""How the names of files begin that hold searches of learning rates, on validation data."""
_MARKS = {
    "pass": "✓ pass",
    "equivalent": "≈ equivalent",
    "fail": "✗ fail",
    "undecided": "? undecided",
}
_NOT_YET = "not run yet"
_FEWEST_SEEDS = 10
"""Seeds that the protocol asks at least of a row that decides a claim."""


@dataclass(frozen=True)
class Column:
    """A test bed of the pages.

    Attributes:
      name: of its results file.
      claims: numbers of the claims that the protocol gives it.
      runs: its finished runs; () where it was not run yet.
      verdicts: number of a claim -> the verdict of its runs.
      expected: number of a claim -> its comparisons when all rows have run; {} where the protocol
        lists no rows.
      sets: number of data sets that a comparison is about when all rows have run.
    """

    name: str
    claims: tuple[int, ...]
    runs: tuple[Run, ...] = ()
    verdicts: Mapping[int, Verdict] = field(default_factory=dict)
    expected: Mapping[int, int] = field(default_factory=dict)
    sets: int = 1

    def word(self, number: int) -> str:
        """Return the verdict on a claim; "not run yet" without one, "" for no claim of the bed."""
        if number not in self.claims:
            return ""
        found = self.verdicts.get(number)
        return _NOT_YET if found is None or found.verdict == ABSENT else found.verdict

    def lacking(self, number: int) -> str:
        """Return what a verdict that was reached still lacks; "" for nothing."""
        decide = [each for each in self.verdicts[number].comparisons if each.decides]
        expected = self.expected.get(number, 0)
        seeds = min(each.seeds for each in decide)
        few = f"{seeds} of {_FEWEST_SEEDS} seeds" if seeds < _FEWEST_SEEDS else ""
        part = f"{len(decide)} of {expected} comparisons" if len(decide) < expected else ""
        used = len(self.verdicts[number].sources)
        sets = f"{used} of {self.sets} sets" if used < self.sets else ""
        return ", ".join(filter(None, [part, sets, few]))


def main() -> None:
    """Read the results files and write the pages with their pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--results", type=Path, default=ROOT / "experiments" / "results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "lab")
    options = parser.parse_args()
    write_pages(read_columns(options.results), read_why(options.results), options.docs)


def read_columns(results: Path, planned: Mapping[str, tuple[int, ...]] = PLANNED) -> list[Column]:
    """Read the beds of a folder of results files; those that are not planned come last.

    A file that is not planned and supports no claim alone, such as one of a gap series, is shown by
    its rows only: it has no claims.
    """
    files = [file for file in sorted(results.glob("*.jsonl")) if not file.stem.startswith(_SEARCH)]
    runs = {file.stem: tuple(read_lines(file).values()) for file in files}
    gaps = [_of_series(read_gaps(file)) for file in sorted(results.glob("gap*.json"))]
    names = [*planned, *(name for name in runs if name not in planned)]
    columns = []
    for name in names:
        claims, own = planned.get(name, _ANY), runs.get(name, ())
        if name == _GAP:
            everything = [run for some in runs.values() for run in some]
            columns += _gap_columns(everything, own, gaps, claims)
        elif not own:
            columns.append(Column(name, claims))
        else:
            columns += _bed_columns(name, own, claims)
    return columns


def _bed_columns(name: str, runs: Sequence[Run], claims: tuple[int, ...]) -> Iterator[Column]:
    beds = by_bed(check_claims(runs))
    for bed, found in beds.items():
        title = name if len(beds) == 1 else f"{name}: {bed}"
        verdicts = {each.number: each for each in found if each.number not in OVER_GAP}
        checked = any(each.comparisons for each in verdicts.values())
        wanted = claims if checked or name in PLANNED else ()
        yield Column(title, wanted, tuple(runs), verdicts, expected_of(name))


def _gap_columns(
    runs: Sequence[Run], own: tuple[Run, ...], gaps: Sequence[Gaps], claims: tuple[int, ...]
) -> Iterator[Column]:
    """Yield a column for each backbone with a series of measured gaps; one without, for none.

    The sets of a series are in any of the files; `own` are the runs of `gap.jsonl`.
    """
    beds = by_bed(check_claims(runs, gaps)) if gaps else {}
    series = {
        bed: {each.number: each for each in found}
        for bed, found in beds.items()
        if {each.number for each in found} == set(OVER_GAP)
    }
    expected, sets = expected_of(_GAP, gaps) if series else {}, len(GAP_SETS) + 1
    for bed, verdicts in series.items():
        yield Column(bed if len(series) > 1 else _GAP, claims, own, verdicts, expected, sets)
    if not series:
        yield Column(_GAP, claims, own)


def _of_series(gaps: Gaps) -> Gaps:
    """Keep the sets that the protocol chose for its series, from all that were measured."""
    kept = {name: gap for name, gap in gaps.distances.items() if name in (*GAP_SETS, _IN_SERIES)}
    return Gaps(gaps.model, kept)


def expected_of(name: str, gaps: Sequence[Gaps] = ()) -> dict[int, int]:
    """Return how many comparisons each claim has when all rows of a bed have run.

    Empty where the protocol lists no rows. With gaps, claims 4 and 5 on the series.
    """
    if name not in BEDS:
        return {}
    beds = [BEDS[name], *([BEDS[_IN_SERIES]] if gaps else [])]
    rounds = ({"round": 1, "bytes_up": 1, "bytes_down": 1, "metrics": {"accuracy": 0.5}},)
    runs = [
        Run(Path(name), settings_of(bed, row), rounds, {"accuracy": 0.5}, {})
        for bed in beds
        for table in bed.tables.values()
        for row in table
    ]
    return {
        each.number: sum(comparison.decides for comparison in each.comparisons)
        for each in check_claims(runs, gaps)
    }


def read_why(results: Path) -> Mapping[tuple[int, str], str]:
    """Read the paragraphs on claims that fail: (number, bed) -> text."""
    file = results.parent / "why.toml"
    table = tomllib.loads(file.read_text("utf-8")) if file.exists() else {}
    return {(int(n), bed): text for bed, some in table.items() for n, text in some.items()}


def write_pages(columns: Sequence[Column], why: Mapping[tuple[int, str], str], docs: Path) -> None:
    """Write `results.md`, `results-rows.md` and the pictures of `results/`."""
    folder = docs / "results"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("claim-*.svg"):
        old.unlink()
    judged = [column for column in columns if column.claims]
    sections = [_section(number, judged, why, folder) for number in CLAIMS]
    text = _PAGE.format(matrix="\n".join(_matrix(judged)), sections="\n\n".join(sections))
    (docs / "results.md").write_text(text, "utf-8")
    tables = "\n\n".join(_rows_of(column) for column in columns if column.runs)
    rows = _ROWS.format(tables=tables or "No bed was run yet.")
    (docs / "results-rows.md").write_text(rows, "utf-8")


def _matrix(columns: Sequence[Column]) -> Iterator[str]:
    yield "| claim | " + " | ".join(column.name for column in columns) + " | holds |"
    yield "| --- |" + " --- |" * (len(columns) + 1)
    for number, (claim, _, _) in CLAIMS.items():
        words = [column.word(number) for column in columns]
        cells = [_cell(column, number) for column in columns]
        shown = f"[{number}](#claim-{number}). {claim}"
        yield f"| {shown} | " + " | ".join(cells) + f" | **{holds(words)}** |"


def _cell(column: Column, number: int) -> str:
    word = column.word(number)
    so_far = ", so far" if _is_checked(column, number) and column.lacking(number) else ""
    return _MARKS.get(word, word or "–") + so_far


def holds(words: Sequence[str]) -> str:
    """Return where a claim holds, from its verdicts: everywhere, nowhere, or what else is known."""
    known = [word for word in words if word]
    ran = [word for word in known if word != _NOT_YET]
    good = sum(word in ("pass", "equivalent") for word in ran)
    bad = ran.count("fail")
    if not ran:
        return _NOT_YET if known else "–"
    if good and bad:
        return "depends on the bed"
    if good == len(ran):
        return "everywhere" if len(ran) == len(known) else "wherever it was run"
    if bad == len(ran):
        return "nowhere" if len(ran) == len(known) else "nowhere that it was run"
    some = f"on {good} of {len(ran)}" if good else f"fails on {bad} of {len(ran)}" if bad else ""
    return f"{some}, else open" if some else "open"


def _section(
    number: int, columns: Sequence[Column], why: Mapping[tuple[int, str], str], folder: Path
) -> str:
    claim, unit, _ = CLAIMS[number]
    parts = [f"## Claim {number}", f"{claim}.", "\n".join(_table(number, columns, folder))]
    found = [(column, column.verdicts[number]) for column in columns if _is_checked(column, number)]
    least = [(column.name, each.decisive) for column, each in found if each.decisive is not None]
    if least:
        lines = [(name, comparison) for name, comparison in least if comparison is not None]
        title = f"Claim {number}: the least favourable comparison on each bed"
        _write(folder / f"claim-{number}.svg", title, lines, unit)
        parts.append(f"![{title}](results/claim-{number}.svg)")
    for column, each in found:
        if each.verdict == "fail":
            text = why.get((number, column.name), "No run explains it yet.")
            parts.append(f"*Why it fails on {column.name}.* {text.strip()}")
        if each.blocks:
            blocks = "; ".join(f"{block}: {word}" for block, word in each.blocks.items())
            parts.append(f"On {column.name}: {blocks}.")
    return "\n\n".join(parts)


def _is_checked(column: Column, number: int) -> bool:
    return column.word(number) not in ("", _NOT_YET)


def _table(number: int, columns: Sequence[Column], folder: Path) -> Iterator[str]:
    yield (
        "| bed | verdict | effect | over seeds | over test items | seeds | would take "
        "| the least favourable of |"
    )
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |"
    for column in columns:
        word = column.word(number)
        if word == _NOT_YET:
            yield f"| {column.name} | {_NOT_YET} | – | – | – | – | – | – |"
        elif word:
            yield _line(number, column, column.verdicts[number], folder)


def _line(number: int, column: Column, verdict: Verdict, folder: Path) -> str:
    least = verdict.decisive
    assert least is not None, "a claim that was checked has a comparison"
    name = f"claim-{number}-{_file_name(column.name)}.svg"
    lines = [(each.what, each) for each in verdict.comparisons]
    _write(folder / name, f"Claim {number} on {column.name}: all comparisons", lines, verdict.unit)
    lacks = column.lacking(number)
    deciding = sum(each.decides for each in verdict.comparisons)
    cells = (
        column.name,
        f"**{_MARKS[verdict.verdict]}**" + (f", so far: {lacks}" if lacks else ""),
        f"{least.margin:+.3f}" + (f" (may be −{least.tolerance:g})" if least.tolerance else ""),
        _ends(least.interval) if least.seeds > 1 else "one seed",
        "–" if least.item_interval is None else _ends(least.item_interval),
        str(least.seeds),
        _needed(least),
        f"[{deciding}](results/{name}): {least.what}",
    )
    return "| " + " | ".join(cells) + " |"


def _needed(found: Comparison) -> str:
    if found.verdict != "undecided":
        return "–"
    needed = "over 10,000" if found.seeds_needed is None else f"{found.seeds_needed:,}"
    known = found.seeds > 1
    return f"{needed} (these find {found.smallest_effect:.3f})" if known else needed


def _ends(interval: tuple[float, float]) -> str:
    return f"{interval[0]:+.3f} to {interval[1]:+.3f}"


def _file_name(name: str) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)
    return "-".join(filter(None, kept.split("-")))


def _write(file: Path, title: str, lines: Sequence[tuple[str, Comparison]], unit: str) -> None:
    file.write_text(draw_comparisons(title, lines, unit).svg, "utf-8")


def _rows_of(column: Column) -> str:
    parts = [f"## {column.name}"]
    for panel in panels_of(column.runs):
        rows = [
            f"{panel.source}, {panel.evaluated_on} set:",
            "",
            f"| row | {panel.metric.name} | seeds | trained | of all | a message | both ways |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for group in panel.groups:
            row = row_of(group)
            share = "–" if row.share is None else f"{100 * row.share:.3g} %"
            trained = "–" if row.trained is None else f"{row.trained:,}"
            total = row.total_bytes.mean if row.total_bytes else None
            sizes = ("–" if size is None else byte_words(size) for size in (row.payload, total))
            cells = (row.label, metric_text(row.last, panel.metric), str(len(row.seeds)))
            rows.append("| " + " | ".join((*cells, trained, share, *sizes)) + " |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


_PAGE = """# Results

The paper's eight claims on each [test bed](test-beds.md), by the rules of the protocol.
A claim passes if every one of its comparisons is above its bound by a one-sided t test over paired
seeds at 0.05, fails if one is below it after Holm's correction, is equivalent where "comparable"
holds both ways, and is undecided otherwise.
This page is written by `python scripts/write_results.py` from the files of `experiments/results`;
`fedpeft claims FILE` prints the verdicts of one.
[All rows](results-rows.md) have a page of their own; so have the [digits](results-digits.md), on
which most methods end within a point of each other.

{matrix}

"–" where the protocol gives a bed no such claim; "so far" where rows or seeds of it are missing.
Small models on small pictures and texts: no evidence for or against the paper's own figures.

In the tables below, the effect is the margin of the least favourable comparison, with its 90 %
intervals: over seeds, which draw partition, cohorts, head and order; and over draws of the test
items, which say what another test set of the same size would give with the same seeds.
The second decides nothing, and margins of bytes have none.
"Would take" is the number of seeds that would decide a margin and spread like these, and the
smallest distance from the bound that the present ones find with a probability of 0.8.
The number in the last column leads to the picture of all comparisons.

{sections}
"""

_ROWS = """# Rows of the results

Mean ± sample standard deviation over seeds, after the last round.
This page is written by `python scripts/write_results.py`.
The bytes are those of one message (theory) and of a whole run as encoded, both ways.

{tables}
"""


if __name__ == "__main__":
    main()
