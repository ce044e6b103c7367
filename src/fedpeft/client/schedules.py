"""Schedules of the learning rate: factors between 0 and 1, within a turn and over the rounds.

    rate of a step = lr * factor(schedule, steps taken so far, steps of the turn)
                        * factor(round_schedule, number of the round, rounds of the run)

The factors are those of `transformers`: a warm-up begins at 0, so that the first of the steps of a
turn with a warm-up changes nothing. Rounds are counted from 1, so that no round is lost; the last
has the factor `final`.

References:
  Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts (cosine), ICLR 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule.

    Attributes:
      name: `constant`, `linear` or `cosine`.
      warmup: length of the linear rise at the beginning: below 1 a share of the whole, from 1 on a
        number of steps or rounds.
      final: factor at the end, in [0, 1]; not used by `constant`.

    Example:
      >>> from fedpeft.client.schedules import Schedule, factor
      >>> [factor(Schedule("linear"), done, 4) for done in range(4)]
      [1.0, 0.75, 0.5, 0.25]
    """

    name: str = "constant"
    warmup: float = 0.0
    final: float = 0.0


CONSTANT = Schedule()
"""The same rate in every step, or in every round."""


def factor(schedule: Schedule, done: int, total: int) -> float:
    """Return the factor on the learning rate, in [0, 1].

    Args:
      schedule: the schedule.
      done: steps taken before this one, or the number of the round; >= 0.
      total: steps of the turn, or rounds of the run; >= 1.
    """
    rise = schedule.warmup if schedule.warmup >= 1 else math.ceil(total * schedule.warmup)
    if done < rise:
        return done / rise
    if schedule.name == "constant":
        return 1.0
    progress = min(1.0, (done - rise) / max(1, total - rise))
    left = 1 - progress if schedule.name == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return schedule.final + (1 - schedule.final) * left
