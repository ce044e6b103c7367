"""The regimes of the page on which tuning method when, and the ways in which methods are compared.

kind of task x regime -> of each bed, the measured setting with the most methods
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedpeft.results.advice import Rounds, whole_run
from fedpeft.results.evidence import Cell, Entry, Evidence
from fedpeft.results.settings import Setting

REFERENCE = "bias"
"""The method whose whole upload is the limit of "the same upload"."""
_FEW = 10.0  # examples of a client
_SKEWED = 0.5  # Dirichlet concentration

KINDS = {"image-classification": "pictures", "text-classification": "texts"}


@dataclass(frozen=True)
class Regime:
    """One kind of setting.

    Attributes:
      name: for files.
      title: heading.
      holds: whether a setting belongs to it.
    """

    name: str
    title: str
    holds: Callable[[Setting], bool]


def _usual(setting: Setting) -> bool:
    return setting.privacy == "none" and (setting.examples or math.inf) > _FEW


def _skewed(setting: Setting) -> bool:
    return setting.alpha is not None and setting.alpha <= _SKEWED


def _private(mode: str) -> Callable[[Setting], bool]:
    return lambda setting: setting.privacy == mode


REGIMES = (
    Regime("skewed", "Skewed labels", lambda s: _usual(s) and _skewed(s)),
    Regime("even", "Labels spread evenly", lambda s: _usual(s) and s.skew == "even"),
    Regime(
        "few",
        f"At most {_FEW:g} examples a client",
        lambda s: s.privacy == "none" and not _usual(s),
    ),
    Regime("central", "Privacy of clients, noise by the server", _private("central")),
    Regime("example", "Privacy of examples, noise by the clients", _private("example")),
    Regime("local", "Privacy of clients, noise by the clients", _private("local")),
)


def upload_of(times: float) -> Rounds:
    """Score entries after so many times what `REFERENCE` uploads in the cell's whole run."""

    def rounds(cell: Cell, entry: Entry) -> float:
        reference = cell.entry(REFERENCE)
        if reference is None:
            return 0
        affordable = times * reference.bytes_up * cell.setting.rounds / entry.bytes_up
        return min(cell.setting.rounds, affordable)

    return rounds


VIEWS: Mapping[str, Rounds] = {
    "the same rounds": whole_run,
    f"the same upload as {REFERENCE}": upload_of(1),
}


def cells_of(evidence: Evidence, kind: str, regime: Regime) -> list[Cell]:
    """Return, of each bed, the cell of a regime with most methods, then examples, then seeds."""
    found: dict[str, Cell] = {}
    for cell in evidence.cells:
        if cell.setting.kind != kind or not regime.holds(cell.setting):
            continue
        best = found.get(cell.bed)
        if best is None or _weight(cell) > _weight(best):
            found[cell.bed] = cell
    return list(found.values())


def _weight(cell: Cell) -> tuple[float, ...]:
    seeds = sum(len(entry.seeds) for entry in cell.entries)
    return len({entry.method for entry in cell.entries}), cell.setting.examples or 0, seeds
