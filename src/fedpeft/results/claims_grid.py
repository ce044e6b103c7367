"""The grid that claims are checked on: finished runs by configuration, and margins over seeds.

runs ──configuration without the seed──> grid[cell][seed]
margin in seed s  =  sum over cells of  weight x accuracy,  in each seed that all the cells have
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from fedpeft.results.paired import Comparison
from fedpeft.results.runs import Run

SMALL = "small network"
"""The role of a model that stands beside the backbone of a data set and is trained whole."""

_TEST = "test"
NO_GUARANTEE = "paper ("
"""How the privacy of a cell begins whose mode repeats the published mechanism."""


@dataclass(frozen=True)
class Cell:
    """The configuration of a run, without its seed.

    Attributes:
      role: the tuning method, or `SMALL`.
      source: the data set.
      clients: number of clients; 0 where the data decide.
      cohort: number of clients in a round.
      scheme: the partition scheme.
      budget: total number of training examples; None for all examples.
      length: number of rounds, and of local epochs in each.
      model: name of the model.
      privacy: mode and strength as text; "" without privacy.
      options: of the tuning method, as text.
      split: what it was evaluated on: `test` or `validation`.
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
    options: str = ""
    split: str = _TEST


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
    options = {
        key: value
        for key, value in settings.items()
        if key.startswith("tuning.") and key != "tuning.method"
    }
    return Cell(
        role=run.method,
        source=str(settings.get("data.source")),
        clients=int(settings.get("data.partition.clients") or 0),
        cohort=int(settings.get("federation.clients_per_round", 0)),
        scheme=str(settings.get("data.partition.scheme")),
        budget=settings.get("data.budget"),
        length=(int(settings.get("federation.rounds", 0)), int(settings.get("client.epochs") or 0)),
        model=str(settings.get("model.name")),
        privacy=_privacy(settings),
        options=", ".join(f"{key} = {options[key]!r}" for key in sorted(options)),
        split=str(settings.get("data.evaluate_on", _TEST)),
    )


def _privacy(settings: Mapping[str, object]) -> str:
    """Return mode and strength of privacy; clip bound and rate are searched for each method."""
    mode = settings.get("privacy.mode", "none")
    if mode == "none":
        return ""
    kind = f"{NO_GUARANTEE}{settings.get('privacy.variant')})" if mode == "paper" else str(mode)
    epsilon, noise = settings.get("privacy.epsilon"), settings.get("privacy.noise_multiplier")
    strength = f"epsilon {epsilon}" if epsilon is not None else f"noise multiplier {noise}"
    return f"{kind}, {strength}, delta {settings.get('privacy.delta')}"


def over_seeds(
    grid: Grid,
    cells: Sequence[Cell],
    margin: Callable[..., float],
    what: str,
) -> Iterator[Comparison]:
    """Compare cells on the seeds that all of them have; yield nothing if there are none.

    Args:
      grid: holds the runs.
      cells: the compared cells; a cell that the grid lacks has no seeds.
      margin: the margin of one run of each cell, all of one seed.
      what: the text of the comparison.
    """
    runs = _of_shared_seeds(grid, cells)
    margins = tuple(margin(*row) for row in zip(*runs, strict=True))
    if margins:
        yield Comparison(what, margins, sources=_sources(cells))


def weighted(
    grid: Grid, terms: Sequence[tuple[float, Cell]], what: str, tolerance: float = 0.0
) -> Iterator[Comparison]:
    """Compare cells by a weighted sum of their accuracies, on the seeds that all of them have.

    Args:
      grid: holds the runs.
      terms: weight and cell; positive weights are on the side of the claim.
      what: the text of the comparison.
      tolerance: how far below 0 the mean margin may lie.
    """
    weights, cells = zip(*terms, strict=True)
    runs = _of_shared_seeds(grid, cells)
    margins = tuple(
        sum(weight * score(run) for weight, run in zip(weights, row, strict=True))
        for row in zip(*runs, strict=True)
    )
    if margins:
        items = _item_margins(weights, cells, runs)
        yield Comparison(what, margins, tolerance, _sources(cells), item_margins=items)


def paired(grid: Grid, a: Cell, b: Cell, tolerance: float = 0.0) -> Iterator[Comparison]:
    """Compare two cells by accuracy, on the seeds that they share.

    Args:
      grid: holds the runs.
      a: the cell that is better according to the claim.
      b: the other cell.
      tolerance: the accuracy by which a may be below b.
    """
    what = f"{a.role} against {b.role} ({_place(a)}, M = {a.cohort})"
    if a.cohort != b.cohort:
        what = f"{a.role} with M = {a.cohort} against {b.role} with M = {b.cohort} ({_place(a)})"
    return weighted(grid, [(1, a), (-1, b)], what, tolerance)


def _of_shared_seeds(grid: Grid, cells: Sequence[Cell]) -> list[list[Run]]:
    """Return the runs of each cell on the seeds that all cells have, by seed."""
    seeds = sorted(set.intersection(*(set(grid.get(cell, {})) for cell in cells)))
    return [[grid[cell][seed] for seed in seeds] if seeds else [] for cell in cells]


def _sources(cells: Iterable[Cell]) -> tuple[str, ...]:
    return tuple({cell.source: None for cell in cells})


def _item_margins(
    weights: Sequence[float], cells: Sequence[Cell], runs: Sequence[Sequence[Run]]
) -> dict[str, NDArray[np.float64]] | None:
    """Share a margin out over the test items: data set -> the part of each item [N].

    The mean over the items, summed over the data sets, is the margin. None where a run does not
    tell which items it got right, or two runs of one data set had different test sets.
    """
    found = dict[str, NDArray[np.float64]]()
    for weight, cell, row in zip(weights, cells, runs, strict=True):
        right = [run.right for run in row]
        sizes = {-1 if each is None else len(each) for each in right}
        if -1 in sizes or len(sizes) > 1 or sizes == {0}:
            return None
        part_N = weight * np.mean([each for each in right if each is not None], axis=0)
        before = found.get(cell.source)
        if before is not None and len(before) != len(part_N):
            return None
        found[cell.source] = part_N if before is None else before + part_N
    return found


def name_of(cell: Cell) -> str:
    """Return the name of a cell in a comparison."""
    return f"{cell.role} ({_place(cell)}, M = {cell.cohort})"


def _place(cell: Cell) -> str:
    """Return data set, budget, partition and number of clients of a cell."""
    budget = f", {cell.budget} examples" if cell.budget else ""
    return f"{short(cell.source)}{budget}, {cell.scheme}, N = {cell.clients}"


def short(name: str) -> str:
    """Return the last part of a path, and any other name as it is."""
    return PurePath(name).name if PurePath(name).is_absolute() else name


def score(run: Run) -> float:
    """Return the accuracy after the last round."""
    assert run.summary is not None, "make_grid keeps finished runs only"
    return float(run.summary["accuracy"])


def alike(a: Cell, b: Cell) -> bool:
    """Whether two cells of a bed differ only in what is trained and how many clients take part."""
    same = replace(a, role=b.role, cohort=b.cohort, model=b.model, options=b.options)
    return same == b
