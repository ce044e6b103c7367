"""The private mean: one update moves it by its length over the planned cohort, whoever answers."""

from __future__ import annotations

import pytest
import torch

from fedpeft.client.turns import DELTA
from fedpeft.core.deltas import DeltaSpec
from fedpeft.core.errors import RoundError
from fedpeft.server.algorithms import constant_denominator, fedavg, fedavgm
from fedpeft.server.state import ClientUpdate, RoundContext

SPEC = DeltaSpec(("w",), ((50,),))
CONTEXT = RoundContext(1, ("a", "b", "c"), 4.0, 1)
PLAIN = fedavg()
PRIVATE = constant_denominator(PLAIN, SPEC)


def updates_of(number, weight=1.0):
    generator = torch.Generator().manual_seed(number)
    return [
        ClientUpdate(f"c{i}", {DELTA: torch.randn(50, generator=generator)}, weight + i, SPEC)
        for i in range(number)
    ]


def mean(algorithm, updates):
    return algorithm.combine(iter(updates), CONTEXT).delta


@pytest.mark.parametrize("number", [1, 3, 9])
def test_the_divisor_is_the_planned_cohort_whoever_answers(number):
    updates = updates_of(number)
    total = torch.stack([update.payload[DELTA] for update in updates]).sum(0)
    assert torch.allclose(mean(PRIVATE, updates), total / 4.0, atol=1e-6)
    assert not torch.allclose(mean(PLAIN, updates), total / 4.0, atol=1e-2)


@pytest.mark.parametrize("gone", range(3))
def test_leaving_one_client_out_moves_the_mean_by_its_update_over_the_cohort(gone):
    updates = updates_of(3)
    rest = [update for i, update in enumerate(updates) if i != gone]
    length = float(updates[gone].payload[DELTA].norm())
    moved = float((mean(PRIVATE, updates) - mean(PRIVATE, rest)).norm())
    assert moved == pytest.approx(length / 4.0, rel=1e-5)
    far = float((mean(PLAIN, updates) - mean(PLAIN, rest)).norm())
    assert far != pytest.approx(length / 4.0, rel=0.02)  # a mean of those who came


def test_a_claimed_weight_counts_for_nothing():
    light, heavy = updates_of(3), updates_of(3, weight=100.0)
    assert torch.equal(mean(PRIVATE, light), mean(PRIVATE, heavy))
    assert not torch.allclose(mean(PLAIN, light), mean(PLAIN, heavy), atol=1e-3)


def test_an_empty_round_is_zeros_and_legal():
    update = PRIVATE.combine(iter(()), CONTEXT)
    assert torch.equal(update.delta, torch.zeros(50))
    assert (update.weight, update.buffers.numel()) == (4.0, 0)
    with pytest.raises(RoundError, match="no client answered"):
        mean(PLAIN, [])


def test_only_combining_changes_and_no_update_is_written_to():
    algorithm = fedavgm()
    private = constant_denominator(algorithm, SPEC)
    for part in ("init", "broadcast", "apply"):
        assert getattr(private, part) is getattr(algorithm, part)
    updates = updates_of(2)
    before = [update.payload[DELTA].clone() for update in updates]
    mean(private, updates)
    assert all(torch.equal(u.payload[DELTA], b) for u, b in zip(updates, before, strict=True))
