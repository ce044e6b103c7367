"""How the lead of one method over another changes from near data to far data.

    lead(set) = accuracy of a - accuracy of b           in each seed, at one place of the grid
    growth    = lead(farthest) - lead(nearest)
    slope     = least-squares slope of the lead over the gap, times (largest gap - smallest gap)

Both are in accuracy. The slope uses all sets of a series and needs three whose gap was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from fedpeft.results.beds import Bed, Series
from fedpeft.results.claims_grid import Cell, short, weighted
from fedpeft.results.paired import Comparison

Leads = Mapping[int, tuple[Cell, Cell]]
"""Place of a bed in its series -> the cells of a and b in it."""

_FOR_SLOPE = 3


def over_gap(series: Series, a: str, b: str) -> Iterator[Comparison]:
    """Compare the lead of a over b on near and far data, with all examples and Dirichlet skew.

    Where the beds share several tables, each that most beds have is compared.
    """
    tables = dict[Cell, dict[int, tuple[Cell, Cell]]]()
    for at, bed in enumerate(series.beds):
        for cell in _at_most_examples(bed, a):
            other = replace(cell, role=b)
            if cell.scheme == "dirichlet" and not cell.privacy and other in bed.grid:
                table = replace(cell, source="", budget=None)
                tables.setdefault(table, {})[at] = (cell, other)
    most = max((len(leads) for leads in tables.values()), default=0)
    for leads in tables.values():
        if len(leads) == most > 1:
            yield from _growth(series, a, b, leads)
            if series.gaps and most >= _FOR_SLOPE:
                yield from _slope(series, series.gaps, a, b, leads)


def _at_most_examples(bed: Bed, role: str) -> Iterator[Cell]:
    """Yield the cells of a role that have the largest budget of their table."""
    best = dict[Cell, Cell]()
    for cell in bed.grid:
        if cell.role == role:
            table = replace(cell, budget=None)
            before = best.get(table)
            if before is None or _examples(cell) > _examples(before):
                best[table] = cell
    yield from best.values()


def _examples(cell: Cell) -> float:
    return float("inf") if cell.budget is None else cell.budget


def _growth(series: Series, a: str, b: str, leads: Leads) -> Iterator[Comparison]:
    near, far = min(leads), max(leads)
    (near_a, near_b), (far_a, far_b) = leads[near], leads[far]
    rounds, epochs = near_a.length
    what = (
        f"lead of {a} over {b}: {_named(series, far)} less {_named(series, near)}, "
        f"{rounds} rounds of {epochs} epochs"
    )
    terms = [(1, far_a), (-1, far_b), (-1, near_a), (1, near_b)]
    yield from weighted(series.grid, terms, what)


def _slope(
    series: Series, gaps: Sequence[float], a: str, b: str, leads: Leads
) -> Iterator[Comparison]:
    used = [gaps[at] for at in leads]
    mean, span = sum(used) / len(used), max(used) - min(used)
    spread = sum((gap - mean) ** 2 for gap in used)
    if not spread:
        return
    weights = {at: span * (gaps[at] - mean) / spread for at in leads}
    terms = [(weights[at], leads[at][0]) for at in leads]
    terms += [(-weights[at], leads[at][1]) for at in leads]
    rounds, epochs = next(iter(leads.values()))[0].length
    what = (
        f"slope of the lead of {a} over {b} on {len(leads)} sets, from gap {min(used):.3g} to "
        f"{max(used):.3g}, {rounds} rounds of {epochs} epochs"
    )
    yield from weighted(series.grid, terms, what)


def _named(series: Series, at: int) -> str:
    name = short(series.beds[at].source)
    return f"{name} (gap {series.gaps[at]:.3g})" if series.gaps else name
