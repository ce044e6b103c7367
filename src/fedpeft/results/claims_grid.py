"""The grid that claims are checked on: finished runs by configuration, and margins over seeds.

runs ──configuration without the seed──> grid[cell][seed]
paired(a, b):  d_s = accuracy of a - accuracy of b, in each seed s that both have
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fedpeft.results.paired import Comparison
from fedpeft.results.runs import Run

FAR_SOURCES: Mapping[str, str] = {
    "timm/resisc45": "1aurent/PatchCamelyon",
    "digits": "digits-permuted",
}
"""Near data set -> far one: the paper's pair, and our analogue at small scale."""

_PCAM = FAR_SOURCES["timm/resisc45"]


@dataclass(frozen=True)
class Cell:
    """The configuration of a run, without its seed.

    Attributes:
      role: the tuning method, or `ShuffleNet`.
      source: the data set.
      clients: number of clients.
      cohort: number of clients in a round.
      scheme: the partition scheme.
      budget: total number of training examples; None for all examples.
      length: number of rounds, and of local epochs in each.
      model: name of the model.
      privacy: mode and strength as text; "" without privacy.
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
    for run in filter(_is_compared, runs):
        grid.setdefault(_cell(run), {})[run.seed] = run
    return grid


def shadowed(runs: Iterable[Run]) -> list[tuple[Run, Run]]:
    """Pair each run that a grid leaves out with the run of that cell and seed that it has instead.

    Runs that ended with the same delta count as one run, not as a pair.
    """
    runs = list(filter(_is_compared, runs))
    grid = make_grid(runs)
    pairs = [(run, grid[_cell(run)][run.seed]) for run in runs]
    return [(run, used) for run, used in pairs if _digest(run) != _digest(used)]


def _is_compared(run: Run) -> bool:
    if run.summary is None or "accuracy" not in run.summary:
        return False
    # the adapter of the authors' code, in which only a bias learns, is no variant of the claims
    return run.settings.get("tuning.options.init") != "zeros"


def _digest(run: Run) -> object:
    return run.summary.get("delta_digest", run.folder) if run.summary else run.folder


def _cell(run: Run) -> Cell:
    settings = run.settings
    small = "shufflenet" in str(settings.get("model.name", ""))
    return Cell(
        role="ShuffleNet" if small else run.method,
        source=str(settings.get("data.source")),
        clients=int(settings.get("data.partition.clients") or 0),
        cohort=int(settings.get("federation.clients_per_round", 0)),
        scheme=str(settings.get("data.partition.scheme")),
        budget=None if settings.get("data.source") == _PCAM else settings.get("data.budget"),
        length=(int(settings.get("federation.rounds", 0)), int(settings.get("client.epochs") or 0)),
        model=str(settings.get("model.name")),
        privacy=_privacy(settings),
    )


def _privacy(settings: Mapping[str, object]) -> str:
    """Return mode and strength of privacy; clip bound and rate are searched for each method."""
    mode = settings.get("privacy.mode", "none")
    if mode == "none":
        return ""
    kind = f"paper ({settings.get('privacy.variant')})" if mode == "paper" else str(mode)
    epsilon, noise = settings.get("privacy.epsilon"), settings.get("privacy.noise_multiplier")
    strength = f"epsilon {epsilon}" if epsilon is not None else f"noise multiplier {noise}"
    return f"{kind}, {strength}, delta {settings.get('privacy.delta')}"


def over_seeds(
    grid: Grid,
    cells: Sequence[Cell],
    margin: Callable[..., float],
    what: str,
    tolerance: float = 0.0,
) -> Iterator[Comparison]:
    """Compare cells on the seeds that all of them have; yield nothing if there are none.

    Args:
      grid: holds the runs.
      cells: the compared cells; a cell that the grid lacks has no seeds.
      margin: the margin of one run of each cell, all of one seed.
      what: the text of the comparison.
      tolerance: how far below 0 the mean margin may lie.
    """
    seeds = set.intersection(*(set(grid.get(cell, {})) for cell in cells))
    margins = [margin(*(grid[cell][seed] for cell in cells)) for seed in sorted(seeds)]
    if margins:
        sources = tuple({cell.source: None for cell in cells})
        yield Comparison(what, tuple(margins), tolerance, sources)


def paired(grid: Grid, a: Cell, b: Cell, tolerance: float = 0.0) -> Iterator[Comparison]:
    """Compare two cells by accuracy, on the seeds that they share.

    Args:
      grid: holds the runs.
      a: the cell that is better according to the claim.
      b: the other cell.
      tolerance: the accuracy by which a may be below b.
    """
    what = f"{name_of(a)} against {name_of(b)}"
    return over_seeds(grid, (a, b), lambda one, two: score(one) - score(two), what, tolerance)


def name_of(cell: Cell) -> str:
    """Return the name of a cell in a comparison."""
    budget = f", {cell.budget} examples" if cell.budget else ""
    where = f"{cell.scheme}, N = {cell.clients}, M = {cell.cohort}"
    return f"{cell.role} ({cell.source}{budget}, {where})"


def score(run: Run) -> float:
    """Return the accuracy after the last round."""
    assert run.summary is not None, "make_grid keeps finished runs only"
    return float(run.summary["accuracy"])


def alike(a: Cell, b: Cell) -> bool:
    """Whether two cells differ only in what is trained and how many clients take part."""
    model = b.model if "ShuffleNet" in (a.role, b.role) else a.model
    return replace(a, role=b.role, cohort=b.cohort, model=model) == b
