"""Pictures: from the values of a source to uint8 pixels of the model's channels and size.

    file, bytes, array  ->  channels (grey or RGB)  ->  resize once (Pillow)  ->  uint8 [N, H, W, C]

Pictures are decoded once, at load. Where all of them together would not fit into `MEMORY_LIMIT`,
each is decoded again for every batch, to the same pixels.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpeft.core.errors import DataError
from fedpeft.data.places import in_folder, reading
from fedpeft.data.tables import Column

if TYPE_CHECKING:
    from PIL import Image


MEMORY_LIMIT = 2 * 1024**3
"""Bytes of decoded pictures of one split that are kept in memory."""

_log = logging.getLogger(__name__)

_DARK = 10
"""Pictures of 16 bits whose brightest pixel is under one part in so many of white are told."""
_LOOKED_AT = 20
"""Pictures that are looked at for several frames."""
_TURN = 0x0112  # EXIF's tag of the orientation
RESAMPLE = {"nearest": 0, "bilinear": 2, "bicubic": 3}
"""Pillow's number of each way of resampling, which processors write too."""


@dataclass(frozen=True)
class Canvas:
    """The size and channels that every picture is converted to.

    Attributes:
      height: in pixels.
      width: in pixels.
      channels: 1 or 3.
      resample: `nearest`, `bilinear` or `bicubic`.
      full_scale: the pixel value of white in the source; resized pictures have 255.
    """

    height: int
    width: int
    channels: int
    resample: str = "bilinear"
    full_scale: int = 255


@dataclass(frozen=True)
class StoredPixels:
    """Decoded pictures in memory.

    Attributes:
      tensor: the pixels, uint8 [N, H, W, C].
      full_scale: the pixel value of white.
    """

    tensor: Tensor
    full_scale: int

    def __len__(self) -> int:
        return len(self.tensor)

    def read(self, rows: Tensor) -> Tensor:
        """Return pictures [B, H, W, C] of rows (int64 [B])."""
        return self.tensor[rows]


@dataclass(frozen=True)
class LazyPixels:
    """Pictures that are decoded each time they are read; otherwise like `StoredPixels`."""

    column: Column
    canvas: Canvas
    full_scale: int
    place: Callable[[int], str] = "row {}".format

    def __len__(self) -> int:
        return len(self.column)

    def read(self, rows: Tensor) -> Tensor:
        """Return pictures [B, H, W, C] of rows (int64 [B])."""
        decoded = [
            _fitted(self.column[row], self.place(row), self.canvas, self.full_scale)
            for row in rows.tolist()
        ]
        return torch.from_numpy(np.stack(decoded))


@dataclass(frozen=True)
class InFolder:
    """A column of pictures whose names of files count from a folder.

    Attributes:
      column: names, bytes, arrays, or the form in which `datasets` stores pictures.
      folder: that relative names count from.
    """

    column: Column
    folder: str

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: int, /) -> object:
        return self._located(self.column[index])

    def __iter__(self) -> Iterator[object]:
        return map(self._located, iter(self.column))

    def _located(self, picture: object) -> object:
        if isinstance(picture, Mapping) and picture.get("bytes") is None:
            picture = picture.get("path")
        if not isinstance(picture, str):
            return picture
        return str(in_folder(self.folder, picture))


Pixels = StoredPixels | LazyPixels


def read_pixels(
    column: Column,
    canvas: Canvas,
    *,
    white: int | None = None,
    memory_limit: int = MEMORY_LIMIT,
    place: Callable[[int], str] = "row {}".format,
) -> Pixels:
    """Decode a column of pictures, or return one that decodes on demand where memory would not do.

    Args:
      column: pictures as Pillow images, encoded bytes, file names or arrays of 0 to `full_scale`,
        shape [H, W], [H, W, C] or [C, H, W].
      canvas: size, channels and scale.
      white: the value of white in the result; None is that of the source if the first picture has
        the canvas's size, else 255.
      memory_limit: most bytes of decoded pictures to keep in memory.
      place: gives the words for where a row stands, for messages.

    Raises:
      DataError: if the column is empty, or for the first row that is no picture.
    """
    if not len(column):
        raise DataError("data.source: a split has no pictures")
    first = _to_array(column[0], place(0))
    as_is = first.shape[:2] == (canvas.height, canvas.width)
    full_scale = white or (canvas.full_scale if as_is else 255)
    if len(column) * canvas.height * canvas.width * canvas.channels > memory_limit:
        return LazyPixels(column, canvas, full_scale, place)
    pixels = np.empty((len(column), canvas.height, canvas.width, canvas.channels), np.uint8)
    for row, picture in enumerate(column):
        pixels[row] = _fitted(picture, place(row), canvas, full_scale)
    _tell_frames(column, place)
    brightest = int(pixels.max(initial=0))
    if brightest * _DARK < full_scale and is_deep(column[0]):
        _tell_dark(place(0), brightest, full_scale)
    return StoredPixels(torch.from_numpy(pixels), full_scale)


def _tell_frames(column: Column, place: Callable[[int], str]) -> None:
    """Warn where one of the first pictures is a film or a stack of pages."""
    for row in range(min(len(column), _LOOKED_AT)):
        picture = column[row]
        if isinstance(picture, np.ndarray | list | tuple):
            return
        with reading(place(row), "a picture"):
            frames = int(getattr(_opened(picture), "n_frames", 1))
        if frames > 1:
            _log.warning(
                "data: %s has %d frames or pages: of such pictures the first is used",
                place(row),
                frames,
            )
            return


def _tell_dark(place: str, brightest: int, white: int) -> None:
    """Refuse pictures of 16 bits whose upper 8 are empty; warn where these are nearly so."""
    share = f"{100 * brightest / white:.0f} %"
    if not brightest:
        raise DataError(
            f"data.source: {place} and all others have 16 bits a value and use the lower 8 only, "
            "so that all would be black: save them with 8 bits, or scale them up to 65,535"
        )
    _log.warning(
        "data: %s and all others have 16 bits a value and reach %s of white: scale them up to "
        "65,535",
        place,
        share,
    )


def is_deep(picture: object) -> bool:
    """Whether a picture file has 16 bits a value, of which the upper 8 are used."""
    if isinstance(picture, np.ndarray | list | tuple):
        return False
    with reading("the first picture", "a picture"):
        return _opened(picture).mode.startswith("I")


def _fitted(picture: object, place: str, canvas: Canvas, full_scale: int) -> npt.NDArray[np.uint8]:
    array = _to_array(picture, place)
    if array.max(initial=0) > canvas.full_scale:
        raise DataError(
            f"data.source: {place}: a picture has a pixel of {array.max()}; "
            f"allowed are 0 to {canvas.full_scale}"
        )
    if 0 in array.shape:
        raise DataError(f"data.source: {place}: a picture is empty: {list(array.shape)}")
    if full_scale != canvas.full_scale:
        scaled = array.astype(np.float64) * (full_scale / canvas.full_scale)
        array = np.rint(scaled).astype(np.uint8)
    return _resized(_with_channels(array, canvas.channels), canvas)


def _to_array(picture: object, place: str) -> npt.NDArray[np.uint8]:
    """Return uint8 [H, W, C] with C of 1 or 3, turned as the picture's EXIF data say."""
    from PIL import ImageOps

    with reading(place, "a picture"):
        if isinstance(picture, np.ndarray | list | tuple):
            return _from_numbers(np.asarray(picture), place)
        image = _opened(picture)
        image.load()
        image = ImageOps.exif_transpose(image) if image.getexif().get(_TURN, 1) != 1 else image
        wide = image.mode == "I" and image.format == "PPM"  # scaled to 16 bits by Pillow
        if image.mode in ("I", "F") and not wide:
            raise DataError(
                f"data.source: {place}: a picture of 32-bit numbers, whose white is not known; "
                "allowed are pictures of 8 or 16 bits a channel: save it as one"
            )
        if image.mode.startswith("I"):
            deep = np.asarray(image, np.int64) >> 8
            return deep.clip(0, 255).astype(np.uint8)[:, :, None]
        grey = image.mode in ("1", "L", "LA")
        if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
            image = image.convert("RGBA")  # what Pillow asks for; the colours are the same
        array = np.asarray(image.convert("L" if grey else "RGB"))
        return array[:, :, None] if grey else array


def _opened(picture: object) -> Image.Image:
    """Open a picture of bytes, of a file, or in the form that `datasets` stores."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(picture, Mapping):
        picture = picture.get("bytes") or picture.get("path")
    if isinstance(picture, str):
        picture = Path(picture).read_bytes()  # Pillow would keep some files open
    if isinstance(picture, bytes):
        try:
            return Image.open(io.BytesIO(picture))
        except UnidentifiedImageError as error:
            kind = "empty" if not picture else "of no known kind, or damaged"
            raise ValueError(f"its {len(picture)} bytes are {kind}") from error
    if isinstance(picture, Image.Image):
        return picture
    raise TypeError(f"found {type(picture).__name__}; needed are bytes or a file")


def _from_numbers(array: npt.NDArray[np.generic], place: str) -> npt.NDArray[np.uint8]:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim == 3 and array.shape[2] not in (1, 3) and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in (1, 3) or array.dtype.kind not in "ui":
        raise DataError(
            f"data.source: {place}: an array of {array.dtype}{list(array.shape)}; allowed "
            "are whole numbers [height, width], [height, width, 1 or 3] or [1 or 3, height, width]"
        )
    if array.min(initial=0) < 0 or array.max(initial=0) > 255:
        raise DataError(f"data.source: {place}: a picture has pixels outside 0 to 255")
    return array.astype(np.uint8)


def _with_channels(array: npt.NDArray[np.uint8], channels: int) -> npt.NDArray[np.uint8]:
    """Convert grey to RGB by repetition, or RGB to grey as Pillow does (ITU-R 601)."""
    if array.shape[2] == channels:
        return array
    if channels == 3:
        return np.repeat(array, 3, axis=2)
    from PIL import Image

    return np.asarray(Image.fromarray(array).convert("L"))[:, :, None]


def _resized(array: npt.NDArray[np.uint8], canvas: Canvas) -> npt.NDArray[np.uint8]:
    if array.shape[:2] == (canvas.height, canvas.width):
        return array
    from PIL import Image

    image = Image.fromarray(array[:, :, 0] if canvas.channels == 1 else array)
    size = (canvas.width, canvas.height)
    out = np.asarray(image.resize(size, Image.Resampling(RESAMPLE[canvas.resample])))
    return out[:, :, None] if canvas.channels == 1 else out
