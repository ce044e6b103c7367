"""Optimisers over one flat buffer: the arithmetic of torch.optim in a few tensor operations.

    step(value_P, grad_P)      changes value_P in place;  P trained parameters
    step(value_AP, grad_AP)    the same for the first A of K clients, row by row

A fresh optimiser is made for each client and round, so that momentum never leaks between clients.
When several clients train together, `value_AP` leaves out those without further batches: neither
their rows nor their state change.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fedpeft.core.errors import ConfigError

Step: TypeAlias = Callable[[Tensor, Tensor], None]

OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings of a local optimiser.

    Attributes:
      name: `sgd` or `adamw`.
      lr: learning rate, > 0.
      momentum: momentum of SGD, in [0, 1).
      nesterov: whether SGD uses Nesterov momentum; only with momentum.
      weight_decay: L2 term (`sgd`) or decoupled decay (`adamw`), >= 0.
      betas: decay rates of AdamW's two moments.
      eps: small constant in AdamW's denominator.
    """

    name: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


def make_step(settings: OptimizerSettings, active_P: Tensor | None = None) -> Step:
    """Return a step function with fresh state.

    Args:
      settings: settings of the optimiser.
      active_P: 1 for a parameter that affects the loss, 0 for one that never gets a gradient and so
        must not decay; None if all affect it.

    Raises:
      ConfigError: for an unknown optimiser.
    """
    if settings.name == "sgd":
        return _sgd(settings, active_P)
    if settings.name == "adamw":
        return _adamw(settings, active_P)
    raise ConfigError(
        f"client.optimizer: found {settings.name!r}, allowed are {', '.join(OPTIMIZERS)}"
    )


def _sgd(settings: OptimizerSettings, active_P: Tensor | None) -> Step:
    momentum_P: Tensor | None = None

    def step(value_P: Tensor, grad_P: Tensor) -> None:
        nonlocal momentum_P
        if settings.weight_decay:
            decayed_P = value_P if active_P is None else value_P * active_P
            grad_P = grad_P.add(decayed_P, alpha=settings.weight_decay)
        if settings.momentum:
            momentum_P = torch.zeros_like(value_P) if momentum_P is None else momentum_P
            moved_P = momentum_P[: len(value_P)].mul_(settings.momentum).add_(grad_P)
            nesterov = settings.nesterov
            grad_P = grad_P.add(moved_P, alpha=settings.momentum) if nesterov else moved_P
        value_P.add_(grad_P, alpha=-settings.lr)

    return step


def _adamw(settings: OptimizerSettings, active_P: Tensor | None) -> Step:
    first_P: Tensor | None = None
    second_P: Tensor | None = None
    count = 0
    beta1, beta2 = settings.betas

    def step(value_P: Tensor, grad_P: Tensor) -> None:
        nonlocal first_P, second_P, count
        if first_P is None or second_P is None:
            first_P, second_P = torch.zeros_like(value_P), torch.zeros_like(value_P)
        count += 1
        decay = settings.lr * settings.weight_decay
        value_P.mul_(1 - decay if active_P is None else 1 - decay * active_P)
        mean_P = first_P[: len(value_P)].lerp_(grad_P, 1 - beta1)
        square_P = second_P[: len(value_P)].mul_(beta2)
        square_P.addcmul_(grad_P, grad_P, value=1 - beta2)
        scale = math.sqrt(1 - beta2**count)
        root_P = (square_P.sqrt() / scale).add_(settings.eps)
        value_P.addcdiv_(mean_P, root_P, value=-settings.lr / (1 - beta1**count))

    return step
