"""Federated algorithms: how the server turns a cohort's updates into a new delta.

    u = sum_i n_i u_i / sum_i n_i            the weighted mean of updates (after - before)
    fedavg     delta <- delta + lr u
    fedavgm    m <- beta m + u;              delta <- delta + lr m
    fedadam    m <- b1 m + (1 - b1) u;  v <- b2 v + (1 - b2) u^2
    fedyogi    ...                      v <- v - (1 - b2) u^2 sign(v - u^2)
    fedadagrad ...                      v <- v + u^2
               delta <- delta + lr m / (sqrt(v) + tau)

Buffers are never optimised: their weighted mean is set.

References:
  McMahan et al. 2017 (FedAvg); Hsu et al., Measuring the Effects of Non-Identical Data
  Distribution, 2019 (FedAvgM); Reddi et al., Adaptive Federated Optimization, ICLR 2021,
  Algorithm 2 (the others).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedpeft.client.turns import BUFFERS, DELTA, Memory, Payload
from fedpeft.core.errors import RoundError
from fedpeft.server.state import Algorithm, ClientUpdate, RoundContext, ServerState, Update

__all__ = ["ServerSettings", "fedadagrad", "fedadam", "fedavg", "fedavgm", "fedyogi"]

_EMPTY = torch.empty(0)


@dataclass(frozen=True)
class ServerSettings:
    """Options of the server's optimiser.

    Attributes:
      lr: the server's learning rate, > 0.
      momentum: of FedAvgM, in [0, 1).
      beta1: decay of the first moment, in [0, 1).
      beta2: decay of the second moment, in [0, 1).
      tau: adaptivity; added to the root of the second moment, > 0.
    """

    lr: float = 1.0
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3


def fedavg(settings: ServerSettings | None = None) -> Algorithm:
    """The weighted mean of updates is added to the delta (McMahan et al. 2017)."""
    chosen = settings or ServerSettings()
    return _algorithm(lambda memory, u_P: (chosen.lr * u_P if chosen.lr != 1 else u_P, memory), ())


def fedavgm(settings: ServerSettings) -> Algorithm:
    """FedAvg with momentum at the server (Hsu et al. 2019)."""

    def optimise(memory: Memory, u_P: Tensor) -> tuple[Tensor, Memory]:
        m_P = settings.momentum * memory["momentum"] + u_P
        return settings.lr * m_P, {**memory, "momentum": m_P}

    return _algorithm(optimise, ("momentum",))


def fedadam(settings: ServerSettings) -> Algorithm:
    """Adam at the server (Reddi et al. 2021)."""
    return _adaptive(settings, lambda v, u2: settings.beta2 * v + (1 - settings.beta2) * u2)


def fedyogi(settings: ServerSettings) -> Algorithm:
    """Yogi at the server (Reddi et al. 2021)."""
    return _adaptive(settings, lambda v, u2: v - (1 - settings.beta2) * u2 * torch.sign(v - u2))


def fedadagrad(settings: ServerSettings) -> Algorithm:
    """Adagrad at the server (Reddi et al. 2021)."""
    return _adaptive(settings, lambda v, u2: v + u2)


def _adaptive(
    settings: ServerSettings, second_moment: Callable[[Tensor, Tensor], Tensor]
) -> Algorithm:
    def optimise(memory: Memory, u_P: Tensor) -> tuple[Tensor, Memory]:
        m_P = settings.beta1 * memory["first"] + (1 - settings.beta1) * u_P
        v_P = second_moment(memory["second"], u_P * u_P)
        step_P = settings.lr * m_P / (v_P.sqrt() + settings.tau)
        return step_P, {**memory, "first": m_P, "second": v_P}

    return _algorithm(optimise, ("first", "second"), start=settings.tau**2)


def _algorithm(
    optimise: Callable[[Memory, Tensor], tuple[Tensor, Memory]],
    names: tuple[str, ...],
    *,
    start: float = 0.0,
) -> Algorithm:
    """Build an algorithm from a function (memory, mean update) -> (step, memory)."""

    def init(delta: Tensor, buffers: Tensor) -> ServerState:
        memory: Mapping[str, Tensor] = {
            name: torch.full_like(delta, start if name == "second" else 0.0) for name in names
        }
        return ServerState(0, delta, buffers, memory)

    def apply(state: ServerState, update: Update) -> ServerState:
        step_P, memory = optimise(state.memory, update.delta)
        buffers = update.buffers if update.buffers.numel() else state.buffers
        return replace(
            state, round=state.round + 1, delta=state.delta + step_P, buffers=buffers, memory=memory
        )

    return Algorithm(init, _broadcast, weighted_mean, apply)


def _broadcast(state: ServerState, client: str) -> Payload:
    buffers = {BUFFERS: state.buffers} if state.buffers.numel() else {}
    return {DELTA: state.delta, **buffers}


def weighted_mean(updates: Iterable[ClientUpdate], context: RoundContext) -> Update:
    """Add updates to one running sum as they come, and divide by the weight that came.

    Raises:
      RoundError: if no update came.
    """
    delta: Tensor | None = None
    buffers, weight = _EMPTY, 0.0
    for update in updates:
        weight += update.weight
        if delta is None:
            delta = update.payload[DELTA] * update.weight
            buffers = update.payload.get(BUFFERS, _EMPTY) * update.weight
            continue
        delta.add_(update.payload[DELTA], alpha=update.weight)
        if buffers.numel():
            buffers.add_(update.payload[BUFFERS], alpha=update.weight)
    if delta is None:
        raise RoundError(f"round {context.round}: no client answered; there is nothing to combine")
    return Update(delta.div_(weight), buffers.div_(weight), weight)
