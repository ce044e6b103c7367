"""The comparisons of each claim: which rows of a bed, or of a series of beds, are set side by side.

Margins are in accuracy, or in powers of ten of bytes; above 0 they support the claim. Cells with
privacy stand in the comparisons of claim 7 alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from fedpeft.results.beds import Bed, Series
from fedpeft.results.claims_grid import (
    NO_GUARANTEE,
    SMALL,
    Cell,
    alike,
    name_of,
    over_seeds,
    paired,
    score,
    weighted,
)
from fedpeft.results.over_gap import over_gap
from fedpeft.results.paired import Comparison
from fedpeft.results.runs import Run

CLOSE = 0.02
"""The accuracy below full fine-tuning that still counts as comparable."""
_LOG_TEN = 1.0


def beats_matched(bed: Bed) -> Iterator[Comparison]:
    """Compare each variant with the rows of its table that cost as few bytes: claim 1."""
    for cell, others in _main(bed):
        for other in others:
            fewer = other.role == "full" and other.cohort < cell.cohort
            if fewer or other.role in (SMALL, "head"):
                yield from paired(bed.grid, cell, other)


def full_needs_more(bed: Bed) -> Iterator[Comparison]:
    """Yield log10 of (bytes of full / bytes of the variant) - 1, to the variant's last accuracy.

    Full is the cheapest row that reaches it. Where none does, all bytes of the row that sends most
    stand for it: fewer than it takes.
    """
    for cell, others in _main(bed):
        fulls = [bed.grid[other] for other in others if other.role == "full"]
        margins = []
        for seed, run in bed.grid[cell].items():
            target, rivals = score(run), [full[seed] for full in fulls if seed in full]
            if rivals:
                needed = min(
                    (_bytes_to(full, target) for full in rivals if _reaches(full, target)),
                    default=max(full.curve()[-1][1] for full in rivals),
                )
                margins.append(math.log10(needed / _bytes_to(run, target)) - _LOG_TEN)
        if margins:
            what = f"bytes of full to reach {name_of(cell)}, over 10 times"
            yield Comparison(what, tuple(margins), sources=(cell.source,))


def _reaches(run: Run, target: float) -> bool:
    return any(score >= target for _, _, score in run.curve())


def bias_is_cheapest(bed: Bed) -> Iterator[Comparison]:
    """Yield log10 of (bytes of another variant / bytes of bias), to the lower last accuracy."""

    def margin(bias: Run, other: Run) -> float:
        target = min(score(bias), score(other))
        return math.log10(_bytes_to(other, target) / _bytes_to(bias, target))

    for cell, others in _main(bed):
        for other in others:
            same = other.role in bed.variants and other.cohort == cell.cohort
            if cell.role == "bias" and same:
                what = f"bytes of {name_of(other)} over those of bias"
                yield from over_seeds(bed.grid, (cell, other), margin, what)


def full_falls_behind(series: Series) -> Iterator[Comparison]:
    """Compare the lead of each variant over full fine-tuning on near and far data: claim 4."""
    for name in series.beds[0].variants:
        yield from over_gap(series, name, "full")


def prompt_is_robust(series: Series) -> Iterator[Comparison]:
    """Compare the lead of prompt over each other method on near and far data: claim 5."""
    for name in ("full", "bias", "adapter"):
        yield from over_gap(series, "prompt", name)


def comparable(bed: Bed) -> Iterator[Comparison]:
    """Compare each variant with full in each cell of the table of clients and participants."""
    pairs = [(a, b) for a, b in _at_one_cohort(bed) if b.role == "full" and a.budget is None]
    if len({(a.clients, a.cohort, a.scheme) for a, _ in pairs}) > 1:
        for a, b in pairs:
            yield from paired(bed.grid, a, b, CLOSE)


def few_samples(bed: Bed) -> Iterator[Comparison]:
    """Compare each variant with full and head at each budget: claim 8."""
    for a, b in _at_one_cohort(bed):
        if b.role in ("full", "head") and a.budget is not None:
            yield from paired(bed.grid, a, b)


def full_loses_most(bed: Bed) -> Iterator[Comparison]:
    """Check in each privacy mode that each variant ends above full, and that full drops more.

    A drop is measured from the same run without privacy; without such runs, only the last
    accuracies are compared. Modes without a guarantee decide nothing.
    """
    for cell in bed.grid:
        full = replace(cell, role="full")
        if cell.privacy and cell.role in bed.variants and full in bed.grid:
            open_cell, open_full = replace(cell, privacy=""), replace(full, privacy="")
            drops = [(1, cell), (-1, full), (-1, open_cell), (1, open_full)]
            what = f"drop of {name_of(full)} less that of {cell.role}"
            found = (*paired(bed.grid, cell, full), *weighted(bed.grid, drops, what))
            decides = not cell.privacy.startswith(NO_GUARANTEE)
            for each in found:
                what = f"{each.what}, {cell.privacy}"
                yield replace(each, what=what, block=cell.privacy, decides=decides)


def _main(bed: Bed) -> Iterator[tuple[Cell, list[Cell]]]:
    """Pair each variant of a communication table with the other rows of its table.

    Such a table has rows of full fine-tuning with one client a round and with more; its variants
    are those of its largest cohort that is not all clients.
    """
    tables = dict[Cell, list[Cell]]()
    for cell in bed.grid:
        if cell.budget is None and not cell.privacy:
            tables.setdefault(replace(cell, role="", cohort=0, model="", options=""), []).append(
                cell
            )
    for cells in tables.values():
        cohorts = {cell.cohort for cell in cells if cell.role == "full"}
        usual = [
            cell.cohort
            for cell in cells
            if cell.role in bed.variants and cell.cohort in cohorts - {1, cell.clients}
        ]
        if 1 in cohorts and usual:
            for cell in cells:
                if cell.role in bed.variants and cell.cohort == max(usual):
                    yield cell, [other for other in cells if other != cell]


def _bytes_to(run: Run, target: float) -> float:
    """Return the bytes sent until a run first reaches a score; all bytes if it never does."""
    curve = run.curve()
    return next((sent for _, sent, score in curve if score >= target), curve[-1][1])


def _at_one_cohort(bed: Bed) -> Iterator[tuple[Cell, Cell]]:
    """Yield each variant with each cell that differs only in what is trained, without privacy."""
    return (
        (a, b)
        for a, b in product(bed.grid, bed.grid)
        if a.role in bed.variants and not a.privacy and a.cohort == b.cohort and alike(a, b)
    )
