"""Differences over paired seeds: intervals, one-sided tests, and what more seeds would show.

    d_s = side a - side b in seed s        t = (mean d_s - bound) / (std(d_s) / sqrt(seeds))

A seed draws partition, cohorts, head and order, equally for both sides, so that the d_s are a
sample of differences. Quantiles are Student's with seeds - 1 degrees of freedom. A claim holds only
if each of its comparisons does (intersection-union: no correction); it fails if one of them is
below its bound after Holm's correction over all of them. "Comparable" is decided by two one-sided
tests against a tolerance (Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
"""Level of every one-sided test."""
POWER = 0.8
"""Probability with which `smallest_effect` would be found."""
_MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Comparison:
    """One difference over paired seeds.

    Attributes:
      what: the two sides that are compared.
      margins: one for each seed; above 0 they support the claim.
      tolerance: how far below 0 the mean may lie, where the claim is "comparable or better".
      sources: the data sets of the compared runs.
      block: the part of the table, such as a privacy mode; "" if the table has one part.
      decides: whether it counts in the verdict; the others are only shown.
      corrected: `p_below` after Holm's correction over the claim; None outside a claim.
      item_margins: data set -> the part of the margin that each test item has [N]; None where the
        runs do not tell, or where the margin is no sum over items.
      item_interval: 90 % interval of the margin over draws of the test items; None where unknown.
    """

    what: str
    margins: tuple[float, ...]
    tolerance: float = 0.0
    sources: tuple[str, ...] = ()
    block: str = ""
    decides: bool = True
    corrected: float | None = None
    item_margins: Mapping[str, NDArray[np.float64]] | None = field(
        default=None, compare=False, repr=False
    )
    item_interval: tuple[float, float] | None = None

    @property
    def num_items(self) -> int | None:
        """Number of test items, of all data sets; None where they are unknown."""
        parts = self.item_margins
        return None if parts is None else sum(map(len, parts.values()))

    @property
    def seeds(self) -> int:
        """Number of paired seeds."""
        return len(self.margins)

    @property
    def margin(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.margins)

    @property
    def error(self) -> float:
        """Standard error of the mean; NaN with fewer than two seeds."""
        return _spread(self.margins) / math.sqrt(self.seeds)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The bounds of two one-sided tests at `LEVEL`: a 90 % interval of the mean."""
        if self.seeds < 2:
            return -math.inf, math.inf
        half = _quantile(1 - LEVEL, self.seeds - 1) * self.error
        return self.margin - half, self.margin + half

    @cached_property
    def p_above(self) -> float:
        """Probability of margins so high if the mean were at -`tolerance`."""
        return _tail(self.margin + self.tolerance, self.error, self.seeds)

    @cached_property
    def p_below(self) -> float:
        """Probability of margins so low if the mean were at -`tolerance`, or `corrected`."""
        if self.corrected is not None:
            return self.corrected
        return _tail(-self.margin - self.tolerance, self.error, self.seeds)

    @cached_property
    def p_not_better(self) -> float:
        """Probability of margins so low if the mean were at +`tolerance`."""
        return _tail(self.tolerance - self.margin, self.error, self.seeds)

    @property
    def verdict(self) -> str:
        """`pass`, `equivalent` (within the tolerance both ways), `fail` or `undecided`."""
        if self.p_above < LEVEL:
            within = self.tolerance > 0 and self.p_not_better < LEVEL
            return "equivalent" if within else "pass"
        return "fail" if self.p_below < LEVEL else "undecided"

    @property
    def smallest_effect(self) -> float:
        """The distance from its bound at which these seeds decide with `POWER`; inf for one."""
        return effect_of(_spread(self.margins), self.seeds) if self.seeds > 1 else math.inf

    @property
    def seeds_needed(self) -> int | None:
        """Seeds that would decide a mean and spread like these; None for over 10,000."""
        distance, spread = abs(self.margin + self.tolerance), _spread(self.margins)
        return None if math.isnan(spread) else seeds_for(distance, spread)

    def as_json(self) -> dict[str, object]:
        """Return one JSON object; null where there is nothing to say."""
        return {
            **{"what": self.what, "block": self.block, "decides": self.decides},
            "margin": self.margin,
            **{"error": _known(self.error), "verdict": self.verdict, "seeds": self.seeds},
            **{"tolerance": self.tolerance, "interval": [_known(x) for x in self.interval]},
            **{"p_above": self.p_above, "p_below": self.p_below},
            **{"smallest_effect": _known(self.smallest_effect), "seeds_needed": self.seeds_needed},
            **{"items": self.num_items, "item_interval": self.item_interval},
        }


def correct(found: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """Correct the probabilities of failing over all comparisons of one claim (Holm, 1979).

    The smallest is multiplied by the number of comparisons, the next by one less, and none may be
    below a smaller one.
    """
    tested, least = list(found), 0.0
    for place, at in enumerate(sorted(range(len(found)), key=lambda at: found[at].p_below)):
        least = max(least, min(1.0, (len(found) - place) * found[at].p_below))
        tested[at] = replace(found[at], corrected=least)
    return tuple(tested)


def _spread(margins: Sequence[float]) -> float:
    return statistics.stdev(margins) if len(margins) > 1 else math.nan


def _tail(distance: float, error: float, seeds: int) -> float:
    """Return the one-sided probability of a mean this far above its bound."""
    from scipy.stats import t  # a late import: half a second

    if seeds < 2:
        return 1.0
    if error == 0:
        return 0.0 if distance > 0 else 1.0
    return float(t.sf(distance / error, seeds - 1))


def _quantile(level: float, freedom: int) -> float:
    from scipy.stats import t  # a late import: half a second

    return float(t.ppf(level, freedom))


def seeds_for(distance: float, spread: float) -> int | None:
    """Return the seeds that find a distance from the bound with `POWER`; None for over 10,000.

    Args:
      distance: of the mean from its bound, >= 0.
      spread: standard deviation of the differences over seeds.
    """
    if distance == 0 or effect_of(spread, _MOST_SEEDS) > distance:
        return None
    low, high = 2, _MOST_SEEDS
    while low < high:
        middle = (low + high) // 2
        enough = effect_of(spread, middle) <= distance
        low, high = (low, middle) if enough else (middle + 1, high)
    return low


def effect_of(spread: float, seeds: int) -> float:
    """Return the distance from the bound that seeds find with `POWER`.

    The usual planning formula: (t(1 - level) + t(power)) std / sqrt(seeds).

    Args:
      spread: standard deviation of the differences over seeds.
      seeds: number of seeds, >= 2.
    """
    freedom = seeds - 1
    return (_quantile(1 - LEVEL, freedom) + _quantile(POWER, freedom)) * spread / math.sqrt(seeds)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
