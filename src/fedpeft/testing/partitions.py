"""The laws of every partition."""

from __future__ import annotations

import dataclasses

import numpy as np

from fedpeft.data.schemes import Partition, PartitionRequest


def check_partition(rule: Partition, request: PartitionRequest | None = None) -> None:
    """Check the laws of a partition on 400 examples of 5 classes.

    Equal seeds give equal deals and different seeds different ones; no example is given twice; a
    deal has as many parts as the request has clients, each of at least `min_examples`.

    >>> from fedpeft.data.schemes import PARTITIONS
    >>> check_partition(PARTITIONS["iid"])

    Args:
      rule: the partition.
      request: a request with the options that the partition needs; by default ten clients with at
        least one example each.

    Raises:
      AssertionError: if a law does not hold; the message names it.
    """
    assert rule.deal is not None, "deal: there is none"
    labels = np.random.RandomState(0).randint(0, 5, 400)
    request = request or PartitionRequest("own", clients=10, alpha=1.0, min_examples=1)
    request = dataclasses.replace(request, rule=rule)
    before = labels.copy()
    deal = rule.deal(labels, request, 100)
    again = rule.deal(labels, request, 100)
    assert np.array_equal(labels, before), "deal: it modifies its labels"
    assert deal.parts is not None, (
        f"deal: none in {deal.tries} tries; pass a request that it can meet"
    )
    assert again.parts is not None, "deal: the second time, it gives up"
    assert all(np.array_equal(a, b) for a, b in zip(deal.parts, again.parts, strict=True)), (
        "deal: equal seeds deal differently"
    )
    other = rule.deal(labels, dataclasses.replace(request, seed=request.seed + 1), 100)
    assert other.parts is None or any(
        not np.array_equal(a, b) for a, b in zip(deal.parts, other.parts, strict=True)
    ), "deal: another seed deals the same"
    assert len(deal.parts) == request.clients, (
        f"deal: {len(deal.parts)} parts for {request.clients}"
    )
    given = np.concatenate(deal.parts)
    assert len(np.unique(given)) == len(given), "deal: an example is given twice"
    assert given.min() >= 0 and given.max() < len(labels), "deal: there is no such example"
    smallest = min(len(part) for part in deal.parts)
    assert smallest >= request.min_examples, f"deal: a client has {smallest} examples"
