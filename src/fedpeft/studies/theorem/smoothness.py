"""The descent lemma between two points, with its constant on the segment between them.

    L(w_t) <= L(w_0) + <g_theta, dtheta> + <g_delta, ddelta> + P
    P = beta/2 (|dtheta|^2 + |ddelta|^2)

where L is beta-smooth in w = (theta, delta) jointly, g is the gradient at w_0 and d = w_t - w_0.
The lemma is two-sided: |L(w_t) - L(w_0) - <g, d>| <= P. Here beta is the largest spectral norm of
the Hessian at points of the segment, by power iteration: a check of the bound, not a proof.

References:
  Nesterov, Introductory Lectures on Convex Optimization, 2004, Lemma 1.2.3.
  Pearlmutter, Fast Exact Multiplication by the Hessian, 1994.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.functional import vhp, vjp

from fedpeft.core import seeds

Parts: TypeAlias = Sequence[Callable[[Tensor], Tensor]]
"""A loss as a sum of twice differentiable functions from a flat point [P] to a scalar.

They are evaluated one by one to bound memory.
"""

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Peak:
    """The Hessian's spectral norm at a point, and the direction [P] that attains it."""

    norm: float
    direction: Tensor


@dataclass(frozen=True)
class Search:
    """The settings of the estimate of beta.

    Attributes:
      points: number of points on the segment, both ends included; >= 2.
      iterations: largest number of steps of the power method at a point; >= 1.
      tolerance: relative change of the estimate at which the power method stops.
      factor: safety factor on the largest norm found, because the norm between the points or of the
        converged power method may be larger; >= 1.
      seed: seed of the first direction.
    """

    points: int = 11
    iterations: int = 30
    tolerance: float = 1e-2
    factor: float = 1.05
    seed: int = 0


@dataclass(frozen=True)
class Bound:
    """The lemma at one end point.

    Attributes:
      beta: the constant.
      loss_start: L(w_0).
      loss_end: L(w_t).
      inner_theta: <g_theta, dtheta>.
      inner_delta: <g_delta, ddelta>.
      square_theta: |dtheta|^2.
      square_delta: |ddelta|^2.
    """

    beta: float
    loss_start: float
    loss_end: float
    inner_theta: float
    inner_delta: float
    square_theta: float
    square_delta: float

    @property
    def p_theta(self) -> float:
        """The backbone's part of P: 0 where the backbone is frozen."""
        return 0.5 * self.beta * self.square_theta

    @property
    def p_delta(self) -> float:
        """The delta's part of P."""
        return 0.5 * self.beta * self.square_delta

    @property
    def value(self) -> float:
        """The bound on L(w_t)."""
        return self.loss_start + self.inner_theta + self.inner_delta + self.p_theta + self.p_delta

    @property
    def remainder(self) -> float:
        """The loss without its linear part: L(w_t) - L(w_0) - <g, d>."""
        return self.loss_end - self.loss_start - self.inner_theta - self.inner_delta

    @property
    def slack(self) -> float:
        """The bound minus the loss; the bound is violated if it is negative."""
        return self.value - self.loss_end

    @property
    def holds(self) -> bool:
        """Whether |remainder| <= P, up to the rounding of float64."""
        scale = abs(self.loss_start) + abs(self.loss_end)
        return abs(self.remainder) <= self.p_theta + self.p_delta + _ROUNDING * scale


def gradient_at(parts: Parts, point: Tensor) -> Tensor:
    """Return the gradient at a point, [P]."""
    total = torch.zeros_like(point)
    for part in parts:
        total += vjp(part, point)[1]  # type: ignore[no-untyped-call] # torch has no types for it
    return total


def hessian_product(parts: Parts, point: Tensor, direction: Tensor) -> Tensor:
    """Return the product of the Hessian at a point with a direction [P]."""
    total = torch.zeros_like(point)
    for part in parts:
        total += vhp(part, point, direction)[1]  # type: ignore[no-untyped-call] # as above
    return total


def peak_at(parts: Parts, point: Tensor, search: Search) -> Peak:
    """Estimate the Hessian's spectral norm at a point, from a random direction."""
    generator = seeds.generator(search.seed, "beta")
    direction = torch.randn(point.shape, generator=generator, dtype=torch.float64).to(point)
    return _power(parts, point, direction, search)


def beta_on_segment(
    parts: Parts, start: Tensor, end: Tensor, search: Search, at_start: Peak | None = None
) -> float:
    """Estimate the smoothness constant on a segment.

    The power method runs at evenly spaced points; at each it starts from the direction found at the
    previous one. It approaches a spectral norm from below, hence `search.factor`.

    Args:
      parts: the loss.
      start: one end of the segment, [P].
      end: the other end, [P].
      search: points, iterations and factor.
      at_start: the result of `peak_at` for `start`, if segments share it; None computes it.
    """
    peak = peak_at(parts, start, search) if at_start is None else at_start
    largest = peak.norm
    for share in torch.linspace(0, 1, search.points).tolist()[1:]:
        peak = _power(parts, start + share * (end - start), peak.direction, search)
        largest = max(largest, peak.norm)
    return search.factor * largest


def bound_between(
    parts: Parts, points: tuple[Tensor, Tensor], num_theta: int, *, beta: float
) -> Bound:
    """Evaluate the lemma between two points.

    Args:
      parts: the loss.
      points: w_0 and w_t, [P].
      num_theta: number of leading coordinates that are the backbone; the rest is the delta.
      beta: the constant.
    """
    start, end = points
    move, slope = end - start, gradient_at(parts, start)
    theta, delta = slice(None, num_theta), slice(num_theta, None)
    return Bound(
        beta,
        _value_at(parts, start),
        _value_at(parts, end),
        float(slope[theta] @ move[theta]),
        float(slope[delta] @ move[delta]),
        float(move[theta] @ move[theta]),
        float(move[delta] @ move[delta]),
    )


def _value_at(parts: Parts, point: Tensor) -> float:
    with torch.no_grad():
        return float(sum(float(part(point)) for part in parts))


def _power(parts: Parts, point: Tensor, direction: Tensor, search: Search) -> Peak:
    """Run the power method at a point, from a direction."""
    unit = direction / direction.norm()
    before = 0.0
    for _ in range(search.iterations):
        image = hessian_product(parts, point, unit)
        norm = float(image.norm())
        if norm == 0.0:
            return Peak(0.0, unit)
        unit = image / norm
        if abs(norm - before) <= search.tolerance * norm:
            return Peak(norm, unit)
        before = norm
    return Peak(before, unit)
