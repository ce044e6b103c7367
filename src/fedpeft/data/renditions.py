"""Other renderings of bundled pictures: sets of a growing distance from them, the labels kept.

    inverted   16 - x: dark ink on a light page
    blurred    each pixel a mean of its neighbours, with weights 1 2 1 both ways
    permuted   all pixels moved to other places, the same for every picture

They come from the bundled pictures alone, by integer arithmetic: anyone gets the same sets.
Legend: N pictures, H W height and width.

Reference for permuted pixels: Goodfellow et al., An Empirical Investigation of Catastrophic
Forgetting in Gradient-Based Neural Networks, 2013.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.tables import Splits, Table

__all__ = ["Images", "blur", "invert", "permute", "render"]

Images: TypeAlias = NDArray[np.uint8]
"""Pictures, uint8 [N, H, W] of 0 to 16."""

_WHITE = 16


def render(splits: Splits, change: Callable[[Images], Images]) -> Splits:
    """Change the pictures of every split; labels, rows and scale stay as they are.

    Args:
      splits: pictures in the column `image`, uint8 [N, H, W] of 0 to 16.
      change: a function of this file, or another that changes pictures one by one.
    """
    tables = {
        name: Table(
            {**table.columns, "image": change(np.asarray(table.columns["image"], np.uint8))},
            table.names,
        )
        for name, table in splits.tables.items()
    }
    return replace(splits, tables=tables)


def invert(images_NHW: Images) -> Images:
    """Exchange ink and page."""
    return np.asarray(_WHITE - images_NHW, np.uint8)


def blur(images_NHW: Images) -> Images:
    """Spread the ink to the eight neighbours of each pixel; beyond the edge is no ink."""
    padded = np.pad(images_NHW.astype(np.int64), ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    sums = rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]
    return np.asarray((sums + 8) // 16, np.uint8)


def permute(images_NHW: Images) -> Images:
    """Move the pixels of every picture to other places, by one fixed permutation."""
    count, height, width = images_NHW.shape
    order = np.random.RandomState(0).permutation(height * width)
    return images_NHW.reshape(count, -1)[:, order].reshape(count, height, width)
