"""What the claims are checked on: finished runs by where they stand, and margins over seeds.

runs ──cell of a run (all but its seed)──> grid[cell][seed]
paired(a, b):  d_s = accuracy of a - accuracy of b, in each seed s that both have
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedpeft.results.runs import Run

__all__ = [
    "FAR_SOURCES",
    "Cell",
    "Comparison",
    "Grid",
    "alike",
    "compare",
    "make_grid",
    "name_of",
    "over_seeds",
    "paired",
    "score",
    "shadowed",
]

FAR_SOURCES: Mapping[str, str] = {
    "timm/resisc45": "1aurent/PatchCamelyon",
    "digits": "digits-permuted",
}
"""Near data set -> far one: the paper's, and its analogue at small scale."""

_PCAM = FAR_SOURCES["timm/resisc45"]


@dataclass(frozen=True)
class Comparison:
    """One difference over seeds.

    Attributes:
      what: what is compared with what.
      margin: mean over the seeds; above 0 speaks for the claim.
      error: standard error of the mean; NaN with fewer than two seeds.
      sources: the data sets that it is of.
      block: which part of a table it is of, such as a privacy mode; "" where there is one only.
    """

    what: str
    margin: float
    error: float
    sources: tuple[str, ...] = ()
    block: str = ""

    @property
    def verdict(self) -> str:
        """`pass`, `fail` or `undecided`."""
        if math.isnan(self.error) or abs(self.margin) <= 2 * self.error or self.margin == 0:
            return "undecided"
        return "pass" if self.margin > 0 else "fail"

    def as_json(self) -> dict[str, object]:
        """Return one JSON object."""
        error = None if math.isnan(self.error) else self.error
        return {
            **{"what": self.what, "block": self.block, "margin": self.margin},
            **{"error": error, "verdict": self.verdict},
        }


@dataclass(frozen=True)
class Cell:
    """Where a run stands in the grid, but for its seed.

    Attributes:
      role: the tuning method, or `ShuffleNet`.
      source: of the data.
      clients: how many there are.
      cohort: how many take part in a round.
      scheme: of the partition.
      budget: training examples in all; None for all that there are.
      length: rounds, and local epochs of each.
      model: its name.
      privacy: mode and strength, in words; "" without privacy.
    """

    role: str
    source: str
    clients: int
    cohort: int
    scheme: str
    budget: int | None
    length: tuple[int, int]
    model: str
    privacy: str = ""


Grid = Mapping[Cell, Mapping[int, Run]]
"""Cell -> seed -> run."""


def make_grid(runs: Iterable[Run]) -> Grid:
    """Sort finished runs into cells; those without accuracy are left out."""
    grid: dict[Cell, dict[int, Run]] = {}
    for run in filter(_counts, runs):
        grid.setdefault(_cell(run), {})[run.seed] = run
    return grid


def shadowed(runs: Iterable[Run]) -> list[tuple[Run, Run]]:
    """Pair runs that a grid leaves out with those of the same cell and seed that take their place.

    Runs that ended with the same delta are the same run, and no pair.
    """
    runs = list(filter(_counts, runs))
    grid = make_grid(runs)
    pairs = [(run, grid[_cell(run)][run.seed]) for run in runs]
    return [(run, taken) for run, taken in pairs if _digest(run) != _digest(taken)]


def _counts(run: Run) -> bool:
    if run.summary is None or "accuracy" not in run.summary:
        return False
    # the author's adapter, of which only a bias learns: a row, not a variant
    return run.settings.get("tuning.options.init") != "zeros"


def _digest(run: Run) -> object:
    return run.summary.get("delta_digest", run.folder) if run.summary else run.folder


def _cell(run: Run) -> Cell:
    told = run.settings
    small = "shufflenet" in str(told.get("model.name", ""))
    return Cell(
        role="ShuffleNet" if small else run.method,
        source=str(told.get("data.source")),
        clients=int(told.get("data.partition.clients") or 0),
        cohort=int(told.get("federation.clients_per_round", 0)),
        scheme=str(told.get("data.partition.scheme")),
        budget=None if told.get("data.source") == _PCAM else told.get("data.budget"),
        length=(int(told.get("federation.rounds", 0)), int(told.get("client.epochs", 0))),
        model=str(told.get("model.name")),
        privacy=_privacy(told),
    )


def _privacy(told: Mapping[str, object]) -> str:
    """Name the block of Table 3; clip bound and rate are searched by method, and no part of it."""
    mode = told.get("privacy.mode", "none")
    if mode == "none":
        return ""
    kind = f"paper ({told.get('privacy.variant')})" if mode == "paper" else str(mode)
    epsilon, noise = told.get("privacy.epsilon"), told.get("privacy.noise_multiplier")
    strength = f"epsilon {epsilon}" if epsilon is not None else f"noise multiplier {noise}"
    return f"{kind}, {strength}, delta {told.get('privacy.delta')}"


def over_seeds(
    grid: Grid, cells: Sequence[Cell], margin: Callable[..., float], what: str
) -> Iterator[Comparison]:
    """Compare cells on the seeds that all of them have; yield nothing where there is none.

    Args:
      grid: holds the runs.
      cells: what is compared; those that the grid lacks have no seed.
      margin: takes one run of each cell, all of one seed.
      what: says what is compared.
    """
    seeds = set.intersection(*(set(grid.get(cell, {})) for cell in cells))
    margins = [margin(*(grid[cell][seed] for cell in cells)) for seed in sorted(seeds)]
    if margins:
        yield compare(what, margins, tuple({cell.source: None for cell in cells}))


def paired(grid: Grid, a: Cell, b: Cell, slack: float = 0.0) -> Iterator[Comparison]:
    """Compare two cells by accuracy, on the seeds that they share.

    Args:
      grid: holds both.
      a: of which the claim says that it is better.
      b: the other.
      slack: added to each margin.
    """
    what = f"{name_of(a)} against {name_of(b)}"
    return over_seeds(grid, (a, b), lambda one, two: score(one) - score(two) + slack, what)


def compare(what: str, margins: Sequence[float], sources: tuple[str, ...] = ()) -> Comparison:
    """Summarise one margin a seed."""
    error = statistics.stdev(margins) / math.sqrt(len(margins)) if len(margins) > 1 else math.nan
    return Comparison(what, statistics.fmean(margins), error, sources)


def name_of(cell: Cell) -> str:
    """Name a cell in a comparison."""
    budget = f", {cell.budget} examples" if cell.budget else ""
    where = f"{cell.scheme}, N = {cell.clients}, M = {cell.cohort}"
    return f"{cell.role} ({cell.source}{budget}, {where})"


def score(run: Run) -> float:
    """Return the accuracy after the last round."""
    assert run.summary is not None, "a grid holds finished runs"
    return float(run.summary["accuracy"])


def alike(a: Cell, b: Cell) -> bool:
    """Whether two cells differ in nothing but what is trained and how many take part."""
    same = (a.source, a.clients, a.scheme, a.budget, a.length, a.privacy)
    small = "ShuffleNet" in (a.role, b.role)
    return same == (b.source, b.clients, b.scheme, b.budget, b.length, b.privacy) and (
        small or a.model == b.model
    )
