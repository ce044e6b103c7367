"""The coordinate-wise median of updates instead of their mean: a few wild clients change little.

    u_j = median over clients i of u_ij          delta <- delta + u

References:
  Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch

from fedpeft import Algorithm
from fedpeft.client.turns import BUFFERS, DELTA
from fedpeft.core.errors import RoundError
from fedpeft.server.algorithms import fedavg
from fedpeft.server.state import ClientUpdate, RoundContext, Update

__all__ = ["coordinate_median"]


def coordinate_median(*, lr: float = 1.0) -> Algorithm:
    """The median of updates, coordinate by coordinate (Yin et al. 2018).

    All updates of a round are held in memory at once. Weights are not used: a median of weighted
    clients would let one client claim to be many.

    Args:
      lr: the server's learning rate, > 0.
    """
    return dataclasses.replace(fedavg(lr=lr), combine=_median)


def _median(updates: Iterable[ClientUpdate], context: RoundContext) -> Update:
    found = list(updates)
    if not found:
        raise RoundError(f"round {context.round}: no client answered; there is no median")
    delta_P = torch.stack([update.payload[DELTA] for update in found]).quantile(0.5, dim=0)
    buffers = [update.payload[BUFFERS] for update in found if BUFFERS in update.payload]
    middle = torch.stack(buffers).quantile(0.5, dim=0) if buffers else torch.empty(0)
    return Update(delta_P, middle, float(len(found)))
