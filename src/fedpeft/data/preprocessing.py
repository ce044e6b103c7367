"""Preprocessing: how raw pictures, clips or texts become the tensors that a model is evaluated on.

    picture ──turn upright──> grey or RGB ──resize──> centre crop ──> (value * factor - mean) / std
    text ──the model's tokenizer──> truncated at `max_length` ──> padded with `pad_id`
    label ──> the name of its class

One object holds it. Data are loaded by it, a run folder records it (`preprocessing.json`), and an
export writes its processor and tokenizer from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedpeft.core.errors import DataError
from fedpeft.data.images import Canvas, read_pixels
from fedpeft.data.tables import Column
from fedpeft.data.transforms import View, apply_view


@dataclass(frozen=True)
class PicturePreprocessing:
    """How a picture, or each frame of a clip, becomes `pixel_values`.

    Attributes:
      canvas: size, channels and resampling of the resized picture; its `full_scale` is the value of
        white in the source.
      view: crop, factor, mean and deviation.
      white: the value of white that `view.factor` belongs to: that of the source, or 255 where
        pictures of another scale are resized.
      frames: number of frames of a clip; None for pictures.
      deep: whether picture files have 16 bits a value, of which the upper 8 are used.
    """

    canvas: Canvas
    view: View
    white: int
    frames: int | None = None
    deep: bool = False

    def __call__(self, pictures: Column) -> Tensor:
        """Return `pixel_values` [N, C, H, W] of pictures as evaluation makes them, float32."""
        pixels = read_pixels(pictures, self.canvas, white=self.white)
        rows = torch.arange(len(pixels))
        return apply_view(pixels.read(rows), self.view, rows, seed=None)


@dataclass(frozen=True)
class TextPreprocessing:
    """How a text becomes `input_ids`.

    Attributes:
      max_length: longest text, or the length of a language model's blocks, in tokens.
      pad_id: the token that batches are padded with, on the right.
      chat_template: the Jinja text that conversations were written with; "" where there were none.
    """

    max_length: int
    pad_id: int
    chat_template: str = ""


@dataclass(frozen=True)
class Preprocessing:
    """How raw input becomes tensors, and what the classes are called.

    Attributes:
      picture: for pictures and clips, else None.
      text: for texts, else None.
      labels: names of the classes in the order of their numbers; () for language models.
    """

    picture: PicturePreprocessing | None = None
    text: TextPreprocessing | None = None
    labels: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """Return the content of `preprocessing.json`."""
        return dataclasses.asdict(self)


def preprocessing_from(found: Mapping[str, Any]) -> Preprocessing:
    """Return what `Preprocessing.as_json` wrote.

    Raises:
      DataError: if a field is missing or unknown.
    """
    try:
        picture, text = found["picture"], found["text"]
        return Preprocessing(
            picture=_picture(picture) if picture else None,
            text=TextPreprocessing(**text) if text else None,
            labels=tuple(map(str, found["labels"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"preprocessing: cannot be read: {type(error).__name__}: {error}"
        ) from error


def _picture(found: Mapping[str, Any]) -> PicturePreprocessing:
    view = dict(found["view"])
    numbers = {key: tuple(map(float, view[key])) for key in ("mean", "std")}
    return PicturePreprocessing(
        Canvas(**found["canvas"]),
        View(**view | numbers),
        int(found["white"]),
        found["frames"],
        bool(found["deep"]),
    )
