"""Clipping and noise: exact bounds, and measured standard deviations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedpeft.core.noise import (
    clip,
    clip_rows,
    draw_root,
    gaussian,
    seeded_root,
    uniform,
)

ROOT = seeded_root(1)


@pytest.mark.parametrize("length", [1e-6, 0.5, 0.9999999, 1.0, 1.0000001, 316.0, 1e20])
def test_clipped_norm_never_exceeds_the_bound(length):
    flat = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    flat = flat / flat.norm() * length
    clipped = clip(flat, 0.7)
    assert float(clipped.double().norm()) <= 0.7
    assert torch.equal(clip(clipped, 0.7), clipped)
    assert float(clipped.double().norm()) == pytest.approx(min(length, 0.7), rel=1e-6)


def test_infinite_bound_and_short_vectors_change_nothing():
    flat = torch.randn(100)
    assert torch.equal(clip(flat, math.inf), flat)
    assert torch.equal(clip(flat, 1e9), flat)
    assert torch.equal(clip(torch.zeros(3), 1.0), torch.zeros(3))


def test_a_number_that_is_not_finite_is_not_hidden():
    for bad in (math.inf, math.nan):
        assert not torch.isfinite(clip(torch.tensor([1.0, bad]), 1.0)).all()


def test_rows_are_clipped_one_by_one():
    rows = torch.randn(9, 50) * torch.logspace(-3, 3, 9).unsqueeze(1)
    assert torch.equal(clip_rows(rows, 1.0), torch.stack([clip(row, 1.0) for row in rows]))


def test_measured_deviation_is_the_one_asked_for():
    noise = gaussian(ROOT, 100_000, 2.5, "noise", 1).double()
    assert float(noise.std()) == pytest.approx(2.5, rel=0.01)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.04)
    inside = float((noise.abs() < 2.5).double().mean())
    assert inside == pytest.approx(0.6827, abs=0.006)


@pytest.mark.system_entropy
def test_noise_follows_root_and_path_alone():
    same = [gaussian(ROOT, 11, 1.0, "noise", 3) for _ in range(2)]
    assert torch.equal(*same)
    for other in (
        gaussian(ROOT, 11, 1.0, "noise", 4),
        gaussian(ROOT, 11, 1.0, "noise", "3"),
        gaussian(draw_root(), 11, 1.0, "noise", 3),
    ):
        assert not torch.equal(same[0], other)
    assert torch.equal(gaussian(ROOT, 5, 0.0, "noise"), torch.zeros(5))


def test_coins_are_uniform():
    coins = uniform(ROOT, 100_000, "cohort", 1)
    assert coins.min() > 0 and coins.max() < 1
    assert np.histogram(coins, bins=10, range=(0, 1))[0].tolist() == pytest.approx(
        [10_000] * 10, rel=0.05
    )
