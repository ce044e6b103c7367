"""Canaries in the real round: what they show, and the law of the audit over 20 seeds."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from fedpeft.core.deltas import DeltaSpec
from fedpeft.core.errors import RoundError
from fedpeft.core.noise import seeded_root
from fedpeft.rounds.client_half import ClientHalf
from fedpeft.rounds.round_plan import RoundPlan
from fedpeft.server.algorithms import constant_denominator, fedadam, fedavg
from fedpeft.server.sampling import fixed_cohort, poisson, sampler_of
from fedpeft.studies.audit.canaries import CanaryEngine, canary_trainer, draw_canaries, watch_rounds
from fedpeft.studies.audit.statistics import (
    Evidence,
    Normal,
    Trial,
    allowed_failures,
    choose_rule,
    count_right,
    epsilon_between,
    fit,
    log_ratios,
    lower_bound,
)
from fedpeft.wire import stages
from fedpeft.wire.privacy_accounting import Mechanism, epsilon_of
from fedpeft.wire.private_stages import Guard, central, local

SIZE, COUNT, DELTA = 3000, 300, 1e-5
SPEC = DeltaSpec(("w",), ((SIZE,),))
CLAIMS = {
    "central": (Mechanism(2.5), 1),
    "poisson": (Mechanism(3.5, sampling=0.5), 4),
    "local": (Mechanism(5.0, distance=2.0), 1),
}


class Nobody:
    """Ordinary clients that are named, and never asked."""

    def clients(self):
        return ("a", "b", "c", "d")

    def run(self, job):
        raise AssertionError(job.cohort)


def small(kind, noise, *, seed, algorithm=None):
    """A plan with the real stages, the state before round 1 and the canaries."""
    claim, _ = CLAIMS[kind]
    stage = (local if kind == "local" else central)(Guard(0.5, noise, reproducible=True))
    plan = RoundPlan(
        constant_denominator(algorithm or fedavg(), SPEC),
        sampler_of(lambda clients, number: fixed_cohort(clients, 4, seed=seed, round=number)),
        SPEC, DeltaSpec((), ()), seed, 2.0, up=(stage,), min_replies=0,
    )  # fmt: skip
    if kind == "poisson":
        plan = dataclasses.replace(plan, sampler=poisson(claim.sampling))
    state = plan.algorithm.init(torch.zeros(SIZE), torch.empty(0))
    canaries = draw_canaries(COUNT, seed=seed, clip_norm=0.5, opposite=kind == "local")
    return dataclasses.replace(state, root=seeded_root(seed)), plan, canaries


def projections(kind, noise, *, seed=1, algorithm=None, rounds=None, chain=None):
    state, plan, canaries = small(kind, noise, seed=seed, algorithm=algorithm)
    plan = dataclasses.replace(plan, up=plan.up if chain is None else chain)
    half = ClientHalf(canary_trainer(canaries, SIZE), plan.up, (), SPEC, private=True)
    engine = CanaryEngine(Nobody(), half, canaries, idle=True)
    seen = watch_rounds((state, plan), engine, canaries, rounds or CLAIMS[kind][1])
    return canaries, seen


def audited(kind, *, seed, noise=None):
    """The accountant's epsilon and the lower bound of one audit."""
    claim, uses = CLAIMS[kind]
    epsilon = epsilon_of(claim, uses, DELTA)
    blur = 0.0 if kind == "local" else COUNT / 2 / SIZE
    trial = Trial(claim, uses, COUNT, DELTA, 0.95, epsilon, blur)
    rule = choose_rule(trial).rule
    canaries, seen = projections(
        kind, claim.noise_multiplier if noise is None else noise, seed=seed
    )
    right = count_right(log_ratios(seen.projected_TK, claim), canaries.present, rule)
    return epsilon, lower_bound(Evidence(COUNT, rule.guesses, right), DELTA, 0.95)


SEEDS = pytest.mark.parametrize(
    ("seeds", "allowed"), [(5, 2), pytest.param(20, 4, marks=pytest.mark.slow)]
)


@SEEDS
@pytest.mark.parametrize("kind", CLAIMS)
def test_sound_audits_exceed_epsilon_no_more_often_than_allowed(kind, seeds, allowed):
    """At confidence 0.95, 4 of 20 may; 5 or more have a probability of 0.003."""
    results = [audited(kind, seed=seed) for seed in range(seeds)]
    failures = sum(bound > epsilon for epsilon, bound in results)
    assert failures <= allowed_failures(seeds, 0.95) == allowed


@SEEDS
@pytest.mark.parametrize("kind", CLAIMS)
def test_audits_without_noise_all_exceed_epsilon(kind, seeds, allowed):
    results = [audited(kind, seed=seed, noise=0.0) for seed in range(seeds)]
    assert sum(bound > epsilon for epsilon, bound in results) == seeds > allowed


def test_a_canary_is_clipped_and_a_missing_clip_shows():
    canaries, seen = projections("central", 0.0)
    there = seen.projected_TK[0, canaries.present]
    assert there.mean() == pytest.approx(1.0, abs=0.1)
    assert seen.projected_TK[0, ~canaries.present].mean() == pytest.approx(0.0, abs=0.1)
    _, loose = projections("central", 0.0, chain=())
    assert loose.projected_TK[0, canaries.present].mean() == pytest.approx(2.0, abs=0.2)


def test_the_noise_that_is_seen_is_the_promised_one():
    canaries, seen = projections("central", 3.0)
    assert seen.projected_TK[0, ~canaries.present].std() == pytest.approx(3.0, rel=0.3)
    _, replies = projections("local", 3.0)
    signs = np.where(canaries.present, 1.0, -1.0)
    assert (replies.projected_TK[0] - signs).std() == pytest.approx(3.0, rel=0.2)


def test_absent_canaries_have_cosines_of_variance_one_over_d():
    canaries, seen = projections("central", 1.0, rounds=2)
    spread = seen.cosines_K[~canaries.present].std() * math.sqrt(SIZE)
    assert spread == pytest.approx(1.0, rel=0.3)


def test_the_estimate_is_near_the_accountant_of_a_gaussian():
    """One audit's fit is coarse; that of the cosines of eight is not."""
    pooled = []
    for seed in range(8):
        canaries, seen = projections("central", 2.5, seed=seed)
        pooled.append(seen.cosines_K[canaries.present])
    found = epsilon_between(Normal(0.0, SIZE**-0.5), fit(np.concatenate(pooled)), DELTA)
    assert found == pytest.approx(epsilon_of(Mechanism(2.5), 1, DELTA), rel=0.3)


def test_what_is_seen_does_not_depend_on_the_server_optimiser():
    """The aggregate is watched before it is applied: the algorithm post-processes it."""
    _, plain = projections("central", 0.0)
    _, adam = projections("central", 0.0, algorithm=fedadam(lr=1.0))
    np.testing.assert_array_equal(plain.projected_TK, adam.projected_TK)


def test_a_secret_cohort_takes_each_canary_with_its_probability():
    canaries, seen = projections("poisson", 0.0, rounds=6)
    there = (seen.projected_TK[:, canaries.present] > 0.5).mean()
    assert there == pytest.approx(0.5, abs=0.1)


def test_a_canary_that_is_not_heard_ends_the_audit():
    def broken(payload, turn):
        raise ValueError("scrambled")

    chain = (stages.Stage("broken", decode=broken),)
    with pytest.raises(RoundError, match=r"canary client audit-canary-\d+.*scrambled.*wire\.up"):
        projections("central", 1.0, chain=chain)


def test_coins_and_directions_come_from_the_seed():
    first, again, other = (
        draw_canaries(50, seed=seed, clip_norm=1.0, opposite=False) for seed in (1, 1, 2)
    )
    assert first.names == again.names != other.names
    assert torch.equal(first.direction(3, 40), again.direction(3, 40))
    assert not torch.equal(first.direction(3, 40), other.direction(3, 40))
    assert float(torch.linalg.vector_norm(first.direction(3, 40))) == pytest.approx(1.0)
