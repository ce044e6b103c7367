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

import torch
from torch import Tensor

from fedpeft.core import seeds

__all__ = [
    "Bound",
    "Peak",
    "Search",
    "Surface",
    "beta_on_segment",
    "bound_between",
    "peak_at",
    "surface_of",
]

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Surface:
    """A loss over flat points [P].

    Attributes:
      loss: the value at a point.
      gradient: the gradient at a point, [P].
      hessian: the Hessian at a point, as a function from a direction [P] to its product with it.
    """

    loss: Callable[[Tensor], float]
    gradient: Callable[[Tensor], Tensor]
    hessian: Callable[[Tensor], Callable[[Tensor], Tensor]]


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


def surface_of(parts: Sequence[Callable[[Tensor], Tensor]]) -> Surface:
    """Return the surface of a sum of functions, which are evaluated one by one to bound memory.

    The Hessian at a point keeps the graph of the first part's gradient for all products; the graphs
    of the other parts are rebuilt for each product.

    Args:
      parts: twice differentiable functions from a point [P] to a scalar.
    """

    def loss(point: Tensor) -> float:
        with torch.no_grad():
            return float(sum(float(part(point)) for part in parts))

    def gradient(point: Tensor) -> Tensor:
        total = torch.zeros_like(point)
        for part in parts:
            w = point.detach().clone().requires_grad_(True)
            total += torch.autograd.grad(part(w), w)[0]
        return total

    def hessian(point: Tensor) -> Callable[[Tensor], Tensor]:
        first = _slope(parts[0], point)

        def times(direction: Tensor) -> Tensor:
            total = _product(*first, direction, keep=True)
            for part in parts[1:]:
                total = total + _product(*_slope(part, point), direction, keep=False)
            return total

        return times

    return Surface(loss, gradient, hessian)


def _slope(part: Callable[[Tensor], Tensor], point: Tensor) -> tuple[Tensor, Tensor]:
    w = point.detach().clone().requires_grad_(True)
    return w, torch.autograd.grad(part(w), w, create_graph=True)[0]


def _product(w: Tensor, slope: Tensor, direction: Tensor, *, keep: bool) -> Tensor:
    if not slope.requires_grad:
        return torch.zeros_like(direction)
    return torch.autograd.grad(slope, w, direction, retain_graph=keep)[0]


def peak_at(surface: Surface, point: Tensor, search: Search) -> Peak:
    """Estimate the Hessian's spectral norm at a point, from a random direction."""
    generator = seeds.generator(search.seed, "beta")
    direction = torch.randn(point.shape, generator=generator, dtype=torch.float64).to(point)
    return _power(surface.hessian(point), direction, search)


def beta_on_segment(
    surface: Surface, start: Tensor, end: Tensor, search: Search, at_start: Peak | None = None
) -> float:
    """Estimate the smoothness constant on a segment.

    The power method runs at evenly spaced points; at each it starts from the direction found at the
    previous one. It approaches a spectral norm from below, hence `search.factor`.

    Args:
      surface: the loss.
      start: one end of the segment, [P].
      end: the other end, [P].
      search: points, iterations and factor.
      at_start: the result of `peak_at` for `start`, if segments share it; None computes it.
    """
    peak = peak_at(surface, start, search) if at_start is None else at_start
    largest = peak.norm
    for share in torch.linspace(0, 1, search.points).tolist()[1:]:
        hessian = surface.hessian(start + share * (end - start))
        peak = _power(hessian, peak.direction, search)
        largest = max(largest, peak.norm)
    return search.factor * largest


def bound_between(
    surface: Surface, points: tuple[Tensor, Tensor], num_theta: int, *, beta: float
) -> Bound:
    """Evaluate the lemma between two points.

    Args:
      surface: the loss.
      points: w_0 and w_t, [P].
      num_theta: number of leading coordinates that are the backbone; the rest is the delta.
      beta: the constant.
    """
    start, end = points
    move, slope = end - start, surface.gradient(start)
    theta, delta = slice(None, num_theta), slice(num_theta, None)
    return Bound(
        beta,
        surface.loss(start),
        surface.loss(end),
        float(slope[theta] @ move[theta]),
        float(slope[delta] @ move[delta]),
        float(move[theta] @ move[theta]),
        float(move[delta] @ move[delta]),
    )


def _power(hessian: Callable[[Tensor], Tensor], direction: Tensor, search: Search) -> Peak:
    """Run the power method from a direction."""
    unit = direction / direction.norm()
    before = 0.0
    for _ in range(search.iterations):
        image = hessian(unit)
        norm = float(image.norm())
        if norm == 0.0:
            return Peak(0.0, unit)
        unit = image / norm
        if abs(norm - before) <= search.tolerance * norm:
            return Peak(norm, unit)
        before = norm
    return Peak(before, unit)
