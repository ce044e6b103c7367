"""A bootstrap over test items: the margin that another test set of the same size would give.

    draw N items with replacement, the same for both sides and for every comparison of a data set;
    the seeds stay as they are, and a margin is the mean over them
    10,000 margins  ->  their 5 % and 95 % quantiles

It stands beside the tests over seeds and decides nothing: seeds draw partition, cohorts and head,
items draw the examples on which all runs are scored.

Reference: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedpeft.core import seeds
from fedpeft.results.paired import LEVEL, Comparison

DRAWS = 10_000
_BLOCK = 1 << 21
"""Items drawn at a time, to bound memory."""


def over_items(found: Sequence[Comparison], draws: int = DRAWS) -> tuple[Comparison, ...]:
    """Return comparisons with the interval of their margin over draws of the test items.

    Args:
      found: those without `item_margins` stay without an interval.
      draws: number of test sets that are drawn.
    """
    known = [at for at, each in enumerate(found) if each.item_margins is not None]
    column = {at: place for place, at in enumerate(known)}
    totals_DK = np.zeros((draws, len(known)))
    parts = dict[str, list[tuple[int, NDArray[np.float64]]]]()
    for at in known:
        for source, part_N in (found[at].item_margins or {}).items():
            parts.setdefault(f"{source}\n{len(part_N)}", []).append((column[at], part_N))
    for source, columns in parts.items():
        items_NK = np.stack([part_N for _, part_N in columns], axis=1)
        means_DK = np.concatenate(list(_drawn_means(items_NK, draws, source)))
        totals_DK[:, [place for place, _ in columns]] += means_DK
    rounded_DK = totals_DK.round(12)  # the last bits depend on how many columns are multiplied
    low_K, high_K = np.quantile(rounded_DK, [LEVEL, 1 - LEVEL], axis=0)
    return tuple(
        replace(each, item_interval=(float(low_K[column[at]]), float(high_K[column[at]])))
        if at in column
        else each
        for at, each in enumerate(found)
    )


def _drawn_means(
    items_NK: NDArray[np.float64], draws: int, name: str
) -> Iterator[NDArray[np.float64]]:
    """Yield the means of K columns over drawn items, some draws at a time [B, K]."""
    size = len(items_NK)
    generator = np.random.default_rng(seeds.derive(0, "test items", name))
    step = max(1, _BLOCK // size)
    for start in range(0, draws, step):
        count = min(step, draws - start)
        rows = generator.integers(size, size=(count, size), dtype=np.int64)
        rows += size * np.arange(count)[:, None]
        times_BN = np.bincount(rows.ravel(), minlength=count * size).reshape(count, size)
        yield times_BN.astype(np.float64) @ items_NK / size
