"""The capped rule against a plain implementation, number by number."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from fedpeft.data.schemes import MAX_TRIES, PartitionRequest, deal_dirichlet

CIFAR = np.repeat(np.arange(100), 500)
RULE = PartitionRequest(clients=64, alpha=0.1, min_examples=10, seed=1)


def plain(labels, rule, capped):
    """One try after the other, index lists and numpy's own Dirichlet."""
    rng = np.random.RandomState(rule.seed)
    for tries in range(1, 1000):
        parts = [[] for _ in range(rule.clients)]
        for label in sorted(set(labels.tolist())):
            members = np.where(labels == label)[0]
            rng.shuffle(members)
            p = rng.dirichlet([rule.alpha] * rule.clients)
            if capped:
                share = len(labels) / rule.clients
                p = np.array([x * (len(part) < share) for x, part in zip(p, parts, strict=True)])
            p = p / p.sum()
            cuts = (np.cumsum(p) * len(members)).astype(int)[:-1]
            for part, piece in zip(parts, np.split(members, cuts), strict=True):
                part.extend(piece.tolist())
        if min(map(len, parts)) >= rule.min_examples:
            for part in parts:
                rng.shuffle(part)
            return parts, tries
    raise AssertionError("no try did")


@pytest.mark.parametrize("capped", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_deal_equals_plain_implementation(seed, capped):
    labels = np.random.RandomState(100 + seed).randint(0, 20, 900)
    rule = PartitionRequest(clients=16, alpha=0.15, min_examples=30, seed=seed)
    expected, tries = plain(labels, rule, capped)
    deal = deal_dirichlet(labels, rule, capped=capped)
    assert deal.tries == tries
    assert [part.tolist() for part in deal.parts] == expected


def test_comparison_meets_many_tries():
    labels = np.random.RandomState(101).randint(0, 20, 900)
    rule = PartitionRequest(clients=16, alpha=0.15, min_examples=30, seed=1)
    assert plain(labels, rule, capped=False)[1] > 100


def test_cap_changes_the_deal():
    capped, free = (deal_dirichlet(CIFAR, RULE, capped=c) for c in (True, False))
    assert max(map(len, capped.parts)) < max(map(len, free.parts))


@pytest.mark.parametrize("order", [None, 0, 7])
def test_cifar100_sizes_are_the_papers_whatever_the_order_of_labels(order):
    labels = CIFAR if order is None else np.random.RandomState(order).permutation(CIFAR)
    deal = deal_dirichlet(labels, RULE)
    sizes = sorted(map(len, deal.parts))
    assert (sizes[0], int(np.median(sizes)), sizes[-1]) == (390, 795, 1052)
    assert deal.tries == 1


def test_sixteen_clients_and_two_classes_have_the_papers_sizes():
    few = sorted(map(len, deal_dirichlet(CIFAR, replace(RULE, clients=16)).parts))
    assert (few[0], int(np.median(few)), few[-1]) == (2707, 3146, 3549)
    pcam = deal_dirichlet(np.repeat([0, 1], 10_000), replace(RULE, alpha=0.5))
    sizes = sorted(map(len, pcam.parts))
    assert (pcam.tries, sizes[0], int(np.median(sizes)), sizes[-1]) == (2, 21, 238, 1342)


def test_another_seed_gives_other_sizes():
    sizes = sorted(map(len, deal_dirichlet(CIFAR, replace(RULE, seed=2)).parts))
    assert sizes[0] != 390


@pytest.mark.parametrize("tries", [500, pytest.param(MAX_TRIES, marks=pytest.mark.slow)])
def test_many_tries_take_milliseconds_each_and_report_the_best(tries):
    labels = np.repeat(np.arange(10), 126)

    def deal(least):
        return deal_dirichlet(labels, replace(RULE, min_examples=least), max_tries=tries)

    start = time.process_time()
    best = deal(RULE.min_examples)
    assert time.process_time() - start < tries / 1000
    assert best.parts is None and best.tries == tries
    assert deal(best.smallest).parts is not None
    assert deal(best.smallest + 1).parts is None


def test_vanishing_alpha_is_a_failed_try_not_a_wrong_one():
    deal = deal_dirichlet(np.repeat(np.arange(10), 30), replace(RULE, alpha=1e-4), max_tries=50)
    assert deal.parts is None and deal.smallest == 0
