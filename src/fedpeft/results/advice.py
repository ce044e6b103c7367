"""Which tuning method when: measured methods, ranked for a setting, with the regret of the ranking.

    of each bed the nearest cell in range -> mean accuracy over beds -> the best method
    regret on a bed = accuracy of its best method - accuracy of the one chosen from the other beds

Beds weigh the same. Only methods that were measured on every one of these beds can be chosen, where
there is any; the others are ranked behind them. Differences are paired over seeds; their standard
error is that over seeds, and says nothing about other data.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from fedpeft.results.evidence import Cell, Entry, Evidence
from fedpeft.results.settings import Setting, distance, obstacles

COMPARABLE = 0.02
"""A method that is at most this much below the best, in accuracy, counts as comparable."""
_LEVEL = 0.05

Rounds: TypeAlias = Callable[[Cell, Entry], float]
"""The number of rounds after which an entry is scored; below 1 it cannot be used.

An entry that was not evaluated so early does not take part."""


@dataclass(frozen=True)
class Difference:
    """How much more accurate one method is than another.

    Attributes:
      mean: mean over beds of the mean over paired seeds.
      error: its standard error over seeds; None where a bed has fewer than two seeds.
      freedom: degrees of freedom of the error.
    """

    mean: float
    error: float | None
    freedom: int

    @property
    def is_clear(self) -> bool:
        """Whether it is above 0 by a one-sided t test at 0.05."""
        if self.error is None:
            return False
        from scipy.special import stdtrit

        return self.mean > float(stdtrit(self.freedom, 1 - _LEVEL)) * self.error

    @property
    def words(self) -> str:
        """The difference in points, with its error."""
        error = "" if self.error is None else f" ± {100 * self.error:.1f}"
        return f"{100 * self.mean:.1f}{error} points"


@dataclass(frozen=True)
class Ranked:
    """One method in a ranking.

    Attributes:
      label: label of its entries.
      beds: where it was measured.
      accuracy: mean over these beds, 0 to 1.
      seeds: the smallest number of seeds on a bed.
      lead: of the first method over this one, on the beds that both have; None for the first.
    """

    label: str
    beds: tuple[str, ...]
    accuracy: float
    seeds: int
    lead: Difference | None = None


@dataclass(frozen=True)
class Regret:
    """What the rule lost on a bed that it did not know.

    Attributes:
      bed: the bed that was left out.
      chosen: the method that the other beds suggest.
      best: the best method on this bed.
      loss: accuracy of `best` less that of `chosen`, >= 0.
    """

    bed: str
    chosen: str
    best: str
    loss: float


def whole_run(cell: Cell, entry: Entry) -> float:
    """Score an entry after all of its cell's rounds."""
    return cell.setting.rounds


def nearest_cells(setting: Setting, cells: Sequence[Cell]) -> list[Cell]:
    """Return, of each bed, the nearest cell that says something about a setting."""
    found: dict[str, Cell] = {}
    for cell in cells:
        if obstacles(setting, cell.setting):
            continue
        best = found.get(cell.bed)
        if best is None or _order(setting, cell) < _order(setting, best):
            found[cell.bed] = cell
    return list(found.values())


def nearest_miss(setting: Setting, cells: Sequence[Cell]) -> Cell | None:
    """Return the cell with the fewest obstacles, the nearest of these; None without cells."""
    return min(
        cells,
        key=lambda cell: (len(obstacles(setting, cell.setting)), distance(setting, cell.setting)),
        default=None,
    )


def _order(setting: Setting, cell: Cell) -> tuple[float, int]:
    """Order by distance; of equally near cells the one with more methods goes first."""
    return round(distance(setting, cell.setting), 6), -len(cell.entries)


def rank(cells: Sequence[Cell], rounds: Rounds) -> list[Ranked]:
    """Rank the methods of some cells, one cell a bed: those on most beds first, best first."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for cell in cells:
        for entry in cell.entries:
            if (at := rounds(cell, entry)) >= 1 and (scores := entry.at(at)):
                found.setdefault(entry.label, {})[cell.bed] = scores
    rows = [_ranked(label, beds) for label, beds in found.items()]
    rows.sort(key=lambda row: (-len(row.beds), -row.accuracy, row.label))
    return [
        row if row is rows[0] else replace(row, lead=_lead(found[rows[0].label], found[row.label]))
        for row in rows
    ]


def _ranked(label: str, beds: Mapping[str, Mapping[int, float]]) -> Ranked:
    means = [statistics.fmean(scores.values()) for scores in beds.values()]
    return Ranked(label, tuple(beds), statistics.fmean(means), min(map(len, beds.values())))


def _lead(
    first: Mapping[str, Mapping[int, float]], other: Mapping[str, Mapping[int, float]]
) -> Difference | None:
    """Return the mean difference on the beds and seeds that both have; None without any."""
    pairs = [
        [first[bed][seed] - other[bed][seed] for seed in first[bed] if seed in other[bed]]
        for bed in first
        if bed in other
    ]
    pairs = [values for values in pairs if values]
    if not pairs:
        return None
    mean = statistics.fmean(statistics.fmean(values) for values in pairs)
    freedom = sum(len(values) - 1 for values in pairs)
    if min(map(len, pairs)) < 2:
        return Difference(mean, None, freedom)
    spent = sum(statistics.variance(values) / len(values) for values in pairs)
    return Difference(mean, math.sqrt(spent) / len(pairs), freedom)


def regrets(known: Sequence[Cell], evidence: Evidence, rounds: Rounds) -> list[Regret]:
    """Leave out the bed of each of some cells, and choose its method from the other beds.

    Args:
      known: the cells on which the choice is judged.
      evidence: where the other beds come from.
      rounds: as for `rank`.

    Returns:
      One for each cell that has other beds in range, with a method in common.
    """
    found = []
    for cell in known:
        others = [other for other in evidence.cells if other.bed != cell.bed]
        own = {row.label: row.accuracy for row in rank([cell], rounds)}
        ranked = rank(nearest_cells(cell.setting, others), rounds)
        chosen = next((row.label for row in ranked if row.label in own), None)
        if chosen is not None:
            best = max(own, key=lambda label: own[label])
            found.append(Regret(cell.bed, chosen, best, own[best] - own[chosen]))
    return found


def regret_words(found: Sequence[Regret]) -> str:
    """Say what the rule lost on beds that were left out."""
    if not found:
        return "regret on a bed left out: unknown, no other bed was measured in this range"
    worst = max(found, key=lambda each: each.loss)
    mean = statistics.fmean(each.loss for each in found)
    if worst.loss == 0:
        return f"regret on a bed left out: none on {_times(len(found), 'bed')}"
    return (
        f"regret on a bed left out: {100 * mean:.1f} points on average over "
        f"{_times(len(found), 'bed')}, at worst {100 * worst.loss:.1f} ({worst.bed}: "
        f"{worst.chosen} instead of {worst.best})"
    )


def _times(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count != 1)


def advice_sentence(ranked: Sequence[Ranked], sizes: Mapping[str, float]) -> str:
    """Say in one sentence which method to use, and why.

    Args:
      ranked: by `rank`; not empty.
      sizes: label -> bytes that a client sends in a round.
    """
    first, *others = [row for row in ranked if row.beds == ranked[0].beds]
    beds = first.beds[0] if len(first.beds) == 1 else f"mean of {', '.join(first.beds)}"
    seeds = _times(first.seeds, "seed")
    parts = [f"Use {first.label}: {100 * first.accuracy:.1f} % ({beds}; {seeds})"]
    for row in others:
        if row.lead and (row is others[0] or row.label == "full"):
            place = ", the next" if row is others[0] else _share(first, row, sizes)
            clear = "" if row.lead.is_clear else " (not a clear lead)"
            parts.append(f"{row.lead.words} above {row.label}{place}{clear}")
    cheap = cheapest(ranked, sizes)
    if cheap and cheap.lead:
        less = _share(cheap, first, sizes)
        parts.append(
            f"the cheapest within 2 points is {cheap.label}, {cheap.lead.words} below{less}"
        )
    return "; ".join(parts) + "."


def cheapest(ranked: Sequence[Ranked], sizes: Mapping[str, float]) -> Ranked | None:
    """Return the method of fewest bytes within `COMPARABLE` of the first; None if that is it."""
    first = ranked[0]
    near = [
        row
        for row in ranked[1:]
        if row.beds == first.beds and row.lead and row.lead.mean <= COMPARABLE
    ]
    near = [row for row in near if sizes.get(row.label, math.inf) < sizes.get(first.label, 0)]
    return min(near, key=lambda row: sizes[row.label], default=None)


def _share(one: Ranked, other: Ranked, sizes: Mapping[str, float]) -> str:
    ours, theirs = sizes.get(one.label), sizes.get(other.label)
    if not ours or not theirs:
        return ""
    return f" for {100 * ours / theirs:.3g} % of the bytes of {other.label}"
