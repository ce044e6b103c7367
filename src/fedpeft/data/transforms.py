"""Transforms: a batch of uint8 pictures becomes `pixel_values`.

    pad with black, crop, mirror (training: at random for each example; else the centre crop)
    pixel_values = (pixels / white - mean) / std

The random choices for an example depend on the seed and the example's row, not on the batch.
Legend: B examples, H height, W width, C channels; h, w of the uncropped picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpeft.core import seeds
from fedpeft.core.errors import DataError
from fedpeft.data.images import Canvas, Pixels
from fedpeft.data.request import TransformSpec
from fedpeft.models.loaded import ImageInput

_CHUNK = 256


@dataclass(frozen=True)
class View:
    """The transform from stored pixels to the model's input.

    Attributes:
      height: height of the model's input, in pixels.
      width: width of the model's input, in pixels.
      factor: factor on pixel values, before mean and deviation.
      mean: one number for each channel.
      std: one number for each channel, > 0.
      pad: black pixels around the picture before a random crop; None means no random crop.
      flip: whether half of the pictures are mirrored in training.
    """

    height: int
    width: int
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int | None = None
    flip: bool = False

    @property
    def augmented(self) -> bool:
        """Whether training pictures differ from epoch to epoch."""
        return self.pad is not None or self.flip


def canvas_of(spec: TransformSpec, inputs: ImageInput, full_scale: int) -> Canvas:
    """Return the size to store pictures at: the model's, or `resize` where it is larger.

    Raises:
      DataError: if `resize` is smaller than the model's input.
    """
    height, width = spec.resize or inputs.height, spec.resize or inputs.width
    if height < inputs.height or width < inputs.width:
        raise DataError(
            f"data.transforms.resize: found {spec.resize}, the model takes "
            f"{inputs.height} x {inputs.width}; allowed is that or more"
        )
    if spec.random_crop is not None and spec.random_crop < 0:
        raise DataError(
            f"data.transforms.random_crop: found {spec.random_crop}; allowed is 0 or more pixels"
        )
    return Canvas(height, width, inputs.channels, inputs.resample, full_scale)


def view_of(spec: TransformSpec, inputs: ImageInput, pixels: Pixels) -> View:
    """Return the view of a table of pictures.

    Args:
      spec: the experiment's transforms.
      inputs: the form of the model's inputs.
      pixels: the pictures; give the pixel value of white, and the statistics for
        `normalize = "dataset"`.

    Raises:
      DataError: if `normalize` is unknown or has another number of channels than the model.
    """
    mean, std, factor = inputs.mean, inputs.std, _model_scale(inputs) / pixels.full_scale
    if spec.normalize == "dataset":
        (mean, std), factor = pixel_statistics(pixels), 1 / pixels.full_scale
    elif not isinstance(spec.normalize, str):
        (mean, std), factor = spec.normalize, 1 / pixels.full_scale
    elif spec.normalize != "model":
        raise DataError(
            f"data.transforms.normalize: found {spec.normalize!r}; allowed are 'model', 'dataset' "
            "and { mean = [...], std = [...] }"
        )
    if len(mean) != inputs.channels or len(std) != inputs.channels or min(std) <= 0:
        raise DataError(
            f"data.transforms.normalize: found {len(mean)} means and deviations {list(std)}; the "
            f"model has {inputs.channels} channels, and deviations are above 0"
        )
    return View(
        inputs.height, inputs.width, factor, tuple(mean), tuple(std), spec.random_crop, spec.flip
    )


def apply_view(pixels_BhwC: Tensor, view: View, rows_B: Tensor, *, seed: int | None) -> Tensor:
    """Crop, mirror and normalise.

    Args:
      pixels_BhwC: the pictures, uint8.
      view: the transform.
      rows_B: row of each picture in its table, int64, on which its random choices depend.
      seed: seed of random crops and mirroring; None takes the centre, unmirrored.

    Returns:
      float32 [B, C, H, W].
    """
    random = seed is not None and view.augmented
    pad = view.pad if random and view.pad else 0
    padded = F.pad(pixels_BhwC, (0, 0, pad, pad, pad, pad)) if pad else pixels_BhwC
    room = padded.shape[1] - view.height, padded.shape[2] - view.width
    centre = [torch.full_like(rows_B, extent // 2) for extent in room]
    top_B, left_B, mirrored_B = (*centre, torch.zeros_like(rows_B, dtype=torch.bool))
    if random and seed is not None:
        keys_B = rows_B + seeds.derive(seed, "augment")
        draws_B3 = seeds.uniforms(keys_B, 3)
        if view.pad is not None:
            top_B, left_B = ((draws_B3[:, i] * (room[i] + 1)).long() for i in (0, 1))
        mirrored_B = (draws_B3[:, 2] < 0.5) & view.flip
    cropped = _crop(padded, (top_B, left_B), view, mirrored_B)
    mean, std = (torch.tensor(numbers, dtype=torch.float32) for numbers in (view.mean, view.std))
    return ((cropped.float() * view.factor - mean) / std).permute(0, 3, 1, 2).contiguous()


def pixel_statistics(pixels: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each channel over all pictures, with white at 1.

    The numbers are exact, from a histogram of the pixel values. The deviation of a constant channel
    is given as 1.
    """
    histogram: Tensor | None = None
    for start in range(0, len(pixels), _CHUNK):
        rows = torch.arange(start, min(start + _CHUNK, len(pixels)))
        values = pixels.read(rows).flatten(0, 2).long()
        counts = torch.stack([torch.bincount(v, minlength=256) for v in values.T])
        histogram = counts if histogram is None else histogram + counts
    assert histogram is not None, "a table of pictures has rows"
    share = histogram.double() / histogram.sum(1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / pixels.full_scale
    mean = share @ levels
    std = (share @ levels**2 - mean**2).clamp(min=0).sqrt()
    return tuple(mean.tolist()), tuple(s if s > 1e-6 else 1.0 for s in std.tolist())


def _model_scale(inputs: ImageInput) -> float:
    """Return the value of white after the model's rescaling: 1 for nearly all models.

    Processors rescale pictures of 0 to 255; that of the bundled model takes the digits' 0 to 16.
    """
    white = 16 if abs(inputs.rescale - 1 / 16) < 1e-9 else 255
    return inputs.rescale * white


def _crop(padded: Tensor, corner: tuple[Tensor, Tensor], view: View, mirrored_B: Tensor) -> Tensor:
    """Crop each picture at its corner, mirrored where `mirrored_B` is true; [B, H, W, C]."""
    rows_BH = corner[0][:, None] + torch.arange(view.height)
    ahead_W = torch.arange(view.width)
    steps_BW = torch.where(mirrored_B[:, None], ahead_W.flip(0), ahead_W)
    columns_BW = corner[1][:, None] + steps_BW
    batch_B = torch.arange(len(padded))
    return padded[batch_B[:, None, None], rows_BH[:, :, None], columns_BW[:, None, :]]
