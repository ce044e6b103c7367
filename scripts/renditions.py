"""Other renderings of the digits: sets of a growing distance from them, the labels kept.

    inverted   16 - x: dark ink on a light page
    blurred    each pixel a mean of its neighbours, with weights 1 2 1 both ways
    strokes    the skeleton of the ink, drawn with a pen of one width
    permuted   all 64 pixels moved to other places, the same for every picture

They come from the bundled digits alone, by integer or fixed arithmetic: anyone gets the same sets.
Legend: N pictures, H W height and width.

Reference for permuted pixels: Goodfellow et al., An Empirical Investigation of Catastrophic
Forgetting in Gradient-Based Neural Networks, 2013.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.tables import Splits, Table
from thinning import Bitmap, skeletons

__all__ = ["RENDITIONS", "blur", "invert", "permute", "render", "strokes"]

Images = NDArray[np.uint8]

_WHITE = 16
_ENLARGED = 8
_PEN = 5


def render(splits: Splits, change: Callable[[Images], Images]) -> Splits:
    """Change the pictures of every split; labels, rows and scale stay as they are.

    Args:
      splits: pictures in the column `image`, uint8 [N, 8, 8] of 0 to 16.
      change: one of `RENDITIONS`.
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


def strokes(images_NHW: Images) -> Images:
    """Draw the skeleton of the ink again, with one pen for all pictures.

    The picture is enlarged eight times, cut at half of full ink, thinned, drawn with a square pen
    of five pixels, and shrunk so that a straight stroke through a pixel's middle gives full ink.
    """
    large = skeletons(_enlarge(images_NHW) >= _WHITE / 2)
    pen = _thicken(large)
    count, height, width = images_NHW.shape
    blocks = pen.reshape(count, height, _ENLARGED, width, _ENLARGED).mean(axis=(2, 4))
    return np.asarray(np.rint(np.minimum(1.0, blocks * _ENLARGED / _PEN) * _WHITE), np.uint8)


def permute(images_NHW: Images) -> Images:
    """Move the pixels of every picture to other places, by one fixed permutation."""
    count, height, width = images_NHW.shape
    order = np.random.RandomState(0).permutation(height * width)
    return images_NHW.reshape(count, -1)[:, order].reshape(count, height, width)


def _enlarge(images_NHW: Images) -> NDArray[np.float64]:
    """Interpolate linearly between the pixels' middles, the outermost ones repeated."""
    grown = images_NHW.astype(np.float64)
    for axis in (1, 2):
        side = grown.shape[axis]
        place = np.clip((np.arange(side * _ENLARGED) + 0.5) / _ENLARGED - 0.5, 0, side - 1)
        low = np.minimum(place.astype(np.int64), side - 2)
        share = (place - low).reshape((-1, 1) if axis == 1 else (-1,))
        first, second = np.take(grown, low, axis), np.take(grown, low + 1, axis)
        grown = first * (1 - share) + second * share
    return grown


def _thicken(lines_NHW: Bitmap) -> Bitmap:
    """Put a square pen on every pixel of the lines."""
    reach = _PEN // 2
    padded = np.pad(lines_NHW, ((0, 0), (reach, reach), (reach, reach)))
    height, width = lines_NHW.shape[1:]
    drawn = np.zeros_like(lines_NHW)
    for down in range(_PEN):
        for right in range(_PEN):
            drawn |= padded[:, down : down + height, right : right + width]
    return drawn


RENDITIONS: Mapping[str, Callable[[Images], Images]] = {
    "blurred": blur,
    "inverted": invert,
    "permuted": permute,
    "strokes": strokes,
}
"""By the word after `digits-` in the name of a data set."""
