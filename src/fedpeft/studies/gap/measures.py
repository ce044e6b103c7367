"""The domain gap: the distances between sets of examples in the features of a frozen backbone.

    features of all sets ── LDA, label = set ──> plane ──> centroids ──> distance to the reference

Linear discriminant analysis whitens the scatter within the sets, so distances in its space are in
deviations within a set. Legend: N examples, D features, S sets, C LDA components.

References:
  Fisher, The Use of Multiple Measurements in Taxonomic Problems, 1936.
  Heusel et al., GANs Trained by a Two Time-Scale Update Rule, 2017 (the Fréchet distance).
  Gretton et al., A Kernel Two-Sample Test, JMLR 2012 (MMD).
  Bonneel et al., Sliced and Radon Wasserstein Barycenters of Measures, 2015.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedpeft.core import seeds
from fedpeft.core.errors import DataError

Array: TypeAlias = NDArray[np.float64]

MEASURES: Mapping[str, str] = {
    "lda2": "centroids, LDA plane",
    "lda3": "centroids, 3 LDA components",
    "raw": "centroids, features",
    "frechet": "squared Fréchet distance, features",
    "sliced_wasserstein": "mean sliced Wasserstein-1, LDA plane",
    "mmd": "squared MMD, linear kernel, unbiased",
}
"""Name in JSON -> what the measure is."""

_DIRECTIONS = 360
_SMALLEST = 2


@dataclass(frozen=True)
class Gap:
    """Sets of examples in the LDA plane, and their distances to the reference.

    Attributes:
      reference: name of the set to which distances are measured.
      plane: set -> coordinates [N, 2]; the reference's centroid is the origin.
      distances: measure -> set -> distance; measures that need more sets are left out.
      num_features: D.
    """

    reference: str
    plane: Mapping[str, Array]
    distances: Mapping[str, Mapping[str, float]]
    num_features: int

    def as_json(self) -> dict[str, object]:
        """Return distances, sizes and centroids."""
        return {
            "examples": {name: len(rows) for name, rows in self.plane.items()},
            "distances": {name: dict(row) for name, row in self.distances.items()},
            "order": {
                name: sorted(row, key=row.__getitem__) for name, row in self.distances.items()
            },
            "centroids": {name: rows.mean(0).tolist() for name, rows in self.plane.items()},
        }


def measure_gap(features: Mapping[str, Array], reference: str, *, paired: bool = False) -> Gap:
    """Fit LDA on all sets and measure each set's distance to the reference.

    Args:
      features: set -> [N, D]; at least three sets, with at least two examples each.
      reference: one of the sets.
      paired: whether row i is of the same example in every set.

    Raises:
      DataError: if there are fewer sets or examples, or the reference is none of them.
    """
    _check(features, reference)
    coordinates = _discriminants(features)
    plane = _turned({name: rows[:, :2] for name, rows in coordinates.items()}, reference)
    spaces = {"lda2": plane, "raw": features}
    if next(iter(coordinates.values())).shape[1] >= 3:
        spaces["lda3"] = coordinates
    distances = {
        name: {other: _apart(spaces[name], other, reference) for other in features}
        for name in MEASURES
        if name in spaces
    }
    pairs = (
        ("frechet", frechet, features),
        ("sliced_wasserstein", sliced_wasserstein, plane),
        ("mmd", partial(linear_mmd, paired=paired), features),
    )
    for name, measure, space in pairs:
        distances[name] = {
            other: 0.0 if other == reference else measure(space[other], space[reference])
            for other in features
        }
    return Gap(reference, plane, distances, features[reference].shape[1])


def sample_of(count: int, size: int | None, seed: int) -> list[int]:
    """Draw `size` of `count` rows, in ascending order; all rows if `size` is None or too large."""
    if size is None or size >= count:
        return list(range(count))
    drawn = np.random.default_rng(seed).choice(count, size, replace=False)
    return [int(row) for row in np.sort(drawn)]


def balance(features: Mapping[str, Array], *, seed: int) -> dict[str, Array]:
    """Draw as many examples of each set as the smallest set has, without replacement."""
    size = min(map(len, features.values()))
    return {
        name: rows[sample_of(len(rows), size, seeds.derive(seed, "gap", "balance", name))]
        for name, rows in features.items()
    }


def frechet(first: Array, second: Array) -> float:
    """Return the squared Fréchet distance of the Gaussians fitted to two samples [N, D].

    `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`; the root's trace is the sum of the singular
    values of the product of the centred samples, so no matrix root is computed.
    """
    parts = [(rows - rows.mean(0)) / np.sqrt(len(rows) - 1) for rows in (first, second)]
    factors = [np.asarray(np.linalg.qr(part, mode="r")) for part in parts]
    shared = float(np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum())
    spread = sum(float((part**2).sum()) for part in parts)
    shift = float(((first.mean(0) - second.mean(0)) ** 2).sum())
    return max(0.0, shift + spread - 2 * shared)


def linear_mmd(first: Array, second: Array, *, paired: bool = False) -> float:
    """Return the unbiased estimate of the squared MMD of two samples [N, D], kernel `x . y`.

    Its expectation is the squared distance of the means; the estimate may be negative. If rows are
    `paired`, a row and its partner are not independent, so their products are left out.
    """
    within = 0.0
    for rows in (first, second):
        total, count = rows.sum(0), len(rows)
        within += float(total @ total - (rows**2).sum()) / (count * (count - 1))
    if paired:
        count = len(first)
        across = float(first.sum(0) @ second.sum(0) - (first * second).sum())
        return within - 2 * across / (count * (count - 1))
    return within - 2 * float(first.mean(0) @ second.mean(0))


def sliced_wasserstein(first: Array, second: Array) -> float:
    """Return the mean Wasserstein-1 distance of two samples [N, 2] over directions of the plane.

    The directions are evenly spaced; a shift by d gives `2 |d| / pi`.
    """
    from scipy.stats import wasserstein_distance

    angles = np.pi * (np.arange(_DIRECTIONS) + 0.5) / _DIRECTIONS
    directions = np.stack([np.cos(angles), np.sin(angles)])
    shadows = zip((first @ directions).T, (second @ directions).T, strict=True)
    return float(np.mean([wasserstein_distance(one, two) for one, two in shadows]))


def plane_of(gap: Gap, like: Gap) -> dict[str, Array]:
    """Return a gap's plane, rotated so that its centroids are closest to those of another.

    The sign and rotation of an LDA plane are arbitrary.

    References:
      Schönemann, A Generalized Solution of the Orthogonal Procrustes Problem, 1966.
    """
    from scipy.linalg import orthogonal_procrustes

    ours, theirs = (
        np.stack([found.plane[name].mean(0) for name in gap.plane]) for found in (gap, like)
    )
    turn, _ = orthogonal_procrustes(ours, theirs)
    return {name: rows @ turn for name, rows in gap.plane.items()}


def _check(features: Mapping[str, Array], reference: str) -> None:
    if reference not in features:
        raise DataError(f"gap: no set {reference!r}; found are {', '.join(features)}")
    if len(features) < 3:
        raise DataError(
            f"gap: found {len(features)} sets ({', '.join(features)}); a plane needs at least 3, "
            "the reference among them: add --data"
        )
    small = [name for name, rows in features.items() if len(rows) < _SMALLEST]
    if small:
        raise DataError(f"gap: {small[0]!r} has fewer than {_SMALLEST} examples; take a larger set")


def _discriminants(features: Mapping[str, Array]) -> dict[str, Array]:
    """Fit LDA with the set as the label; return up to three coordinates of each example."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rows = np.concatenate(list(features.values()))
    sizes = [len(part) for part in features.values()]
    labels = np.repeat(np.arange(len(sizes)), sizes)
    rank = min(len(sizes) - 1, 3, rows.shape[1])
    found = LinearDiscriminantAnalysis(n_components=rank).fit_transform(rows, labels)
    if found.shape[1] < 2:
        raise DataError("gap: the sets' means lie on a line or a point; LDA has no plane for them")
    return dict(zip(features, np.split(found, np.cumsum(sizes)[:-1]), strict=True))


def _turned(plane: Mapping[str, Array], reference: str) -> dict[str, Array]:
    """Put the reference at the origin, the farthest set to the right, the next farthest above."""
    origin = plane[reference].mean(0)
    centres = {name: rows.mean(0) - origin for name, rows in plane.items()}
    order = sorted(centres, key=lambda name: -float(np.linalg.norm(centres[name])))
    x, y = centres[order[0]] / max(float(np.linalg.norm(centres[order[0]])), 1e-300)
    turn = np.array([[x, -y], [y, x]])
    if (centres[order[1]] @ turn)[1] < 0:
        turn[:, 1] *= -1
    return {name: (rows - origin) @ turn for name, rows in plane.items()}


def _apart(space: Mapping[str, Array], name: str, reference: str) -> float:
    return float(np.linalg.norm(space[name].mean(0) - space[reference].mean(0)))
