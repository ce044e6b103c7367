"""The paper's eight qualitative claims, checked on a finished grid.

    d_s = margin in seed s, paired        margin = mean d_s        error = std(d_s) / sqrt(seeds)

    pass       every comparison has margin >  2 error
    fail       some comparison has  margin < -2 error
    undecided  otherwise, and with fewer than two seeds

Scores are accuracies after the last round. A claim that needs runs which the grid lacks is
"not in this grid". Nothing is corrected for the number of comparisons: a claim of many passes
only where each of them does.

Reference: Sun et al., Exploring Parameter-Efficient Fine-Tuning to Enable Foundation Models in
Federated Learning, IEEE BigData 2024.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from fedpeft.experiment.report_data import Run

__all__ = ["ABSENT", "CLAIMS", "Comparison", "Verdict", "check_claims", "compare"]

ABSENT = "not in this grid"
CLOSE = 0.02
"""How far below full fine-tuning still counts as comparable, in accuracy."""

_TUNED = ("bias", "adapter", "prompt")
_NEAR, _FAR = "timm/resisc45", "1aurent/PatchCamelyon"
_LOG_TEN = 1.0


@dataclass(frozen=True)
class Comparison:
    """One difference over seeds.

    Attributes:
      what: what is compared with what.
      margin: mean over the seeds; above 0 speaks for the claim.
      error: standard error of the mean; NaN with fewer than two seeds.
    """

    what: str
    margin: float
    error: float

    @property
    def verdict(self) -> str:
        """`pass`, `fail` or `undecided`."""
        if math.isnan(self.error) or abs(self.margin) <= 2 * self.error or self.margin == 0:
            return "undecided"
        return "pass" if self.margin > 0 else "fail"


@dataclass(frozen=True)
class Verdict:
    """What a grid says about one claim.

    Attributes:
      number: 1 to 8.
      claim: in words.
      unit: of margin and error.
      verdict: `pass`, `fail`, `undecided` or `not in this grid`.
      comparisons: least favourable first.
    """

    number: int
    claim: str
    unit: str
    verdict: str
    comparisons: tuple[Comparison, ...] = ()

    @property
    def decisive(self) -> Comparison | None:
        """The comparison that speaks least for the claim."""
        return self.comparisons[0] if self.comparisons else None

    def as_json(self) -> dict[str, object]:
        """Return one JSON object."""
        return {
            "number": self.number,
            "claim": self.claim,
            "unit": self.unit,
            "verdict": self.verdict,
            "comparisons": [
                {
                    "what": each.what,
                    "margin": each.margin,
                    "error": None if math.isnan(each.error) else each.error,
                    "verdict": each.verdict,
                }
                for each in self.comparisons
            ],
        }


@dataclass(frozen=True)
class _Cell:
    """Where a run stands in the grid, but for its seed."""

    role: str
    source: str
    clients: int
    cohort: int
    scheme: str
    budget: int | None
    length: tuple[int, int]
    model: str


_Grid = Mapping[_Cell, Mapping[int, Run]]


def check_claims(runs: Iterable[Run]) -> list[Verdict]:
    """Check every claim on the finished runs.

    Args:
      runs: of one scale; unfinished ones and those without accuracy are left out.
    """
    grid = _grid(runs)
    return [_verdict(number, grid) for number in CLAIMS]


def compare(what: str, margins: Sequence[float]) -> Comparison:
    """Summarise one margin a seed."""
    spread = statistics.stdev(margins) / math.sqrt(len(margins)) if len(margins) > 1 else math.nan
    return Comparison(what, statistics.fmean(margins), spread)


def _verdict(number: int, grid: _Grid) -> Verdict:
    claim, unit, check = CLAIMS[number]
    found = sorted(check(grid), key=_favour)
    seen = {each.verdict for each in found}
    verdict = next((word for word in ("fail", "undecided", "pass") if word in seen), ABSENT)
    return Verdict(number, claim, unit, verdict, tuple(found))


def _favour(found: Comparison) -> tuple[int, float]:
    return ("fail", "undecided", "pass").index(found.verdict), found.margin


def _grid(runs: Iterable[Run]) -> _Grid:
    grid: dict[_Cell, dict[int, Run]] = {}
    for run in runs:
        private = run.settings.get("privacy.mode", "none") != "none"
        if run.summary is None or "accuracy" not in run.summary or private:
            continue
        if run.settings.get("tuning.options.init") == "zeros":
            continue  # the author's adapter, of which only a bias learns: a row, not a variant
        grid.setdefault(_cell(run), {})[int(run.settings.get("seed", 0))] = run
    return grid


def _cell(run: Run) -> _Cell:
    told = run.settings
    small = "shufflenet" in str(told.get("model.name", ""))
    return _Cell(
        role="ShuffleNet" if small else run.method,
        source=str(told.get("data.source")),
        clients=int(told.get("data.partition.clients") or 0),
        cohort=int(told.get("federation.clients_per_round", 0)),
        scheme=str(told.get("data.partition.scheme")),
        budget=None if told.get("data.source") == _FAR else told.get("data.budget"),
        length=(int(told.get("federation.rounds", 0)), int(told.get("client.epochs", 0))),
        model=str(told.get("model.name")),
    )


def _paired(grid: _Grid, a: _Cell, b: _Cell, slack: float = 0.0) -> Comparison | None:
    """Compare two cells by accuracy, on the seeds that they share."""
    seeds = sorted(set(grid[a]) & set(grid[b]))
    margins = [_score(grid[a][seed]) - _score(grid[b][seed]) + slack for seed in seeds]
    return compare(f"{_name(a)} against {_name(b)}", margins) if margins else None


def _name(cell: _Cell) -> str:
    budget = f", {cell.budget} examples" if cell.budget else ""
    where = f"{cell.scheme}, N = {cell.clients}, M = {cell.cohort}"
    return f"{cell.role} ({cell.source}{budget}, {where})"


def _score(run: Run) -> float:
    assert run.summary is not None, "a grid holds finished runs"
    return float(run.summary["accuracy"])


def _alike(a: _Cell, b: _Cell) -> bool:
    """Whether two cells differ in nothing but what is trained and how many take part."""
    same = (a.source, a.clients, a.scheme, a.budget, a.length)
    small = "ShuffleNet" in (a.role, b.role)
    return same == (b.source, b.clients, b.scheme, b.budget, b.length) and (
        small or a.model == b.model
    )


def _main(grid: _Grid) -> list[tuple[_Cell, list[_Cell]]]:
    """Pair each tuned row of a communication table with the other rows of its table."""
    tuned = [c for c in grid if c.role in _TUNED and c.budget is None and c.cohort == 8]
    tables = [(c, [o for o in grid if _alike(c, o) and o != c]) for c in tuned]
    return [
        (cell, others)
        for cell, others in tables
        if any(o.role == "full" and o.cohort == 1 for o in others)
    ]


def _beats_matched(grid: _Grid) -> list[Comparison]:
    found = []
    for cell, others in _main(grid):
        for other in others:
            fewer = other.role == "full" and other.cohort < cell.cohort
            if fewer or other.role in ("ShuffleNet", "head"):
                found.append(_paired(grid, cell, other))
    return [each for each in found if each]


def _full_needs_more(grid: _Grid) -> list[Comparison]:
    """log10 of bytes of full over bytes of the variant, to the variant's last accuracy, less 1."""
    found = []
    for cell, others in _main(grid):
        fulls = [grid[other] for other in others if other.role == "full"]
        margins = []
        for seed, run in grid[cell].items():
            rivals = [_bytes_to(full[seed], _score(run)) for full in fulls if seed in full]
            if rivals:
                ratio = min(rivals) / _bytes_to(run, _score(run))
                margins.append(math.log10(ratio) - _LOG_TEN)
        if margins:
            found.append(compare(f"bytes of full to reach {_name(cell)}, over 10 times", margins))
    return found


def _bytes_to(run: Run, target: float) -> float:
    """Return bytes so far when a run first reaches a score; all of them if it never does."""
    curve = run.curve()
    return next((sent for _, sent, score in curve if score >= target), curve[-1][1])


def _bias_is_cheapest(grid: _Grid) -> list[Comparison]:
    """log10 of bytes to the lower of two last accuracies: the other's over those of bias."""
    found = []
    pairs = [
        (cell, other)
        for cell, others in _main(grid)
        for other in others
        if cell.role == "bias" and other.role in _TUNED and other.cohort == cell.cohort
    ]
    for a, b in pairs:
        margins = []
        for seed in sorted(set(grid[a]) & set(grid[b])):
            one, two = grid[a][seed], grid[b][seed]
            target = min(_score(one), _score(two))
            margins.append(math.log10(_bytes_to(two, target) / _bytes_to(one, target)))
        if margins:
            found.append(compare(f"bytes of {_name(b)} over those of bias", margins))
    return found


def _full_falls_behind(grid: _Grid) -> list[Comparison]:
    return [_over_gap(grid, variant, "full") for variant in _pairs_over_gap(grid, "full")]


def _prompt_is_robust(grid: _Grid) -> list[Comparison]:
    others = [
        name for name in ("full", "bias", "adapter") if "prompt" in _pairs_over_gap(grid, name)
    ]
    return [_over_gap(grid, "prompt", other) for other in others]


def _pairs_over_gap(grid: _Grid, rival: str) -> list[str]:
    """Name the variants that, like a rival, ran at M = 8 on the nearest and the farthest set."""
    return [name for name in _TUNED if name != rival and _gap_margins(grid, name, rival)]


def _gap_margins(grid: _Grid, a: str, b: str) -> list[float]:
    """How much the lead of a over b grows from the nearest data set to the farthest."""
    leads: dict[str, dict[int, float]] = {_NEAR: {}, _FAR: {}}
    for one, two in product(grid, grid):
        plain = one.budget is None and (one.clients, one.cohort) == (64, 8)
        same = _alike(one, two) and one.cohort == two.cohort and one.scheme == "dirichlet"
        if plain and same and (one.role, two.role) == (a, b) and one.source in leads:
            for seed in set(grid[one]) & set(grid[two]):
                leads[one.source][seed] = _score(grid[one][seed]) - _score(grid[two][seed])
    seeds = sorted(set(leads[_NEAR]) & set(leads[_FAR]))
    return [leads[_FAR][seed] - leads[_NEAR][seed] for seed in seeds]


def _over_gap(grid: _Grid, a: str, b: str) -> Comparison:
    return compare(f"lead of {a} over {b}: {_FAR} less {_NEAR}", _gap_margins(grid, a, b))


def _comparable(grid: _Grid) -> list[Comparison]:
    """Each variant against full in each cell of the table of clients and participants."""
    pairs = [
        (a, b)
        for a, b in product(grid, grid)
        if a.role in _TUNED and b.role == "full" and a.budget is None and _alike(a, b)
    ]
    cells = {(a.clients, a.cohort, a.scheme) for a, b in pairs if a.cohort == b.cohort}
    if len(cells) < 2:
        return []
    found = [_paired(grid, a, b, CLOSE) for a, b in pairs if a.cohort == b.cohort]
    return [each for each in found if each]


def _few_samples(grid: _Grid) -> list[Comparison]:
    found = [
        _paired(grid, a, b)
        for a, b in product(grid, grid)
        if a.role in _TUNED and b.role in ("full", "head") and a.budget is not None
        if _alike(a, b) and a.cohort == b.cohort
    ]
    return [each for each in found if each]


def _absent(grid: _Grid) -> list[Comparison]:
    return []


CLAIMS: Mapping[int, tuple[str, str, Callable[[_Grid], list[Comparison]]]] = {
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
        "accuracy, 0.02 added",
        _comparable,
    ),
    7: ("With differential privacy full fine-tuning loses most", "accuracy", _absent),
    8: ("With few examples they beat full fine-tuning and head-tuning", "accuracy", _few_samples),
}
"""Number -> claim, unit of its margin, check; private runs are not compared, so 7 is in no grid."""
