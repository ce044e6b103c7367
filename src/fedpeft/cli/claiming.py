"""`claims`: which claims of the paper hold on a finished grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fedpeft.cli.printing import say, show
from fedpeft.results.beds import read_gaps
from fedpeft.results.claims import ABSENT, Verdict, absent_words, by_bed, check_claims
from fedpeft.results.claims_grid import shadowed
from fedpeft.results.lines import read_runs
from fedpeft.results.paired import Comparison
from fedpeft.results.runs import Run


def claims_command(sweeps: Sequence[Path], gaps: Sequence[Path], *, as_json: bool) -> None:
    """Print a verdict on each claim and bed, with the comparison that supports it least."""
    measured = [read_gaps(file) for file in gaps]
    runs = read_runs(sweeps)
    verdicts = check_claims(runs, measured)
    _warn(shadowed(runs))
    show([verdict.as_json() for verdict in verdicts], _all_lines(verdicts), as_json=as_json)


def _all_lines(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Yield for each bed the claims that can be checked, and one sentence on the others."""
    beds = by_bed(verdicts)
    for number, (bed, found) in enumerate(beds.items()):
        if len(beds) > 1:
            yield f"{'' if number == 0 else chr(10)}bed: {bed}"
        for verdict in found:
            if verdict.verdict != ABSENT:
                yield from _lines(verdict)
        if others := absent_words(found):
            yield others


def _lines(verdict: Verdict) -> Iterator[str]:
    yield f"{verdict.number}  {verdict.verdict.upper():<16}  {verdict.claim}"
    if verdict.decisive is not None:
        yield f"   {_least(verdict, verdict.decisive)}"
        yield f"   data: {', '.join(verdict.sources)}{_analogue(verdict)}"
    for block, word in verdict.blocks.items():
        yield f"   {block}: {word}"


def _warn(pairs: Sequence[tuple[Run, Run]]) -> None:
    """Name the runs that are not counted because a later one replaces them."""
    for left_out, taken in pairs:
        say(
            f"note: {left_out.folder} is not counted: {taken.folder} has the same row and seed, "
            "is newer and gave another result. Name only sweeps that belong together",
            err=True,
        )


def _analogue(verdict: Verdict) -> str:
    """Return a note where a claim on the paper's data sets was checked on others."""
    small = verdict.number in (4, 5) and "digits" in verdict.sources
    return " (a small-scale analogue of the paper's Resisc45 and PCam)" if small else ""


def _least(verdict: Verdict, least: Comparison) -> str:
    low, high = least.interval
    interval = "unknown: one seed" if least.seeds < 2 else f"{low:+.4f} to {high:+.4f}"
    bound = f", may be {-least.tolerance:g}" if least.tolerance else ""
    needed = least.seeds_needed if least.verdict == "undecided" else None
    more = f"; about {needed} seeds would decide" if needed else ""
    items = ""
    if least.item_interval is not None:
        a, b = least.item_interval
        items = f"; {a:+.4f} to {b:+.4f} over draws of the {least.num_items:,} test items"
    of = sum(each.decides for each in verdict.comparisons)
    return (
        f"least of {of}: {least.what}: margin {least.margin:+.4f}{bound} "
        f"({verdict.unit}), 90 % interval {interval}, {least.seeds} seeds{more}{items}"
    )
