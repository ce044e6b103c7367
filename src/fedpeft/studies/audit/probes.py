"""Probe clients: updates that are designed to show what the rounds of a run do to them.

    nobody contributes       what is released is the noise alone
    a round is repeated,     what is released is the contributions and fresh noise: else the
      and all contribute     difference of the two releases would be free of noise
    K send u, |u| = 10000 C  what is released has at most the length K C along u
    n of N send u, |u| < C   what is released is n u / E, not n u / n       E: expected number

u has the same length in every tensor, so that a clip of each tensor by itself lets through
sqrt(tensors) times the bound. The rounds are those of the run: its client half, stages, algorithm
and secret; only the updates and the cohorts are chosen here.

    central   a release is the noised mean that the server applies
    local     a release is the noised update that a client sends
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpeft.build.privacy_of_run import PrivacyOfRun
from fedpeft.client.turns import Memory
from fedpeft.core import seeds
from fedpeft.core.deltas import DeltaSpec
from fedpeft.experiment.experiment import Experiment
from fedpeft.rounds.round_plan import RoundPlan
from fedpeft.server.state import ServerState
from fedpeft.studies.audit.checks import CHECKS, EXACT, FAMILY_LEVEL, Observed
from fedpeft.studies.audit.contributions import lone_norms, twin_replies
from fedpeft.studies.audit.probe_rounds import Probe, Released, numbers, release_rounds
from fedpeft.studies.audit.statistics import Floats

HUGE = 1e4
"""The length, in clip bounds, of an update that must be clipped."""

_BELOW = 0.9  # the length, in clip bounds, of an update that must not be clipped
_MOST_NUMBERS = 2**31  # of all updates in a round
_MOST_NOISE = 2**25  # numbers of noise that are kept


def spread(sizes: Sequence[int], seed: int) -> Tensor:
    """Return a unit vector [P] with the same norm in every tensor, and random signs."""
    count = sum(sizes)
    signs_P = torch.randint(2, (count,), generator=seeds.generator(seed, "audit", "probe")) * 2 - 1
    lengths_P = torch.cat([torch.full((size,), size**-0.5) for size in sizes])
    return signs_P * lengths_P / math.sqrt(len(sizes))


@dataclass(frozen=True)
class _Claim:
    """What is claimed of the rounds.

    Attributes:
      direction_P: the unit vector along which probes send.
      clip_norm: C.
      multiplier: z; the noise has deviation z C.
      by_client: whether the clients add the noise, each to its own release.
    """

    direction_P: Tensor
    clip_norm: float
    multiplier: float
    by_client: bool

    @property
    def update_P(self) -> Tensor:
        """The update of norm C."""
        return self.direction_P * self.clip_norm

    @property
    def deviation(self) -> float:
        """The deviation of the noise of a coordinate."""
        return self.multiplier * self.clip_norm

    def noise(self, released: Released, length: float = 0.0) -> Floats:
        """Return a round's noise [T, P], standard by claim: one row, or one of each client.

        Args:
          released: by the round.
          length: norm of every client's update, in clip bounds, below 1; used if `by_client`.
        """
        if self.by_client:
            sent_P = length * numbers(self.update_P)
            return (
                np.stack([numbers(row_P) - sent_P for row_P in released.replies]) / self.deviation
            )
        return (numbers(released.sum_P) - released.total())[None] / self.deviation

    def excess(self, released: Released, senders: int) -> float:
        """Return by how many deviations contributions exceed C each along the direction."""
        direction_P = numbers(self.direction_P)
        if self.by_client:
            along = sum(float(numbers(reply_P) @ direction_P) for reply_P in released.replies)
            deviation = self.multiplier * math.sqrt(len(released.replies))
        else:
            along, deviation = float(numbers(released.sum_P) @ direction_P), self.multiplier
        return (along / self.clip_norm - senders) / deviation

    def residual(self, released: Released) -> float:
        """Return how far the noised sum is from the sum of contributions, in deviations."""
        rest_P = numbers(released.sum_P) - released.total()
        return float(rest_P @ numbers(self.direction_P)) / self.deviation

    def error(self, released: Released) -> float:
        """Return the relative difference of the mean times the expected number from the sum."""
        total_P = released.total()
        length = max(float(np.linalg.norm(total_P)), math.ulp(0.0))
        return float(np.linalg.norm(numbers(released.sum_P) - total_P)) / length


def observe_rounds(
    start: ServerState, plan: RoundPlan, experiment: Experiment, privacy: PrivacyOfRun
) -> Observed:
    """Run rounds of probes of mode `central` or `local`.

    Args:
      start: the state before round 1.
      plan: the plan of every round.
      experiment: resolved, with the claimed noise multiplier, > 0.
      privacy: of the run; it draws the secrets of a second run.

    Raises:
      RoundError: if a probe's reply could not be used.
    """
    chosen, by_client = experiment.privacy, privacy.mode.noise_by == "client"
    if by_client:  # the stages that follow compute from what is released
        plan = dataclasses.replace(plan, up=plan.up[: len(privacy.stages)])
    plan = dataclasses.replace(plan, conditions=None, buffering=None)
    direction_P = spread(plan.spec.sizes, experiment.seed)
    claim = _Claim(direction_P, chosen.clip_norm, chosen.noise_multiplier or 0.0, by_client)
    count = _num_probes(plan.spec, claim)
    few, many = _idle_rounds(plan.spec.num_params, count, by_client)
    lone = [] if by_client else [Probe(count, count, 1, HUGE)]  # first: stages may keep residuals
    clips = [*lone, Probe(count, count, count, HUGE), Probe(count, count, count, 2.0)]
    third = max(1, count // 3)
    parts = [Probe(n, m, m, _BELOW) for n, m in ((count, count), (count, third), (third, third))]
    memories: dict[str, Memory] = {}
    rounds = [*few, *many, *clips, *parts]
    releases = release_rounds(start, plan, claim.update_P, rounds, memories)
    few_TP, many_TP = (
        np.concatenate([claim.noise(next(releases)) for _ in idle]) for idle in (few, many)
    )
    excesses = tuple(claim.excess(next(releases), probe.senders) for probe in clips)
    again_TP = None
    if not chosen.reproducible_noise:
        again_TP = _noise_again(start, plan, claim, few[0], memories)
    twin = twin_replies(experiment, plan.spec, direction_P)
    norms = lone_norms(twin) if by_client else ()
    measure = claim.error if by_client else claim.residual
    apart = tuple(map(measure, releases))
    return Observed(
        np.concatenate([few_TP, many_TP]),
        plan.spec.sizes,
        None if chosen.reproducible_noise else _other_noise(start, plan, claim, privacy, few),
        again_TP=again_TP,
        clip_scores=excesses,
        clip_norms=norms,
        least_norm=1 + EXACT if norms else least_norm(_blur(claim, count), len(excesses)),
        denominator_scores=() if by_client else apart,
        denominator_errors=apart if by_client else (),
        few_TP=few_TP,
        many_TP=many_TP,
    )


def least_norm(blur: float, scores: int) -> float:
    """Return the norm of a contribution, in clip bounds, that is found in 999 of 1000 audits.

    Args:
      blur: deviation of the mean of the contributions' projections, in clip bounds.
      scores: number of projections that are compared.
    """
    from scipy.stats import norm

    return 1 + blur * (float(norm.isf(FAMILY_LEVEL / len(CHECKS) / scores)) + 3.1)


def _num_probes(spec: DeltaSpec, claim: _Claim) -> int:
    """Return how many probes send at once, so that their sum shows a clip of each tensor."""
    over = math.sqrt(max(2, len(spec.names))) - 1
    if claim.by_client:
        needed = min(256.0, (10 * claim.multiplier / over) ** 2)
    else:
        needed = claim.multiplier * max(30.0, 12 / over)
    return max(20, min(math.ceil(needed), _MOST_NUMBERS // spec.num_params))


def _blur(claim: _Claim, count: int) -> float:
    return claim.multiplier / (math.sqrt(count) if claim.by_client else count)


def _idle_rounds(size: int, count: int, by_client: bool) -> tuple[list[Probe], list[Probe]]:
    """Return rounds without contributions, in which few answer, and in which many do."""
    each = 4 if 8 * size <= _MOST_NOISE else 2
    if by_client:
        return [Probe(4, 2)] * each, [Probe(4, 4)] * (each // 2)
    return [Probe(count, 1)] * each, [Probe(count, count)] * each


def _other_noise(
    start: ServerState, plan: RoundPlan, claim: _Claim, privacy: PrivacyOfRun, few: Sequence[Probe]
) -> Floats:
    """Return the noise of the first two rounds of another run, with a secret of its own."""
    again = privacy.start(dataclasses.replace(start, root=start.root[:0]))
    return np.concatenate(
        [claim.noise(r) for r in release_rounds(again, plan, claim.update_P, few[:2], {})]
    )


def _noise_again(
    start: ServerState, plan: RoundPlan, claim: _Claim, first: Probe, memories: dict[str, Memory]
) -> Floats:
    """Return the noise of the first round, repeated with the same secrets and all contributing."""
    probe = dataclasses.replace(first, senders=first.answers, length=_BELOW)
    (released,) = release_rounds(start, plan, claim.update_P, [probe], memories)
    return claim.noise(released, _BELOW)
