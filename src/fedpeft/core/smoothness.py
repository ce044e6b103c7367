"""The descent lemma between two points of a loss, and its constant on the segment between them.

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

__all__ = ["Bound", "Search", "Surface", "beta_on_segment", "bound_between", "surface_of"]

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Surface:
    """A loss over flat points [P].

    Attributes:
      loss: value at a point.
      gradient: at a point, [P].
      hessian_times: (point, direction [P]) -> the Hessian there times the direction.
    """

    loss: Callable[[Tensor], float]
    gradient: Callable[[Tensor], Tensor]
    hessian_times: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Search:
    """How beta is looked for.

    Attributes:
      points: on the segment, both ends included; >= 2.
      iterations: of the power method at a point, at most; >= 1.
      tolerance: relative change of the estimate at which it stops.
      factor: on the largest norm found, for what lies between the points and what the power method
        has not reached; >= 1.
      seed: of the first direction.
    """

    points: int = 11
    iterations: int = 30
    tolerance: float = 1e-3
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
        """What the linear part leaves: L(w_t) - L(w_0) - <g, d>."""
        return self.loss_end - self.loss_start - self.inner_theta - self.inner_delta

    @property
    def slack(self) -> float:
        """The bound minus the loss: below 0 it is violated."""
        return self.value - self.loss_end

    @property
    def holds(self) -> bool:
        """Whether |remainder| <= P, up to the rounding of float64."""
        scale = abs(self.loss_start) + abs(self.loss_end)
        return abs(self.remainder) <= self.p_theta + self.p_delta + _ROUNDING * scale


def surface_of(parts: Sequence[Callable[[Tensor], Tensor]]) -> Surface:
    """Make a surface of a sum of differentiable functions, worked off one by one to bound memory.

    Args:
      parts: each from a point [P] to a scalar, twice differentiable.
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

    def hessian_times(point: Tensor, direction: Tensor) -> Tensor:
        total = torch.zeros_like(point)
        for part in parts:
            w = point.detach().clone().requires_grad_(True)
            (slope,) = torch.autograd.grad(part(w), w, create_graph=True)
            if slope.requires_grad:
                total += torch.autograd.grad(slope @ direction, w)[0]
        return total

    return Surface(loss, gradient, hessian_times)


def beta_on_segment(surface: Surface, start: Tensor, end: Tensor, search: Search) -> float:
    """Estimate the smoothness constant on a segment.

    The power method runs at evenly spaced points; each starts from the direction that the one
    before has found. It approaches a spectral norm from below, hence `search.factor`.

    Args:
      surface: the loss.
      start: one end, [P].
      end: the other.
      search: points, iterations and factor.
    """
    generator = seeds.generator(search.seed, "beta")
    direction = torch.randn(start.shape, generator=generator, dtype=torch.float64).to(start)
    largest = 0.0
    for share in torch.linspace(0, 1, search.points).tolist():
        norm, direction = _power(surface, start + share * (end - start), direction, search)
        largest = max(largest, norm)
    return search.factor * largest


def bound_between(
    surface: Surface, points: tuple[Tensor, Tensor], num_theta: int, *, beta: float
) -> Bound:
    """Evaluate the lemma between two points.

    Args:
      surface: the loss.
      points: w_0 and w_t, [P].
      num_theta: the first so many coordinates are the backbone, the rest the delta.
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


def _power(
    surface: Surface, point: Tensor, direction: Tensor, search: Search
) -> tuple[float, Tensor]:
    """Return the Hessian's spectral norm at a point, and the direction that shows it."""
    unit = direction / direction.norm()
    before = 0.0
    for _ in range(search.iterations):
        image = surface.hessian_times(point, unit)
        norm = float(image.norm())
        if norm == 0.0:
            return 0.0, unit
        unit = image / norm
        if abs(norm - before) <= search.tolerance * norm:
            return norm, unit
        before = norm
    return before, unit
