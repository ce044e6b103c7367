"""Clips of a figure that moves: the bundled video data set, made where it is asked for.

    state of a frame = (x, y, angle, log size), each on a circle, at a place drawn uniformly
    class            = which of the four moves, and which way, at a steady pace

    left right      up down      clockwise anticlockwise      growing shrinking

The page is a torus: what leaves on one side comes back on the other; what has grown to the largest
size starts again small. A uniform place on a circle stays uniform when it moves, so that every
single frame has one distribution for all classes: only the order of frames tells the class. The
same argument holds for a clip played backwards: it is a clip of the opposite class. Figures (three
soft dots of unlike weight) do not depend on the class either.

This is our own design; the paper has no video experiment. Legend: N clips, T frames, K dots,
H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpeft.data.tables import Splits, Table

__all__ = ["MOTIONS", "MotionSpec", "make_motion", "read_motion"]

MOTIONS = ("left", "right", "up", "down", "clockwise", "anticlockwise", "growing", "shrinking")
"""Names of the classes, in opposite pairs; pair `i // 2` moves coordinate `i // 2` of the state."""

Floats = npt.NDArray[np.float64]

_SIZES = (0.7, 1.5)
_PACE = (0.45, 0.8)
"""Of its circle, how much a figure goes round in a clip: too little to be told by where it ends."""
_ORIGIN = 20_240
_COUNTS = {"train": 1600, "validation": 160, "test": 320}


@dataclass(frozen=True)
class MotionSpec:
    """What clips to make.

    Attributes:
      count: of clips; classes take turns.
      frames: of a clip, >= 1.
      side: of a frame, in pixels.
      seed: of all that is drawn.
    """

    count: int
    frames: int = 8
    side: int = 16
    seed: int = 0


def read_motion() -> Splits:
    """Make the bundled splits: `video` uint8 [T, H, W] and `label`; the same on every machine."""
    names = {"label": MOTIONS}
    tables = {}
    for offset, (split, count) in enumerate(_COUNTS.items()):
        clips, labels = make_motion(MotionSpec(count, seed=_ORIGIN + offset))
        tables[split] = Table({"video": clips, "label": labels}, names)
    return Splits(tables)


def make_motion(spec: MotionSpec) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Draw clips.

    Returns:
      Clips [N, T, H, W], white on black, and their classes [N].
    """
    rng = np.random.RandomState(spec.seed)
    labels = np.arange(spec.count) % len(MOTIONS)
    rng.shuffle(labels)
    places_NT4 = _places(labels, spec.frames, rng)
    dots_NK2, weights_NK = _figures(spec.count, rng)
    clips = [_draw(*clip, spec.side) for clip in zip(places_NT4, dots_NK2, weights_NK, strict=True)]
    return np.stack(clips), labels.astype(np.int64)


def _places(labels: npt.NDArray[np.int64], frames: int, rng: np.random.RandomState) -> Floats:
    """Return each frame's state, in turns round each circle, [N, T, 4]."""
    start_N4 = rng.uniform(size=(len(labels), 4))
    way_N = np.where(labels % 2, 1.0, -1.0) * rng.uniform(*_PACE, size=len(labels))
    velocity_N4 = np.eye(4)[labels // 2] * (way_N / frames)[:, None]
    steps_T = np.arange(frames, dtype=np.float64)
    moved: Floats = (start_N4[:, None] + steps_T[:, None] * velocity_N4[:, None]) % 1.0
    return moved


def _figures(count: int, rng: np.random.RandomState) -> tuple[Floats, Floats]:
    """Draw dots around the middle [N, K, 2], in parts of the page, and their weights [N, K]."""
    turn_NK = rng.uniform(size=(count, 1)) + np.array([0.0, 0.28, 0.6])
    reach_NK = np.array([0.24, 0.17, 0.12]) * rng.uniform(0.85, 1.15, size=(count, 3))
    angle_NK = 2 * np.pi * turn_NK
    dots = np.stack([np.cos(angle_NK), np.sin(angle_NK)], axis=2) * reach_NK[:, :, None]
    return dots, np.array([1.0, 0.7, 0.5]) * rng.uniform(0.8, 1.0, size=(count, 3))


def _draw(
    places_T4: Floats, dots_K2: Floats, weights_K: Floats, side: int
) -> npt.NDArray[np.uint8]:
    """Draw a clip [T, H, W] of a figure at its places."""
    angle_T, size_T = 2 * np.pi * places_T4[:, 2], _size(places_T4[:, 3])
    cos_T, sin_T = np.cos(angle_T) * size_T, np.sin(angle_T) * size_T
    x_TK = places_T4[:, :1] + np.outer(cos_T, dots_K2[:, 0]) - np.outer(sin_T, dots_K2[:, 1])
    y_TK = places_T4[:, 1:2] + np.outer(sin_T, dots_K2[:, 0]) + np.outer(cos_T, dots_K2[:, 1])
    grid = (np.arange(side) + 0.5) / side
    radius_T11 = 0.075 * size_T[:, None, None]
    across_TKW = np.exp(-((_apart(x_TK, grid) / radius_T11) ** 2) / 2)
    along_TKH = np.exp(-((_apart(y_TK, grid) / radius_T11) ** 2) / 2)
    ink_THW = np.einsum("k,tkh,tkw->thw", weights_K, along_TKH, across_TKW)
    return np.asarray(np.rint(255 * ink_THW.clip(0, 1)), np.uint8)


def _size(turn_T: Floats) -> Floats:
    """Return sizes on their circle: from small to large in one turn, by equal factors."""
    sizes: Floats = _SIZES[0] * (_SIZES[1] / _SIZES[0]) ** turn_T
    return sizes


def _apart(places_TK: Floats, grid_S: Floats) -> Floats:
    """Return distances [T, K, S] on a circle of length 1."""
    ahead = (grid_S - places_TK[:, :, None]) % 1.0
    return np.minimum(ahead, 1 - ahead)
