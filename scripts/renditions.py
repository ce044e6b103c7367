"""Other renderings of the digits: sets of a growing distance from them, the labels kept.

    inverted   16 - x: dark ink on a light page
    blurred    each pixel a mean of its neighbours, with weights 1 2 1 both ways
    strokes    the skeleton of the ink, drawn with a pen of one width
    permuted   all 64 pixels moved to other places, the same for every picture

All but the strokes are functions of `fedpeft.data.renditions`. They come from the bundled digits
alone, by integer or fixed arithmetic: anyone gets the same sets.
Legend: N pictures, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.renditions import Images, blur, invert, permute
from thinning import Bitmap, skeletons

__all__ = ["RENDITIONS", "strokes"]

_WHITE = 16
_ENLARGED = 8
_PEN = 5


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
