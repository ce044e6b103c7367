"""Test beds: the cells of a grid by data set and backbone, and series of beds by domain gap.

    grid ──data set, backbone──> Bed       rows that can be compared; a claim has a verdict on each
    beds ──measured gaps──> Series         one backbone, data sets from near to far

What a bed calls all of its training examples, which options of a method are usual and which methods
stand for the paper's variants follows from its rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from fedpeft.core.errors import RunFolderError
from fedpeft.results.claims_grid import SMALL, Cell, Grid, short
from fedpeft.results.contents import portable
from fedpeft.results.runs import Run

FAR_SOURCES: Mapping[str, str] = {
    "timm/resisc45": "1aurent/PatchCamelyon",
    "digits": "digits-permuted",
}
"""Near data set -> far one, where no gaps are given: the paper's pair, and ours at small scale."""

_TUNED = ("bias", "adapter", "prompt")
_STAND_INS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt_tuning", "prefix_tuning"),
    "adapter": ("lora",),
}
"""A variant of the paper -> the methods that stand for it in a bed without any row of it."""
_WHOLE = ("full", "scratch")
_KIND, _MEASURE = "balanced", "lda2"


@dataclass(frozen=True)
class Bed:
    """The runs of one data set with one backbone.

    Attributes:
      source: the data set.
      model: the backbone.
      grid: its cells; small networks of the same data set have the role `SMALL`.
      split: what its runs were evaluated on; runs on validation data are a bed of their own.
    """

    source: str
    model: str
    grid: Grid
    split: str = "test"

    @property
    def name(self) -> str:
        """The data set and the backbone."""
        split = "" if self.split == "test" else f", {self.split} data"
        return f"{short(self.source)}, {short(self.model)}{split}"

    @cached_property
    def variants(self) -> tuple[str, ...]:
        """The roles that the paper's claims are about."""
        roles = {cell.role for cell in self.grid}
        found = [role for role in _TUNED if role in roles]
        for variant, others in _STAND_INS.items():
            if variant not in roles:
                found += [role for role in others if role in roles]
        return tuple(found)


@dataclass(frozen=True)
class Series:
    """Beds of one backbone, in the order of their domain gap.

    Attributes:
      beds: from near to far; two or more.
      gaps: the measured gap of each; None where the pair is fixed and nothing was measured.
    """

    beds: tuple[Bed, ...]
    gaps: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        """Its name as a bed."""
        return f"domain gap, {short(self.beds[0].model)}"

    @cached_property
    def grid(self) -> Grid:
        """The cells of all beds."""
        return {cell: seeds for bed in self.beds for cell, seeds in bed.grid.items()}


@dataclass(frozen=True)
class Gaps:
    """The content of a `gap.json`: distances of data sets to what a backbone was pretrained on.

    Attributes:
      model: the backbone.
      distances: data set -> distance of centroids in the LDA plane, with equally many examples.
    """

    model: str
    distances: Mapping[str, float]


def read_gaps(file: Path) -> Gaps:
    """Read the gaps that `fedpeft gap` measured.

    Args:
      file: a `gap.json`, or the folder that holds one.

    Raises:
      RunFolderError: if it cannot be read, or compares runs instead of data sets.
    """
    file = file / "gap.json" if file.is_dir() else file
    try:
        found = json.loads(file.read_text("utf-8"))
        row = found[_KIND]["distances"][_MEASURE]
        named = {str(source): float(row[name]) for name, source in found["sources"].items()}
        return Gaps(_name("model.name", found["model"]), {
            _name("data.source", source): distance for source, distance in named.items()
        })  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"--gap {file}: holds no measured gaps of data sets ({type(error).__name__}: {error}); "
            "give the gap.json, or its folder, that `fedpeft gap` wrote for several data sets"
        ) from error


def beds_of(grid: Grid) -> list[Bed]:
    """Divide a grid into beds, in the order in which their cells stand in it.

    A backbone is a model of which some rows train a part; a model that is only trained whole beside
    one is a small network of every bed of that data set.
    """
    beds = []
    sets = dict.fromkeys((cell.source, cell.split) for cell in grid)
    for source, split in sets:
        cells = {c: seeds for c, seeds in grid.items() if (c.source, c.split) == (source, split)}
        models = dict.fromkeys(cell.model for cell in cells)
        tuned = dict.fromkeys(cell.model for cell in cells if cell.role not in _WHOLE)
        small = [model for model in models if tuned and model not in tuned]
        for model in tuned or models:
            own = {cell: seeds for cell, seeds in cells.items() if cell.model == model}
            beside = {replace(c, role=SMALL): s for c, s in cells.items() if c.model in small}
            beds.append(Bed(source, model, _with_all_examples({**_usual(own), **beside}), split))
    return beds


def series_of(beds: Sequence[Bed], gaps: Sequence[Gaps]) -> list[Series]:
    """Order the beds of each backbone by their gap; without gaps, pair those of `FAR_SOURCES`.

    Runs on validation data are left out.
    """
    beds = [bed for bed in beds if bed.split == "test"]
    if not gaps:
        return list(_fixed_pairs(beds))
    found = []
    for each in gaps:
        own = [bed for bed in beds if each.model in _names("model.name", bed.model)]
        known = [(_gap_of(bed, each), bed) for bed in own]
        order = sorted(((gap, bed) for gap, bed in known if gap is not None), key=lambda x: x[0])
        if len(order) > 1:
            found.append(Series(tuple(b for _, b in order), tuple(gap for gap, _ in order)))
    return found


def _fixed_pairs(beds: Sequence[Bed]) -> Iterator[Series]:
    for near in beds:
        for far in beds:
            if far.model == near.model and far.source == FAR_SOURCES.get(near.source):
                yield Series((near, far))


def _gap_of(bed: Bed, gaps: Gaps) -> float | None:
    names = _names("data.source", bed.source)
    return next((gaps.distances[name] for name in names if name in gaps.distances), None)


def _names(key: str, value: object) -> tuple[str, str]:
    """Return the name in a results file, with and without the digest of local files.

    Where gaps were measured on files that are not here, only their last name is known.
    """
    name = _name(key, value)
    return name, name.rpartition("@")[0] or name


def _name(key: str, value: object) -> str:
    """Return the name of a model or data set that it has in a results file."""
    return str(portable({key: value})[key])


def _usual(grid: Grid) -> dict[Cell, Mapping[int, Run]]:
    """Keep the cells of each method with its usual options, those of most runs; drop the others."""
    counts = dict[str, Counter[str]]()
    for cell, seeds in grid.items():
        counts.setdefault(cell.role, Counter())[cell.options] += len(seeds)
    usual = {role: found.most_common(1)[0][0] for role, found in counts.items()}
    return {
        replace(cell, options=""): seeds
        for cell, seeds in grid.items()
        if cell.options == usual[cell.role]
    }


def _with_all_examples(grid: Grid) -> Grid:
    """Call the largest budget all examples where no row has more and it is no row of few examples.

    A table of few examples varies nothing but the budget and the method.
    """
    budgets = {cell.budget for cell in grid}
    if None in budgets:
        return grid
    largest = max(budget for budget in budgets if budget is not None)
    rows = {
        (cell.clients, cell.cohort, cell.scheme, cell.privacy)
        for cell in grid
        if cell.budget == largest
    }
    if len(rows) < 2:
        return grid
    return {
        replace(cell, budget=None) if cell.budget == largest else cell: seeds
        for cell, seeds in grid.items()
    }
