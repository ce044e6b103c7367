"""Strokes of a bitmap: thinning to lines one pixel wide, and distances to the ink.

    ink            skeleton
    ..####..       ........
    .######.   ->  ..####..
    .##..##.       ..#..#..

Legend: G bitmaps, H W height and width.

Reference: Zhang, Suen, A Fast Parallel Algorithm for Thinning Digital Patterns, CACM 27(3), 1984.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["FIELD_UNIT", "Bitmap", "distances", "skeletons"]

FIELD_UNIT = 0.25
"""Pixels of distance per step of an int8 field."""

Bitmap = NDArray[np.bool_]


def distances(ink_GHW: Bitmap, *, signed: bool) -> Tensor:
    """Measure how far each pixel is from the ink.

    Args:
      ink_GHW: bitmaps.
      signed: whether pixels inside the ink get their distance to its outline, as negative numbers.

    Returns:
      int8 [G, H, W], in steps of `FIELD_UNIT` pixels, cut at 127.
    """
    from scipy.ndimage import distance_transform_edt

    fields = []
    for ink_HW in ink_GHW:
        field_HW = np.asarray(distance_transform_edt(~ink_HW))
        if signed:
            field_HW = field_HW - np.asarray(distance_transform_edt(ink_HW))
        fields.append(np.clip(np.rint(field_HW / FIELD_UNIT), -127, 127).astype(np.int8))
    return torch.from_numpy(np.stack(fields))


def skeletons(ink_GHW: Bitmap) -> Bitmap:
    """Thin every bitmap to lines one pixel wide."""
    chunks = np.array_split(ink_GHW, max(1, len(ink_GHW) // 256))
    return np.concatenate([_thin(chunk) for chunk in chunks])


def _thin(ink_GHW: Bitmap) -> Bitmap:
    ink = ink_GHW.copy()
    changed = True
    while changed:
        changed = False
        for corner in (0, 2):
            peel = _peelable(ink, corner)
            changed |= bool(peel.any())
            ink &= ~peel
    return ink


def _peelable(ink_GHW: Bitmap, corner: int) -> Bitmap:
    """Mark edge pixels of one pair of sides whose removal breaks no line."""
    padded = np.pad(ink_GHW, ((0, 0), (1, 1), (1, 1)))
    height, width = ink_GHW.shape[1:]
    ring = [(0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0)]  # north, clockwise
    around = [padded[:, y : y + height, x : x + width] for y, x in ring]
    filled = np.sum(around, axis=0, dtype=np.int8)
    pairs = zip(around, [*around[1:], around[0]], strict=True)
    steps = np.sum([~now & after for now, after in pairs], axis=0, dtype=np.int8)
    north, east, south, west = around[0::2]
    open_side = (
        ~(east & south & (north | west)) if corner == 0 else ~(north & west & (east | south))
    )
    peel: Bitmap = ink_GHW & (filled >= 2) & (filled <= 6) & (steps == 1) & open_side
    return peel
