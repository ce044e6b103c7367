"""The weights of clients in a round's mean: bounded by what each announced, and by a share.

announced  492   1080   -        the number of examples, fixed for the run (a dash: not told)
claimed    492    900   1        what a reply says; more than was announced is a failure
weight     492    900  786       who told nothing counts as the median of what was announced

share      w_i' = min(w_i, t), with t so that the largest is `max_share` of the sum
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedpeft.core.errors import DeltaMismatchError

_MOST = 2.0**53
_ROUNDING = 1 + 1e-9  # a weight travels with ten digits


@dataclass(frozen=True)
class Weights:
    """The bounds of the weights of a run's clients.

    Attributes:
      announced: client -> number of examples that it announced, >= 1; a client that is not in it
        told none. None: weights are not bounded by an announcement.
      constant: whether every client has weight 1, as under privacy.
      max_share: largest share of one client in a round's mean, in (0, 1]; 1: no bound.
    """

    announced: Mapping[str, int] | None = None
    constant: bool = False
    max_share: float = 1.0

    def of(self, client: str, claimed: float) -> float:
        """Return the weight of a client's reply.

        Args:
          client: its name.
          claimed: the weight that its reply claims.

        Raises:
          DeltaMismatchError: if the client may not have that weight.
        """
        most, why = self._bound(client)
        if not 0 < claimed <= most * _ROUNDING:
            raise DeltaMismatchError(
                f"weight is {claimed:g}; allowed is a finite number above 0"
                + (f" and at most {most:g} ({why})" if most < _MOST else "")
            )
        told = self.announced is None or client in self.announced
        return claimed if self.constant or told else self._median()

    def _bound(self, client: str) -> tuple[float, str]:
        """Return the largest weight that a client may claim, and why."""
        if self.constant:
            return 1.0, "every weight is 1 here"
        if self.announced is None:
            return _MOST, "no number of examples was announced"
        if client not in self.announced:
            return 1.0, "it announced no number of examples"
        return float(self.announced[client]), "the number of examples that it announced"

    def _median(self) -> float:
        """Return the weight of a client that announced nothing."""
        figures = list(self.announced.values()) if self.announced else []
        return float(statistics.median(figures)) if figures else 1.0


def capped(weights: Sequence[float], max_share: float) -> list[float]:
    """Return weights of which none is more than a share of their sum.

    The largest ones are lowered to one common value, the others stay as they are. Where the share
    is at most one n-th, all are equal.

    Args:
      weights: > 0.
      max_share: in (0, 1]; 1 changes nothing.
    """
    if max_share >= 1 or not weights:
        return list(weights)
    if max_share * len(weights) <= 1:
        return [1.0] * len(weights)
    ordered = sorted(weights, reverse=True)
    sums = list(itertools.accumulate(reversed(ordered)))  # small ones first: no digit is lost
    rests = sums[::-1]
    for lowered, (weight, rest) in enumerate(zip(ordered, rests, strict=True)):
        # t = share (lowered t + rest): the value of those above it, where the others stay
        limit = max_share * rest / (1 - max_share * lowered)
        if weight <= limit:
            return [min(each, limit) for each in weights]
    raise AssertionError("a share above one n-th is reached before all are lowered")
