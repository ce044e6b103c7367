"""The paper's eight qualitative claims, checked on the finished runs of each test bed.

    pass        every comparison is above its bound at the one-sided level 0.05
    equivalent  the same, and every one within its tolerance both ways
    fail        some comparison is below its bound after Holm's correction over the claim
    undecided   otherwise, and with fewer than two seeds

The tests are Student's over paired seeds (`fedpeft.results.paired`); beside them stands a bootstrap
over the test items (`fedpeft.results.bootstrap`), which decides nothing. The bound is 0, or minus
the tolerance where the claim says "comparable".
Scores are accuracies after the last round. A claim whose runs are missing is "not in this grid".

A bed is a data set with a backbone. Claims 4 and 5 compare beds of one backbone from near to far:
those whose gap was measured, or, where none is given, Resisc45 with PCam as in the paper, and at
small scale digits with digits under a fixed permutation of the pixels. Claim 7 is checked in each
privacy mode; mode `paper` gives no guarantee, so that its rows are shown and decide nothing.

Reference: Sun et al., Exploring Parameter-Efficient Fine-Tuning to Enable Foundation Models in
Federated Learning, IEEE BigData 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from fedpeft.results.beds import Bed, Gaps, Series, beds_of, series_of
from fedpeft.results.bootstrap import over_items
from fedpeft.results.claim_checks import (
    beats_matched,
    bias_is_cheapest,
    comparable,
    few_samples,
    full_falls_behind,
    full_loses_most,
    full_needs_more,
    prompt_is_robust,
)
from fedpeft.results.claims_grid import make_grid
from fedpeft.results.paired import Comparison, correct
from fedpeft.results.runs import Run

ABSENT = "not in this grid"
_WORST_FIRST = ("fail", "undecided", "pass", "equivalent")


@dataclass(frozen=True)
class Verdict:
    """The verdict of the runs of one bed on one claim.

    Attributes:
      number: the claim's number, 1 to 8.
      claim: the claim as a sentence.
      unit: unit of margin and error.
      verdict: `pass`, `equivalent`, `fail`, `undecided` or `not in this grid`.
      comparisons: least favourable first.
      bed: data set and backbone; "" if nothing can be compared.
    """

    number: int
    claim: str
    unit: str
    verdict: str
    comparisons: tuple[Comparison, ...] = ()
    bed: str = ""

    @property
    def decisive(self) -> Comparison | None:
        """The comparison that is least favourable to the claim, of those that decide it."""
        return next((each for each in self.comparisons if each.decides), None)

    @property
    def sources(self) -> tuple[str, ...]:
        """The data sets that were compared."""
        return tuple(sorted({source for each in self.comparisons for source in each.sources}))

    @property
    def blocks(self) -> Mapping[str, str]:
        """Part of the table -> its verdict; {} if the table has one part."""
        names = sorted({each.block for each in self.comparisons if each.block})
        return {
            name: _worst(each for each in self.comparisons if each.block == name) for name in names
        }

    def as_json(self) -> dict[str, object]:
        """Return one JSON object."""
        return {
            "number": self.number,
            "claim": self.claim,
            "unit": self.unit,
            "verdict": self.verdict,
            "bed": self.bed,
            "data": list(self.sources),
            "blocks": dict(self.blocks),
            "comparisons": [each.as_json() for each in self.comparisons],
        }


def check_claims(runs: Iterable[Run], gaps: Sequence[Gaps] = ()) -> list[Verdict]:
    """Check every claim on the finished runs of each bed; beds without any claim are left out.

    Args:
      runs: runs of one scale; those that are unfinished or have no accuracy are left out.
      gaps: measured ones. With them, claims 4 and 5 have beds of their own, one for each backbone;
        without, they stand with the nearer of two data sets.

    Returns:
      the verdicts of a bed one after the other, by number; eight that are `ABSENT` for no bed.
    """
    beds = beds_of(make_grid(runs))
    series = series_of(beds, gaps)
    found = list[Verdict]()
    for bed in beds:
        pairs = [each for each in series if each.gaps is None and each.beds[0] is bed]
        numbers = [number for number in CLAIMS if not gaps or number not in OVER_GAP]
        found += _of_bed(bed.name, numbers, bed, pairs)
    for each in series:
        found += _of_bed(each.name, OVER_GAP, None, [each]) if each.gaps else []
    return _with_intervals(found) or _of_bed("", CLAIMS, None, [])


def _of_bed(
    name: str, numbers: Iterable[int], bed: Bed | None, series: Sequence[Series]
) -> list[Verdict]:
    """Check some claims on a bed and on series; [] if it has a name and none of them."""
    found = [_verdict(number, name, bed, series) for number in numbers]
    return found if not name or any(each.comparisons for each in found) else []


def _with_intervals(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Add the intervals over test items; the items of a data set are drawn once for all claims."""
    whole = iter(over_items([each for verdict in verdicts for each in verdict.comparisons]))
    return [
        replace(verdict, comparisons=tuple(islice(whole, len(verdict.comparisons))))
        for verdict in verdicts
    ]


def by_bed(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    """Group verdicts by bed, in their order."""
    found = dict[str, list[Verdict]]()
    for verdict in verdicts:
        found.setdefault(verdict.bed, []).append(verdict)
    return found


def absent_words(verdicts: Iterable[Verdict]) -> str:
    """Return one sentence that numbers the claims whose runs are missing; "" if none is."""
    numbers = [str(verdict.number) for verdict in verdicts if verdict.verdict == ABSENT]
    if not numbers:
        return ""
    *first, last = numbers
    if not first:
        return f"Claim {last} of the paper needs rows that are not in this grid."
    return f"Claims {', '.join(first)} and {last} of the paper need rows that are not in this grid."


def _verdict(number: int, name: str, bed: Bed | None, series: Sequence[Series]) -> Verdict:
    claim, unit, check = CLAIMS[number]
    if number in OVER_GAP:
        raw = tuple(found for each in series for found in OVER_GAP[number](each))
    else:
        raw = tuple(check(bed)) if bed else ()
    decide = correct([each for each in raw if each.decides])
    shown = correct([each for each in raw if not each.decides])
    found = tuple(sorted((*decide, *shown), key=_favour))
    return Verdict(number, claim, unit, _worst(decide), found, name)


def _worst(found: Iterable[Comparison]) -> str:
    verdicts = {each.verdict for each in found}
    return next((verdict for verdict in _WORST_FIRST if verdict in verdicts), ABSENT)


def _favour(found: Comparison) -> tuple[int, float]:
    return _WORST_FIRST.index(found.verdict), found.margin + found.tolerance


def _by_series(bed: Bed) -> Iterable[Comparison]:
    """Yield nothing: the claim compares several beds, see `OVER_GAP`."""
    return ()


CLAIMS: Mapping[int, tuple[str, str, Callable[[Bed], Iterable[Comparison]]]] = {
    1: (
        "Bias, adapter and prompt beat full fine-tuning with fewer clients, the small fully "
        "trained model and head-tuning",
        "accuracy",
        beats_matched,
    ),
    2: (
        "Full fine-tuning needs more than 10 times the bytes to match them",
        "powers of ten",
        full_needs_more,
    ),
    3: ("Bias needs the fewest bytes of the three", "powers of ten", bias_is_cheapest),
    4: ("Full fine-tuning falls behind as the domain gap grows", "accuracy", _by_series),
    5: ("Prompt is the most robust to the domain gap", "accuracy", _by_series),
    6: (
        "Over clients, participants and skew they stay within 0.02 of full fine-tuning, or above",
        "accuracy",
        comparable,
    ),
    7: (
        "With differential privacy full fine-tuning loses most, and ends below them",
        "accuracy",
        full_loses_most,
    ),
    8: ("With few examples they beat full fine-tuning and head-tuning", "accuracy", few_samples),
}
"""Number -> claim, unit of its margin, check; all but 7 are checked on runs without privacy."""

OVER_GAP: Mapping[int, Callable[[Series], Iterable[Comparison]]] = {
    4: full_falls_behind,
    5: prompt_is_robust,
}
"""Number of a claim on beds from near to far -> its check."""
