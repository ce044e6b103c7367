"""Optimisers over one flat buffer: the arithmetic of torch.optim in a few tensor operations.

    step(value_P, grad_P)      changes value_P in place;  P trained parameters
    step(value_AP, grad_AP)    the same for the first A of K clients, row by row

A fresh optimiser is made for each client and round, so that momentum never leaks between clients.
When several clients train together, `value_AP` leaves out those without further batches: neither
their rows nor their state change.

References:
  Loshchilov and Hutter, Decoupled Weight Decay Regularization (AdamW), ICLR 2019.
  Shazeer and Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, ICML 2018.
  Dettmers et al., 8-bit Optimizers via Block-wise Quantization (`adamw_8bit`), ICLR 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fedpeft.core.errors import ConfigError
from fedpeft.core.optional import bitsandbytes


class Step(Protocol):
    """A step of an optimiser: a function that changes values in place."""

    def __call__(self, value_P: Tensor, grad_P: Tensor, scale: float | Tensor = 1.0) -> None:
        """Change values [P], or those of A clients [A, P].

        Args:
          value_P: the values.
          grad_P: their gradient, of the same shape.
          scale: factor on the learning rate; with A clients also one for each, [A, 1].
        """
        ...


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings of a local optimiser.

    Attributes:
      name: `sgd`, `adamw`, `adamw_8bit` or `adafactor`.
      lr: learning rate, > 0.
      momentum: momentum of SGD, in [0, 1).
      nesterov: whether SGD uses Nesterov momentum; only with momentum.
      weight_decay: L2 term (`sgd`) or decoupled decay (all others), >= 0.
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


def make_step(
    settings: OptimizerSettings,
    active_P: Tensor | None = None,
    shapes: Sequence[tuple[int, ...]] = (),
) -> Step:
    """Return a step function with fresh state.

    Args:
      settings: settings of the optimiser.
      active_P: 1 for a parameter that affects the loss, 0 for one that never gets a gradient and so
        must not decay; None if all affect it.
      shapes: shapes of the tensors in the flat buffer, in order; used by `adafactor`, for which a
        buffer without shapes is one vector.

    Raises:
      ConfigError: for an unknown optimiser.
    """
    made = _STEPS.get(settings.name)
    if made is None:
        raise ConfigError(
            f"client.optimizer: found {settings.name!r}, allowed are {', '.join(OPTIMIZERS)}"
        )
    return made(settings, active_P, shapes)


def state_bytes(name: str, shapes: Sequence[tuple[int, ...]]) -> int:
    """Return the bytes of an optimiser's state for tensors of some shapes, in float32."""
    count = sum(math.prod(shape) for shape in shapes)
    if name == "adafactor":
        factored = (shape for shape in shapes if len(shape) > 1)
        rows = sum(math.prod(s[:-1]) + math.prod(s[:-2]) * s[-1] for s in factored)
        return 4 * (rows + sum(math.prod(shape) for shape in shapes if len(shape) < 2))
    if name == "adamw_8bit":
        return 2 * count + 8 * count // _BLOCK
    return (8 if name == "adamw" else 4) * count


def _move(value_P: Tensor, change_P: Tensor, rate: float | Tensor) -> None:
    """Subtract a change times a rate, in place."""
    if isinstance(rate, Tensor):
        value_P.sub_(change_P * rate)
    else:
        value_P.add_(change_P, alpha=-rate)


def _decay(value_P: Tensor, active_P: Tensor | None, amount: float | Tensor) -> None:
    value_P.mul_(1 - amount if active_P is None else 1 - amount * active_P)


def _sgd(
    settings: OptimizerSettings, active_P: Tensor | None, shapes: Sequence[tuple[int, ...]]
) -> Step:
    momentum_P: Tensor | None = None

    def step(value_P: Tensor, grad_P: Tensor, scale: float | Tensor = 1.0) -> None:
        nonlocal momentum_P
        if settings.weight_decay:
            decayed_P = value_P if active_P is None else value_P * active_P
            grad_P = grad_P.add(decayed_P, alpha=settings.weight_decay)
        if settings.momentum:
            momentum_P = torch.zeros_like(value_P) if momentum_P is None else momentum_P
            moved_P = momentum_P[: len(value_P)].mul_(settings.momentum).add_(grad_P)
            nesterov = settings.nesterov
            grad_P = grad_P.add(moved_P, alpha=settings.momentum) if nesterov else moved_P
        _move(value_P, grad_P, settings.lr * scale)

    return step


def _adamw(
    settings: OptimizerSettings, active_P: Tensor | None, shapes: Sequence[tuple[int, ...]]
) -> Step:
    first_P: Tensor | None = None
    second_P: Tensor | None = None
    count = 0
    beta1, beta2 = settings.betas

    def step(value_P: Tensor, grad_P: Tensor, scale: float | Tensor = 1.0) -> None:
        nonlocal first_P, second_P, count
        if first_P is None or second_P is None:
            first_P, second_P = torch.zeros_like(value_P), torch.zeros_like(value_P)
        count += 1
        rate = settings.lr * scale
        _decay(value_P, active_P, rate * settings.weight_decay)
        mean_P = first_P[: len(value_P)].lerp_(grad_P, 1 - beta1)
        square_P = second_P[: len(value_P)].mul_(beta2)
        square_P.addcmul_(grad_P, grad_P, value=1 - beta2)
        root_P = (square_P.sqrt() / math.sqrt(1 - beta2**count)).add_(settings.eps)
        _divide(value_P, mean_P, root_P, rate / (1 - beta1**count))

    return step


def _adamw_8bit(
    settings: OptimizerSettings, active_P: Tensor | None, shapes: Sequence[tuple[int, ...]]
) -> Step:
    """Return AdamW of bitsandbytes, whose moments have eight bits: one optimiser for each row."""
    library = bitsandbytes("client.optimizer = 'adamw_8bit'")
    made: list[tuple[nn.Parameter, torch.optim.Optimizer]] = []

    def step(value_P: Tensor, grad_P: Tensor, scale: float | Tensor = 1.0) -> None:
        values, grads = (v.unsqueeze(0) if v.dim() == 1 else v for v in (value_P, grad_P))
        rates = torch.as_tensor(settings.lr * scale).expand(len(values), 1).flatten().tolist()
        for i, (row_P, rate) in enumerate(zip(values, rates, strict=True)):
            if len(made) <= i:
                row = nn.Parameter(row_P)
                options = {"betas": settings.betas, "eps": settings.eps, "weight_decay": 0.0}
                made.append((row, library.optim.AdamW8bit([row], lr=settings.lr, **options)))
            row, optimizer = made[i]
            row.data, row.grad = row_P, grads[i]
            optimizer.param_groups[0]["lr"] = rate
            _decay(row_P, active_P, rate * settings.weight_decay)
            optimizer.step()

    return step


def _divide(value_P: Tensor, mean_P: Tensor, root_P: Tensor, rate: float | Tensor) -> None:
    """Subtract a quotient times a rate, in place."""
    if isinstance(rate, Tensor):
        value_P.sub_(mean_P / root_P * rate)
    else:
        value_P.addcdiv_(mean_P, root_P, value=-rate)


def _adafactor(
    settings: OptimizerSettings, active_P: Tensor | None, shapes: Sequence[tuple[int, ...]]
) -> Step:
    """Return Adafactor as `transformers` trains with it: a given rate, no first moment.

    Of a matrix only the means of squared gradients over rows and columns are kept; an update whose
    root mean square is above 1 is scaled down to it.
    """
    kept: list[tuple[Tensor, Tensor | None]] = []
    count = 0

    def step(value_P: Tensor, grad_P: Tensor, scale: float | Tensor = 1.0) -> None:
        nonlocal count
        count += 1
        weight, batch = 1 - (1 - count**-0.8), value_P.shape[:-1]
        sizes = [math.prod(shape) for shape in shapes] or [grad_P.shape[-1]]
        parts = torch.split(grad_P, sizes, dim=-1)
        updates = []
        for i, (part, shape) in enumerate(zip(parts, shapes or [tuple(sizes)], strict=True)):
            grad = part.reshape(*batch, *(shape or (1,)))
            if len(kept) <= i:
                kept.append(_empty_squares(grad, factored=len(shape) > 1))
            rows = [None if p is None else p[: len(grad)] if batch else p for p in kept[i]]
            change = _scaled(grad, rows, weight).reshape(part.shape)
            size = torch.linalg.vector_norm(change, dim=-1, keepdim=True) / math.sqrt(sizes[i])
            updates.append(change / size.clamp(min=1.0))
        rate = settings.lr * scale
        _decay(value_P, active_P, rate * settings.weight_decay)
        _move(value_P, torch.cat(updates, -1), rate)

    return step


def _empty_squares(grad: Tensor, *, factored: bool) -> tuple[Tensor, Tensor | None]:
    """Return zeros for the mean squares of rows and of columns, or of each element."""
    if not factored:
        return torch.zeros_like(grad), None
    return torch.zeros_like(grad[..., 0]), torch.zeros_like(grad[..., 0, :])


def _scaled(grad: Tensor, kept: Sequence[Tensor | None], weight: float) -> Tensor:
    """Bring mean squares up to date, and divide a gradient by their root."""
    row, column = kept
    assert row is not None, "every tensor has mean squares"
    square = grad**2 + _TINY
    if column is None:
        return grad * row.lerp_(square, weight).rsqrt()
    row.lerp_(square.mean(-1), weight)
    column.lerp_(square.mean(-2), weight)
    part = (row / row.mean(-1, keepdim=True)).rsqrt()
    return part.unsqueeze(-1) * column.rsqrt().unsqueeze(-2) * grad


_BLOCK = 256
"""Moments in a block of `adamw_8bit`, which share a scale."""
_TINY = 1e-30
"""Added to squared gradients, so that a gradient of zero divides zero by more than zero."""

_STEPS: Mapping[
    str, Callable[[OptimizerSettings, Tensor | None, Sequence[tuple[int, ...]]], Step]
] = {"sgd": _sgd, "adamw": _adamw, "adamw_8bit": _adamw_8bit, "adafactor": _adafactor}

OPTIMIZERS = tuple(_STEPS)
