"""The mean under privacy: the sum of the updates, divided by a constant of the run.

    sum_i u_i / E[cohort]        never by the weight that answered, or by how many came

The noise is scaled for this divisor. Divided by fewer clients, the same sum would move further
than the noise hides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from fedpeft.client.turns import DELTA
from fedpeft.core.deltas import DeltaSpec
from fedpeft.server.state import Algorithm, ClientUpdate, RoundContext, Update

__all__ = ["constant_denominator"]


def constant_denominator(algorithm: Algorithm, spec: DeltaSpec) -> Algorithm:
    """Return the algorithm with a mean that divides by the expected cohort, a constant of the run.

    Every update counts once, whatever weight it claims; a round in which nobody answered gives
    zeros, which are noised like any other sum.
    """

    def combine(updates: Iterable[ClientUpdate], context: RoundContext) -> Update:
        total_P: Tensor = torch.zeros(spec.num_params, dtype=spec.dtype)
        for update in updates:
            total_P.add_(update.payload[DELTA])
        mean_P = total_P.div_(context.expected_cohort)
        return Update(mean_P, torch.empty(0), context.expected_cohort)

    return dataclasses.replace(algorithm, combine=combine)
