"""The paper's eight qualitative claims, checked on a finished grid.

    pass        every comparison is above its bound at the one-sided level 0.05
    equivalent  the same, and every one within its tolerance both ways
    fail        some comparison is below its bound after Holm's correction over the claim
    undecided   otherwise, and with fewer than two seeds

The tests are Student's over paired seeds (`fedpeft.results.paired`). The bound is 0, or minus the
tolerance where the claim says "comparable".
Scores are accuracies after the last round. A claim whose runs are missing is "not in this grid".
Claims 4 and 5 compare a near data set with a far one: Resisc45 with PCam as in the paper, or, at
small scale, digits with digits under a fixed permutation of the pixels. Claim 7 is checked in each
privacy mode; mode `paper` gives no guarantee.

Reference: Sun et al., Exploring Parameter-Efficient Fine-Tuning to Enable Foundation Models in
Federated Learning, IEEE BigData 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

from fedpeft.results.claims_grid import (
    FAR_SOURCES,
    Cell,
    Grid,
    alike,
    make_grid,
    name_of,
    over_seeds,
    paired,
    score,
)
from fedpeft.results.paired import Comparison, correct
from fedpeft.results.runs import Run

ABSENT = "not in this grid"
CLOSE = 0.02
"""The accuracy below full fine-tuning that still counts as comparable."""

_TUNED = ("bias", "adapter", "prompt")
_WORST_FIRST = ("fail", "undecided", "pass", "equivalent")
_LOG_TEN = 1.0
_PRIVATE = 7


@dataclass(frozen=True)
class Verdict:
    """The verdict of a grid on one claim.

    Attributes:
      number: the claim's number, 1 to 8.
      claim: the claim as a sentence.
      unit: unit of margin and error.
      verdict: `pass`, `equivalent`, `fail`, `undecided` or `not in this grid`.
      comparisons: least favourable first.
    """

    number: int
    claim: str
    unit: str
    verdict: str
    comparisons: tuple[Comparison, ...] = ()

    @property
    def decisive(self) -> Comparison | None:
        """The comparison that is least favourable to the claim."""
        return self.comparisons[0] if self.comparisons else None

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
            "data": list(self.sources),
            "blocks": dict(self.blocks),
            "comparisons": [each.as_json() for each in self.comparisons],
        }


def check_claims(runs: Iterable[Run]) -> list[Verdict]:
    """Check every claim on the finished runs.

    Args:
      runs: runs of one scale; those that are unfinished or have no accuracy are left out.
    """
    grid = make_grid(runs)
    open_runs = {cell: seeds for cell, seeds in grid.items() if not cell.privacy}
    return [_verdict(number, grid if number == _PRIVATE else open_runs) for number in CLAIMS]


def absent_words(verdicts: Iterable[Verdict]) -> str:
    """Return one sentence that numbers the claims whose runs are missing; "" if none is."""
    numbers = [str(verdict.number) for verdict in verdicts if verdict.verdict == ABSENT]
    if not numbers:
        return ""
    *first, last = numbers
    if not first:
        return f"Claim {last} of the paper needs rows that are not in this grid."
    return f"Claims {', '.join(first)} and {last} of the paper need rows that are not in this grid."


def _verdict(number: int, grid: Grid) -> Verdict:
    claim, unit, check = CLAIMS[number]
    found = sorted(correct(tuple(check(grid))), key=_favour)
    return Verdict(number, claim, unit, _worst(found), tuple(found))


def _worst(found: Iterable[Comparison]) -> str:
    verdicts = {each.verdict for each in found}
    return next((verdict for verdict in _WORST_FIRST if verdict in verdicts), ABSENT)


def _favour(found: Comparison) -> tuple[int, float]:
    return _WORST_FIRST.index(found.verdict), found.margin + found.tolerance


def _main(grid: Grid) -> Iterator[tuple[Cell, list[Cell]]]:
    """Pair each tuned row of a communication table with the other rows of its table."""
    for cell in grid:
        if cell.role in _TUNED and cell.budget is None and cell.cohort == 8:
            others = [other for other in grid if alike(cell, other) and other != cell]
            if any(other.role == "full" and other.cohort == 1 for other in others):
                yield cell, others


def _beats_matched(grid: Grid) -> Iterator[Comparison]:
    for cell, others in _main(grid):
        for other in others:
            fewer = other.role == "full" and other.cohort < cell.cohort
            if fewer or other.role in ("ShuffleNet", "head"):
                yield from paired(grid, cell, other)


def _full_needs_more(grid: Grid) -> Iterator[Comparison]:
    """Yield log10 of (bytes of full / bytes of the variant) - 1, to the variant's last accuracy."""
    for cell, others in _main(grid):
        fulls = [grid[other] for other in others if other.role == "full"]
        margins = []
        for seed, run in grid[cell].items():
            rivals = [_bytes_to(full[seed], score(run)) for full in fulls if seed in full]
            if rivals:
                margins.append(math.log10(min(rivals) / _bytes_to(run, score(run))) - _LOG_TEN)
        if margins:
            what = f"bytes of full to reach {name_of(cell)}, over 10 times"
            yield Comparison(what, tuple(margins), sources=(cell.source,))


def _bytes_to(run: Run, target: float) -> float:
    """Return the bytes sent until a run first reaches a score; all bytes if it never does."""
    curve = run.curve()
    return next((sent for _, sent, score in curve if score >= target), curve[-1][1])


def _bias_is_cheapest(grid: Grid) -> Iterator[Comparison]:
    """Yield log10 of (bytes of another variant / bytes of bias), to the lower last accuracy."""

    def margin(bias: Run, other: Run) -> float:
        target = min(score(bias), score(other))
        return math.log10(_bytes_to(other, target) / _bytes_to(bias, target))

    for cell, others in _main(grid):
        for other in others:
            if cell.role == "bias" and other.role in _TUNED and other.cohort == cell.cohort:
                what = f"bytes of {name_of(other)} over those of bias"
                yield from over_seeds(grid, (cell, other), margin, what)


def _full_falls_behind(grid: Grid) -> Iterator[Comparison]:
    for name in _TUNED:
        yield from _over_gap(grid, name, "full")


def _prompt_is_robust(grid: Grid) -> Iterator[Comparison]:
    for name in ("full", "bias", "adapter"):
        yield from _over_gap(grid, "prompt", name)


def _over_gap(grid: Grid, a: str, b: str) -> Iterator[Comparison]:
    """Yield how much the lead of a over b grows from near to far data, at N = 64, M = 8."""
    for cell in grid:
        place = (cell.role, cell.clients, cell.cohort, cell.scheme, cell.budget)
        if place == (a, 64, 8, "dirichlet", None) and cell.source in FAR_SOURCES:
            near, far = cell.source, FAR_SOURCES[cell.source]
            four = [replace(cell, role=role, source=s) for s in (far, near) for role in (a, b)]
            rounds, epochs = cell.length
            what = f"lead of {a} over {b}: {far} less {near}, {rounds} rounds of {epochs} epochs"
            yield from over_seeds(grid, four, _difference, what)


def _difference(a: Run, b: Run, c: Run, d: Run) -> float:
    """Return (a - b) - (c - d), in accuracy."""
    return (score(a) - score(b)) - (score(c) - score(d))


def _comparable(grid: Grid) -> Iterator[Comparison]:
    """Compare each variant with full in each cell of the table of clients and participants."""
    pairs = [
        (a, b)
        for a, b in _at_one_cohort(grid)
        if a.role in _TUNED and b.role == "full" and a.budget is None
    ]
    if len({(a.clients, a.cohort, a.scheme) for a, _ in pairs}) > 1:
        for a, b in pairs:
            yield from paired(grid, a, b, CLOSE)


def _few_samples(grid: Grid) -> Iterator[Comparison]:
    for a, b in _at_one_cohort(grid):
        if a.role in _TUNED and b.role in ("full", "head") and a.budget is not None:
            yield from paired(grid, a, b)


def _at_one_cohort(grid: Grid) -> Iterator[tuple[Cell, Cell]]:
    """Yield the pairs of cells that differ only in what is trained."""
    return (
        pair for pair in product(grid, grid) if alike(*pair) and len({c.cohort for c in pair}) == 1
    )


def _full_loses_most(grid: Grid) -> Iterator[Comparison]:
    """Check in each privacy mode that each variant ends above full, and that full drops more.

    A drop is measured from the same run without privacy; without such runs, only the last
    accuracies are compared.
    """
    for cell in grid:
        full = replace(cell, role="full")
        if cell.privacy and cell.role in _TUNED and full in grid:
            four = [cell, full, replace(cell, privacy=""), replace(full, privacy="")]
            what = f"drop of {name_of(full)} less that of {cell.role}"
            found = (*paired(grid, cell, full), *over_seeds(grid, four, _difference, what))
            for each in found:
                yield replace(each, what=f"{each.what}, {cell.privacy}", block=cell.privacy)


CLAIMS: Mapping[int, tuple[str, str, Callable[[Grid], Iterable[Comparison]]]] = {
    1: (
        "Bias, adapter and prompt beat full fine-tuning with fewer clients, the small fully "
        "trained model and head-tuning",
        "accuracy",
        _beats_matched,
    ),
    2: (
        "Full fine-tuning needs more than 10 times the bytes to match them",
        "powers of ten",
        _full_needs_more,
    ),
    3: ("Bias needs the fewest bytes of the three", "powers of ten", _bias_is_cheapest),
    4: ("Full fine-tuning falls behind as the domain gap grows", "accuracy", _full_falls_behind),
    5: ("Prompt is the most robust to the domain gap", "accuracy", _prompt_is_robust),
    6: (
        "Over clients, participants and skew they stay within 0.02 of full fine-tuning, or above",
        "accuracy",
        _comparable,
    ),
    7: (
        "With differential privacy full fine-tuning loses most, and ends below them",
        "accuracy",
        _full_loses_most,
    ),
    8: ("With few examples they beat full fine-tuning and head-tuning", "accuracy", _few_samples),
}
"""Number -> claim, unit of its margin, check; all but 7 are checked on runs without privacy."""
