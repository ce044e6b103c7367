"""`claims`: which claims of the paper hold on a finished grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fedpeft.cli.printing import say, show
from fedpeft.results.claims import ABSENT, Verdict, absent_words, check_claims
from fedpeft.results.claims_grid import shadowed
from fedpeft.results.lines import read_runs
from fedpeft.results.paired import Comparison
from fedpeft.results.runs import Run


def claims_command(sweeps: Sequence[Path], *, as_json: bool) -> None:
    """Print a verdict on each claim, with the comparison that supports it least."""
    runs = read_runs(sweeps)
    verdicts = check_claims(runs)
    _warn(shadowed(runs))
    show([verdict.as_json() for verdict in verdicts], _all_lines(verdicts), as_json=as_json)


def _all_lines(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Yield the claims that can be checked, and one sentence on the others."""
    for verdict in verdicts:
        if verdict.verdict != ABSENT:
            yield from _lines(verdict)
    if others := absent_words(verdicts):
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
    return (
        f"least of {len(verdict.comparisons)}: {least.what}: margin {least.margin:+.4f}{bound} "
        f"({verdict.unit}), 90 % interval {interval}, {least.seeds} seeds{more}"
    )
