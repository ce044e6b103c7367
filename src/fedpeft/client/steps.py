"""The steps of a client's turn: which batches make each, and the learning rate of each.

    epoch 0 |b b|b b|b|  epoch 1 |b b|b ...        b: a batch;   |b b|: a step of two batches
             1   2   3            4   5            max_steps = 5 ends the turn

Gradients of several batches in a step make the mean over all their predictions: a step of two
batches of four equals one of a batch of eight, dropout included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.client.batches import Rows
from fedpeft.client.private import turn_batches
from fedpeft.client.schedules import factor
from fedpeft.client.settings import LocalSettings
from fedpeft.client.turns import ClientTurn


@dataclass(frozen=True)
class TurnStep:
    """One step of the optimiser.

    Attributes:
      number: number of the step in its turn, from 1.
      epoch: number of the epoch, from 0.
      batches: positions in the client's data, for each batch of the step; never empty, though a
        Poisson batch may be.
      last: whether the step belongs to the last epoch, whose loss is reported.
      scale: factor on the learning rate.
    """

    number: int
    epoch: int
    batches: tuple[Rows, ...]
    last: bool
    scale: float


def turn_steps(
    turn: ClientTurn, settings: LocalSettings, whole_batches: bool = False
) -> Iterator[TurnStep]:
    """Yield the steps of a turn `with_root`.

    Args:
      turn: of the client.
      settings: of local training.
      whole_batches: as for `fedpeft.client.batches.batches`.
    """
    each = _steps_an_epoch(settings, len(turn.data), whole_batches)
    total = _total(settings, each)
    for number in range(1, total + 1):
        epoch, place = divmod(number - 1, each)
        if place == 0:
            found = turn_batches(
                settings.privacy,
                turn,
                settings.batch_size,
                epoch,
                whole_batches,
                settings.by_length,
            )
        batches = found[place * settings.accumulation : (place + 1) * settings.accumulation]
        last = epoch == (total - 1) // each
        yield TurnStep(number, epoch, tuple(batches), last, _scale(settings, turn, number, total))


def num_steps(turn: ClientTurn, settings: LocalSettings, whole_batches: bool = False) -> int:
    """Return the number of steps of a turn."""
    return _total(settings, _steps_an_epoch(settings, len(turn.data), whole_batches))


def clipped(grad_P: Tensor, bound: float) -> Tensor:
    """Return a gradient [P], or several [K, P], scaled down to an L2 norm of `bound` where longer.

    The factor is that of `torch.nn.utils.clip_grad_norm_`: min(1, bound / (norm + 1e-6)).
    """
    norm: Tensor = torch.linalg.vector_norm(grad_P, dim=-1, keepdim=True)
    return grad_P * (bound / (norm + 1e-6)).clamp(max=1.0)


def _steps_an_epoch(settings: LocalSettings, examples: int, whole_batches: bool) -> int:
    chosen, size = settings.privacy, settings.batch_size
    if chosen is not None and chosen.rate is not None:
        return chosen.steps
    number = math.ceil(examples / size)
    if whole_batches and number > 1 and (examples - 1) % size == 0:
        number -= 1  # a last batch of one example joins the previous one
    return math.ceil(number / settings.accumulation)


def _total(settings: LocalSettings, each: int) -> int:
    limits = [] if settings.epochs is None else [settings.epochs * each]
    limits += [] if settings.max_steps is None else [settings.max_steps]
    return min(limits, default=0) if each else 0


def _scale(settings: LocalSettings, turn: ClientTurn, number: int, total: int) -> float:
    """Return the factor of both schedules; a turn's round is the one after its server state's."""
    within = factor(settings.schedule, number - 1, total)
    return within * factor(settings.round_schedule, turn.version + 1, settings.rounds)
