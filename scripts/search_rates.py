"""Search the learning rates of a bed by the protocol's rule, on validation data.

    class x method:  five rates with seed 7001, wider while the best stands at an edge
                     -> the best two with seeds 7002 and 7003 -> the better mean of three

If the winner stands at an edge, the next rate on that side is tried with all three seeds, until it
does not. A run in which every client diverges counts as 0. Finished runs are lines of
`experiments/results/search-<bed>.jsonl` and are not repeated; the rates go to
`experiments/rates.json`.

    python scripts/search_rates.py characters --out runs/search
    python scripts/search_rates.py characters --kinds usual few --out runs/search
    python scripts/search_rates.py characters --kinds usual --methods scratch

Naming both classes and methods searches every pair of them, those that no table uses included: the
built-in experiment has rows that decide no claim.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from fedpeft.experiment.read import read_experiment
from fedpeft.experiment.sweep_rows import SweepRow
from fedpeft.launch.sweep import Finished, sweep
from protocol import (
    BEDS,
    EXPERIMENTS,
    RATES,
    RATES_FILE,
    Bed,
    Row,
    pairs_of,
    read_rates,
    settings_of,
)

__all__ = ["FIRST", "OTHERS", "Search", "best_of", "chosen_pairs", "next_runs", "row_of"]

FIRST, OTHERS = 7001, (7002, 7003)
FACTOR = 2.0
_WIDEST = 6  # steps past either edge

Pair = tuple[str, str]
Search = dict[float, dict[int, float]]
"""Learning rate -> seed -> validation accuracy."""


def main() -> None:
    """Search the chosen classes, and write the rates of all that are decided."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bed", choices=sorted(BEDS))
    parser.add_argument("--kinds", nargs="+", default=[], help="classes; by default all of the bed")
    parser.add_argument("--methods", nargs="+", default=[], help="by default all of the bed")
    parser.add_argument("--out", type=Path, default=Path("runs/search"))
    given = parser.parse_args()
    bed = BEDS[given.bed]
    if unknown := set(given.kinds) - bed.kinds.keys():
        parser.error(
            f"--kinds: found {', '.join(sorted(unknown))}; {bed.name} has {', '.join(bed.kinds)}"
        )
    pairs = chosen_pairs(bed, given.kinds, given.methods)
    for kind in dict.fromkeys(kind for kind, _ in pairs):
        found = _search(bed, [pair for pair in pairs if pair[0] == kind], given.out)
        for (_, method), search in found.items():
            _keep(bed, kind, method, best_of(search))
            print(f"{bed.name} {kind} {method}: {best_of(search)} of {_shown(search)}", flush=True)


def chosen_pairs(bed: Bed, kinds: Sequence[str], methods: Sequence[str]) -> list[Pair]:
    """List pairs of class and method: all that are named, else those of the bed's tables.

    Args:
      bed: has the classes and tables.
      kinds: named classes; none names all.
      methods: named methods; none names all.
    """
    if kinds and methods:
        return [(kind, method) for kind in kinds for method in methods]
    return [
        (kind, method)
        for kind, method in pairs_of(bed)
        if kind in (kinds or [kind]) and method in (methods or [method])
    ]


def _search(bed: Bed, pairs: Sequence[Pair], out: Path) -> dict[Pair, Search]:
    """Run what the rule asks for, until it asks for nothing."""
    found: dict[Pair, Search] = {pair: {} for pair in pairs}
    while True:
        asked = [(pair, rate, seed) for pair in pairs for rate, seed in next_runs(found[pair])]
        if not asked:
            return found
        rows = [row_of(bed, pair, rate, seed) for pair, rate, seed in asked]
        results = EXPERIMENTS / "results" / f"search-{bed.name}.jsonl"
        results.parent.mkdir(exist_ok=True)
        ends = sweep(rows, out / bed.name, results=results)
        for row, (pair, rate, seed) in zip(rows, asked, strict=True):
            end = ends[row.name]
            score = float(end.summary["accuracy"]) if isinstance(end, Finished) else 0.0  # type: ignore[arg-type]
            found[pair].setdefault(rate, {})[seed] = score


def next_runs(search: Search) -> list[tuple[float, int]]:
    """List the runs (rate, seed) that the rule asks for next; [] when the search is over.

    Args:
      search: what was found so far.

    Example:
      >>> next_runs({})[0]
      (0.005, 7001)
    """
    if not search:
        return [(rate, FIRST) for rate in RATES]
    rates = sorted(search)
    by_first = sorted(rates, key=lambda rate: (-search[rate][FIRST], rate))
    if not any(seed in runs for runs in search.values() for seed in OTHERS):
        wider = _past_edge(by_first[0], rates)
        if wider is not None:
            return [(wider, FIRST)]
        return [(rate, seed) for rate in by_first[:2] for seed in OTHERS]
    wider = _past_edge(best_of(search), rates)
    return [] if wider is None else [(wider, seed) for seed in (FIRST, *OTHERS)]


def best_of(search: Search) -> float:
    """Return the rate with the best mean of three seeds; of equals, the smallest."""
    whole = {rate: fmean(runs.values()) for rate, runs in search.items() if len(runs) == 3}
    return max(sorted(whole), key=lambda rate: whole[rate])


def _past_edge(rate: float, rates: Sequence[float]) -> float | None:
    """Return the next rate if this one is the smallest or largest that was tried."""
    least, most = RATES[0] / FACTOR**_WIDEST, RATES[-1] * FACTOR**_WIDEST
    if rate == rates[0] and rate > least * 1.01:
        return rate / FACTOR
    if rate == rates[-1] and rate < most * 0.99:
        return rate * FACTOR
    return None


def row_of(bed: Bed, pair: Pair, rate: float, seed: int) -> SweepRow:
    """Return a run of a search, on validation data."""
    settings = {
        **settings_of(bed, Row(*pair)),
        "client.lr": rate,
        "seed": seed,
        "data.evaluate_on": "validation",
        "name": f"search-{bed.name}",
    }
    sets = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    name = f"{pair[0]},{pair[1]},lr={rate:g},seed={seed}"
    return SweepRow(name, settings, read_experiment(None, sets))


def _keep(bed: Bed, kind: str, method: str, rate: float) -> None:
    rates = read_rates()
    rates.setdefault(bed.name, {}).setdefault(kind, {})[method] = rate
    RATES_FILE.write_text(json.dumps(rates, indent=1, sort_keys=True) + "\n", "utf-8")


def _shown(search: Search) -> str:
    def mean(runs: Iterable[float]) -> str:
        return f"{fmean(runs):.3f}"

    return ", ".join(f"{rate:g}: {mean(search[rate].values())}" for rate in sorted(search))


if __name__ == "__main__":
    main()
