"""Exact tests of noise that should be independent standard Gaussians: one p-value each.

    too_little, too_much   sums of squares are chi-square: of all, a vector, a tensor, a place
    repeated               directions of two vectors are independent: cos^2 ~ Beta(1/2, (P - 1)/2)
    spread_unequal         a ratio of two mean squares is F, whatever the noise's deviation
    above, off             a projection on a fixed unit vector is Gaussian

A p-value over many comparisons is the smallest one times their number (Bonferroni), so that it is
below a level with at most that probability, whatever the comparisons have to do with each other.

Legend: T vectors of noise (rounds, or turns), P coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from fedpeft.studies.audit.statistics import Floats

_FAMILIES = 4  # of `too_little`: all, a vector, a tensor, a coordinate
_HEAD = 16  # coordinates at the start of each tensor that are compared between tensors


def too_little(noise_TP: Floats, sizes: Sequence[int]) -> float:
    """Return the p-value of the squares being too small: in all, a vector, a tensor, a coordinate.

    Args:
      noise_TP: standard Gaussian by claim.
      sizes: number of coordinates of each tensor, in their order; their sum is P.
    """
    from scipy.stats import chi2

    square_TP = noise_TP**2
    count, width = noise_TP.shape
    starts = np.cumsum([0, *sizes[:-1]])
    by_coordinate_P = square_TP.sum(axis=0)
    by_tensor = np.add.reduceat(by_coordinate_P, starts)
    families = (
        chi2.cdf(by_coordinate_P.sum(), count * width),
        count * chi2.cdf(square_TP.sum(axis=1), width).min(),
        len(sizes) * chi2.cdf(by_tensor, count * np.asarray(sizes)).min(),
        width * chi2.cdf(by_coordinate_P, count).min(),
    )
    return _capped(_FAMILIES * min(map(float, families)))


def too_much(noise_TP: Floats) -> float:
    """Return the p-value of the sum of squares being too large."""
    from scipy.stats import chi2

    return float(chi2.sf((noise_TP**2).sum(), noise_TP.size))


def smallest_seen(shape: tuple[int, int], level: float) -> float:
    """Return the deviation, in units of the claimed one, at which `too_little` finds half of all.

    Args:
      shape: T and P.
      level: level of the test, in (0, 1).
    """
    from scipy.stats import chi2

    size = math.prod(shape)
    return math.sqrt(float(chi2.ppf(level / _FAMILIES, size)) / size)


def repeated(noise_TP: Floats) -> float:
    """Return the p-value of two vectors pointing too much along, or against, each other.

    Each pair is compared as it is, and with one of the two moved round by any number of places:
    a copy that is scaled, of the other sign, or read from another place of a stream, is found.
    """
    first, second = np.triu_indices(len(noise_TP), 1)
    return _pairs(noise_TP, noise_TP, list(zip(first.tolist(), second.tolist(), strict=True)))


def repeated_across(one_TP: Floats, other_TP: Floats) -> float:
    """Return the p-value of a vector of one run pointing along, or against, one of another run."""
    pairs = [(i, j) for i in range(len(one_TP)) for j in range(len(other_TP))]
    return _pairs(one_TP, other_TP, pairs)


def alike_within(noise_TP: Floats, sizes: Sequence[int]) -> float:
    """Return the p-value of coordinates of one vector being alike.

    Compared are the two halves, the even with the odd places (both moved round by any number of
    places), the vector with one that is constant, and the first numbers of every two tensors.

    Args:
      noise_TP: as for `repeated`.
      sizes: number of coordinates of each tensor, in their order.
    """
    count, width = noise_TP.shape
    half = width // 2
    constant = noise_TP.sum(axis=1) / (_norms(noise_TP) * math.sqrt(width))
    halves = [
        _pairs(noise_TP[t : t + 1, :half], noise_TP[t : t + 1, half : 2 * half], [(0, 0)])
        for t in range(count)
    ]
    places = [
        _pairs(noise_TP[t : t + 1, 0 : 2 * half : 2], noise_TP[t : t + 1, 1::2][:, :half], [(0, 0)])
        for t in range(count)
    ]
    families = (
        count * float(_tail(constant, width).min()),
        count * min(halves),
        count * min(places),
        _heads(noise_TP, sizes),
    )
    return _capped(len(families) * min(families))


def spread_unequal(one: Floats, other: Floats) -> float:
    """Return the two-sided p-value of two samples of Gaussians having different deviations."""
    from scipy.stats import f

    second = float((other**2).mean())
    first = float((one**2).mean())
    if first == 0 or second == 0:
        return 1.0 if first == second else 0.0
    ratio = f(one.size, other.size)
    lower, upper = float(ratio.cdf(first / second)), float(ratio.sf(first / second))
    return _capped(2 * min(lower, upper))


def above(scores: Iterable[float]) -> float:
    """Return the p-value of a score that is too high: each has mean <= 0 and deviation 1."""
    from scipy.stats import norm

    found = [float(norm.sf(score)) for score in scores]
    return _capped(len(found) * min(found, default=1.0))


def off(scores: Iterable[float]) -> float:
    """Return the two-sided p-value of scores, each of mean 0 and deviation 1."""
    return _capped(2 * above(map(abs, scores)))


def _pairs(one_TP: Floats, other_TP: Floats, pairs: Sequence[tuple[int, int]]) -> float:
    """Return the p-value of the largest cosine of pairs, straight and moved round."""
    width = one_TP.shape[1]
    if width < 2 or not pairs:
        return 1.0
    one_TF = np.fft.rfft(one_TP / _norms(one_TP)[:, None])
    other_TF = np.fft.rfft(other_TP / _norms(other_TP)[:, None])
    straight, moved = 1.0, 1.0
    for i, j in pairs:
        cosine_P = np.fft.irfft(one_TF[i] * other_TF[j].conj(), width)
        straight = min(straight, float(_tail(cosine_P[:1], width)[0]))
        moved = min(moved, float(_tail(np.abs(cosine_P).max(keepdims=True), width)[0]))
    return _capped(2 * len(pairs) * min(straight, width * moved))


def _heads(noise_TP: Floats, sizes: Sequence[int]) -> float:
    """Return the p-value of two tensors of one vector that start alike."""
    starts = np.cumsum([0, *sizes[:-1]])
    taken = [start for start, size in zip(starts, sizes, strict=True) if size >= _HEAD]
    if len(taken) < 2:
        return 1.0
    pairs = len(taken) * (len(taken) - 1) / 2 * len(noise_TP)
    lowest = 1.0
    for noise_P in noise_TP:
        head_LH = np.stack([noise_P[start : start + _HEAD] for start in taken])
        unit_LH = head_LH / _norms(head_LH)[:, None]
        cosine_LL = np.abs(unit_LH @ unit_LH.T)
        np.fill_diagonal(cosine_LL, 0.0)
        lowest = min(lowest, float(_tail(cosine_LL.max(keepdims=True), _HEAD).min()))
    return _capped(pairs * lowest)


def _tail(cosines: Floats, width: int) -> Floats:
    """Return P[|cos| >= |c|] for the cosine of a random direction of `width` dimensions."""
    from scipy.special import betainc

    if width < 2:
        return np.ones_like(cosines)
    found: Floats = betainc((width - 1) / 2, 0.5, np.clip(1 - cosines**2, 0.0, 1.0))
    return found


def _norms(rows: Floats) -> Floats:
    """Return the norm of each row; 1 for a row of zeros, whose cosines are then 0."""
    norms: Floats = np.linalg.norm(rows, axis=1)
    return np.where(norms > 0, norms, 1.0)


def _capped(p: float) -> float:
    return min(1.0, p)
