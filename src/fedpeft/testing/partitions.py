"""What every partition keeps."""

from __future__ import annotations

import dataclasses

import numpy as np

from fedpeft.data.schemes import Partition, PartitionRequest

__all__ = ["check_partition"]


def check_partition(rule: Partition, request: PartitionRequest | None = None) -> None:
    """Check the laws of a partition on 400 examples of 5 classes.

    Equal seeds deal equally and other seeds do not; no example is given twice; a deal has as many
    parts as clients were asked for, each of at least `min_examples`, or none at all.

    Args:
      rule: the partition.
      request: with the options that it needs; by default ten clients of at least one example.

    Raises:
      AssertionError: naming the law that does not hold.
    """
    assert rule.deal is not None, "deal: there is none"
    labels = np.random.RandomState(0).randint(0, 5, 400)
    asked = request or PartitionRequest("own", clients=10, alpha=1.0, min_examples=1)
    asked = dataclasses.replace(asked, rule=rule)
    before = labels.copy()
    deal = rule.deal(labels, asked, 100)
    again = rule.deal(labels, asked, 100)
    assert np.array_equal(labels, before), "deal: it changes the labels it is given"
    assert deal.parts is not None, f"deal: nothing in {deal.tries} tries; pass a request that does"
    assert again.parts is not None, "deal: the second time, it gives up"
    assert all(np.array_equal(a, b) for a, b in zip(deal.parts, again.parts, strict=True)), (
        "deal: equal seeds deal differently"
    )
    other = rule.deal(labels, dataclasses.replace(asked, seed=asked.seed + 1), 100)
    assert other.parts is None or any(
        not np.array_equal(a, b) for a, b in zip(deal.parts, other.parts, strict=True)
    ), "deal: another seed deals the same"
    assert len(deal.parts) == asked.clients, f"deal: {len(deal.parts)} parts for {asked.clients}"
    given = np.concatenate(deal.parts)
    assert len(np.unique(given)) == len(given), "deal: an example is given twice"
    assert given.min() >= 0 and given.max() < len(labels), "deal: there is no such example"
    smallest = min(len(part) for part in deal.parts)
    assert smallest >= asked.min_examples, f"deal: a client has {smallest} examples"
