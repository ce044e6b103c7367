"""Federated algorithms: how the server turns a cohort's updates into a new delta.

    u = sum_i n_i u_i / sum_i n_i            the weighted mean of updates (after - before)
    fedavg     delta <- delta + lr u
    fedavgm    m <- beta m + u;              delta <- delta + lr m
    fedadam    m <- b1 m + (1 - b1) u;  v <- b2 v + (1 - b2) u^2
    fedyogi    ...                      v <- v - (1 - b2) u^2 sign(v - u^2)
    fedadagrad ...                      v <- v + u^2
               delta <- delta + lr m / (sqrt(v) + tau)

Buffers are not optimised: each is set to its weighted mean. Under privacy the sum is divided by a
constant of the run (`constant_denominator`): the noise is scaled for it, and a sum divided by fewer
clients would move further than the noise hides.

References:
  McMahan et al. 2017 (FedAvg); Hsu et al., Measuring the Effects of Non-Identical Data
  Distribution, 2019 (FedAvgM); Reddi et al., Adaptive Federated Optimization, ICLR 2021,
  Algorithm 2 (the others).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from fedpeft.client.turns import BUFFERS, DELTA, Memory, Payload
from fedpeft.core.deltas import DeltaSpec
from fedpeft.core.errors import ConfigError, DeltaMismatchError, RoundError
from fedpeft.server.state import Algorithm, ClientUpdate, RoundContext, ServerState, Update

_EMPTY = torch.empty(0)

Optimise = Callable[[Memory, Tensor], tuple[Tensor, Memory]]
"""(memory, mean update [P]) -> (step [P], memory)."""


def fedavg(*, lr: float = 1.0) -> Algorithm:
    """Add the weighted mean of updates to the delta (McMahan et al. 2017).

    Args:
      lr: the server's learning rate, > 0.
    """
    _check("lr", lr, above=True)
    return _algorithm(lambda memory, u_P: (lr * u_P if lr != 1 else u_P, memory))


def fedprox(*, lr: float = 1.0, mu: float = 0.01) -> Algorithm:
    """FedAvg with a proximal term at the clients (Li et al. 2020).

    Args:
      lr: the server's learning rate, > 0.
      mu: weight of the proximal term in each client's loss, >= 0.
    """
    _check("mu", mu)
    return replace(fedavg(lr=lr), prox_mu=float(mu))


def fedavgm(*, lr: float = 1.0, momentum: float = 0.9) -> Algorithm:
    """FedAvg with server momentum (Hsu et al. 2019).

    Args:
      lr: the server's learning rate, > 0.
      momentum: decay of the sum of updates, in [0, 1).
    """
    _check("lr", lr, above=True)
    _check("momentum", momentum, below=1.0)

    def optimise(memory: Memory, u_P: Tensor) -> tuple[Tensor, Memory]:
        m_P = momentum * memory["momentum"] + u_P
        return lr * m_P, {**memory, "momentum": m_P}

    return _algorithm(optimise, lambda delta_P: {"momentum": torch.zeros_like(delta_P)})


def fedadam(
    *, lr: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3
) -> Algorithm:
    """Adam at the server (Reddi et al. 2021).

    Args:
      lr: the server's learning rate, > 0.
      beta1: decay of the first moment, in [0, 1).
      beta2: decay of the second moment, in [0, 1).
      tau: adaptivity; added to the root of the second moment, > 0.
    """
    _check("beta2", beta2, below=1.0)
    return _adaptive(lr, beta1, tau, lambda v, u2: beta2 * v + (1 - beta2) * u2)


def fedyogi(
    *, lr: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3
) -> Algorithm:
    """Yogi at the server (Reddi et al. 2021). Options are those of `fedadam`."""
    _check("beta2", beta2, below=1.0)
    return _adaptive(lr, beta1, tau, lambda v, u2: v - (1 - beta2) * u2 * torch.sign(v - u2))


def fedadagrad(*, lr: float = 0.01, beta1: float = 0.0, tau: float = 1e-3) -> Algorithm:
    """Adagrad at the server (Reddi et al. 2021). Options are those of `fedadam`."""
    return _adaptive(lr, beta1, tau, lambda v, u2: v + u2)


def _check(name: str, value: float, *, above: bool = False, below: float = math.inf) -> None:
    """Check that an option lies within 0 to `below`; with `above`, 0 is not allowed either.

    Raises:
      ConfigError: with the option and its allowed range.
    """
    if not (value > 0 if above else value >= 0) or not value < below:
        low = "above 0" if above else "0"
        raise ConfigError(f"{name}: found {value}; allowed is {low} up to {below}, without {below}")


def _adaptive(
    lr: float, beta1: float, tau: float, second_moment: Callable[[Tensor, Tensor], Tensor]
) -> Algorithm:
    _check("lr", lr, above=True)
    _check("beta1", beta1, below=1.0)
    _check("tau", tau, above=True, below=1e18)  # its square is a float32 number

    def start(delta_P: Tensor) -> Memory:
        return {"first": torch.zeros_like(delta_P), "second": torch.full_like(delta_P, tau**2)}

    def optimise(memory: Memory, u_P: Tensor) -> tuple[Tensor, Memory]:
        m_P = beta1 * memory["first"] + (1 - beta1) * u_P
        v_P = second_moment(memory["second"], u_P * u_P)
        step_P = lr * m_P / (v_P.sqrt() + tau)
        return step_P, {**memory, "first": m_P, "second": v_P}

    return _algorithm(optimise, start)


def _algorithm(
    optimise: Optimise, start: Callable[[Tensor], Memory] = lambda delta_P: {}
) -> Algorithm:
    """Build an algorithm from the optimiser step that it takes with a mean update.

    Args:
      optimise: the step.
      start: delta before round 1 -> memory before round 1.
    """

    def init(delta: Tensor, buffers: Tensor) -> ServerState:
        return ServerState(0, delta, buffers, start(delta))

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
    """Return the weighted mean of updates, added to one running sum as they arrive.

    Raises:
      RoundError: if no update arrived.
      DeltaMismatchError: if clients sent deltas of different shapes, which have no mean.
    """
    delta: Tensor | None = None
    buffers, weight = _EMPTY, 0.0
    first: ClientUpdate | None = None
    for update in updates:
        first = first or update
        if update.spec != first.spec:
            raise DeltaMismatchError(
                f"round {context.round}: {update.client} and {first.client} train deltas of "
                "different shapes, which this algorithm cannot average"
            )
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


def constant_denominator(algorithm: Algorithm, spec: DeltaSpec) -> Algorithm:
    """Return the algorithm with a mean that divides by the expected cohort, a constant of the run.

    Every update counts once, whatever weight it claims; a round without replies gives zeros, to
    which noise is added like to any other sum.
    """

    def combine(updates: Iterable[ClientUpdate], context: RoundContext) -> Update:
        total_P = torch.zeros(spec.num_params, dtype=spec.dtype)
        for update in updates:
            total_P.add_(update.payload[DELTA])
        mean_P = total_P.div_(context.expected_cohort)
        return Update(mean_P, torch.empty(0), context.expected_cohort)

    return replace(algorithm, combine=combine)
