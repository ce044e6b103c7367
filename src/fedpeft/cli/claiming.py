"""`claims`: which claims of the paper hold on a finished grid."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import typer

from fedpeft.results.claims import Comparison, Verdict, check_claims
from fedpeft.results.claims_grid import shadowed
from fedpeft.results.runs import Run, find_runs, read_run

__all__ = ["claims_command"]


def claims_command(sweeps: Sequence[Path], *, as_json: bool) -> None:
    """Print a verdict on each claim, with the comparison that speaks least for it."""
    runs = [read_run(folder) for folder in find_runs(sweeps)]
    verdicts = check_claims(runs)
    _warn(shadowed(runs))
    if as_json:
        typer.echo(json.dumps([verdict.as_json() for verdict in verdicts]))
        return
    for verdict in verdicts:
        typer.echo(f"{verdict.number}  {verdict.verdict.upper():<16}  {verdict.claim}")
        if verdict.decisive is not None:
            typer.echo(f"   {_line(verdict, verdict.decisive)}")
            typer.echo(f"   data: {', '.join(verdict.sources)}{_analogue(verdict)}")
        for block, word in verdict.blocks.items():
            typer.echo(f"   {block}: {word}")


def _warn(pairs: Sequence[tuple[Run, Run]]) -> None:
    """Name runs that count for nothing, because another one stands in their place."""
    for left_out, taken in pairs:
        typer.echo(
            f"note: {left_out.folder} is not counted: {taken.folder} is of the same row and seed, "
            "came later and gave another result. Name the sweeps that belong together",
            err=True,
        )


def _analogue(verdict: Verdict) -> str:
    """Say where a claim on the paper's data sets was checked on others."""
    small = verdict.number in (4, 5) and "digits" in verdict.sources
    return " (a small-scale analogue of the paper's Resisc45 and PCam)" if small else ""


def _line(verdict: Verdict, least: Comparison) -> str:
    error = "unknown: one seed" if math.isnan(least.error) else f"{least.error:.4f}"
    count = len(verdict.comparisons)
    return (
        f"least of {count}: {least.what}: margin {least.margin:+.4f}, "
        f"standard error {error} ({verdict.unit})"
    )
