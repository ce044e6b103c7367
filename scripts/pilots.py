"""How far differences between methods vary over seeds, which decides the numbers of seeds.

a class's search: each method at its rate with seeds 7001 to 7003, on validation data
    -> differences of bias, adapter and prompt from full and head, in each seed
    -> their standard deviation, pooled over the pairs
    -> seeds for an effect of 0.02, and the smallest effect of 10 and of 20 seeds

python scripts/pilots.py characters
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from statistics import variance

from fedpeft.experiment.resolve import resolve
from fedpeft.results.lines import line_digest, read_lines
from fedpeft.results.paired import effect_of, seeds_for
from protocol import BEDS, EXPERIMENTS, Bed, read_rates
from search_rates import FIRST, OTHERS, row_of

__all__ = ["spread_of"]

VARIANTS = ("bias", "adapter", "prompt", "prefix_tuning")
RIVALS = ("full", "head")
EFFECT = 0.02


def main() -> None:
    """Print a line for each class of a bed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bed", choices=sorted(BEDS))
    bed = BEDS[parser.parse_args().bed]
    for kind, spread in _spreads(bed):
        few, many = effect_of(spread, 10), effect_of(spread, 20)
        print(
            f"{kind}: standard deviation {spread:.3f}, {seeds_for(EFFECT, spread)} seeds for "
            f"{EFFECT}, smallest effect of 10 seeds {few:.3f}, of 20 {many:.3f}"
        )


def spread_of(scores: Mapping[str, Mapping[int, float]]) -> float | None:
    """Return the pooled standard deviation of the differences; None without a pair.

    Args:
      scores: method -> seed -> accuracy.
    """
    found = [
        variance([scores[one][seed] - scores[other][seed] for seed in scores[one]])
        for one in VARIANTS
        for other in RIVALS
        if one in scores and other in scores
    ]
    return math.sqrt(sum(found) / len(found)) if found else None


def _spreads(bed: Bed) -> Iterator[tuple[str, float]]:
    lines = read_lines(EXPERIMENTS / "results" / f"search-{bed.name}.jsonl")
    rates = read_rates().get(bed.name, {})
    for kind, methods in rates.items():
        scores: dict[str, dict[int, float]] = {}
        for method, rate in methods.items():
            for seed in (FIRST, *OTHERS):
                row = row_of(bed, (kind, method), rate, seed)
                run = lines.get(line_digest(resolve(row.experiment).experiment))
                if run is not None and run.last is not None:
                    scores.setdefault(method, {})[seed] = run.last
        whole = {method: found for method, found in scores.items() if len(found) == 3}
        if (spread := spread_of(whole)) is not None:
            yield kind, spread


if __name__ == "__main__":
    main()
