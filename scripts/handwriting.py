"""Augmentation: printed glyphs become small pictures in the manner of size-normalised handwriting.

    distance field 64x64 -> affine and elastic warp -> pen of random width -> box of 32x32 filled in
    height -> ink counted in blocks of 4x4 -> 8x8 pixels of 0..16 -> (v / 16 - 0.5) / 0.5

Most pictures are drawn by a pen along the skeleton, the others have the outline of the font, grown
or shrunk. Everything is drawn from one generator, so a batch is a function of its seed.

Legend of shape suffixes: B pictures, H W height and width of a field, h w of the picture of 32x32,
D the two coordinates (x, y) in [-1, 1].
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from glyph_fields import CANVAS, FIELD_UNIT, GlyphSet

__all__ = ["draw", "normalise"]

_SIDE = 32
_BLOCK = 4
_PEN_SHARE = 0.6


def normalise(counts_B1hw: Tensor) -> Tensor:
    """Map ink counts 0..16 to [-1, 1]."""
    return (counts_B1hw / _BLOCK**2 - 0.5) / 0.5


def draw(glyphs: GlyphSet, index_B: Tensor, generator: torch.Generator) -> Tensor:
    """Draw each glyph once in a random hand.

    Args:
      glyphs: the distance fields.
      index_B: which glyph each picture shows.
      generator: source of all randomness.

    Returns:
      float32 ink counts [B, 1, 8, 8], whole numbers 0..16.
    """
    num = len(index_B)
    pen_B = torch.rand(num, generator=generator) < _PEN_SHARE
    chosen_BHW = torch.where(
        pen_B[:, None, None], glyphs.pen_GHW[index_B], glyphs.outline_GHW[index_B]
    )
    field_B1HW = chosen_BHW.unsqueeze(1).float() * FIELD_UNIT
    warped_B1HW = _sample(field_B1HW, _warp(num, generator))
    ink_B1HW = _ink_depth(warped_B1HW, pen_B, generator)
    ink_B1hw = (_sample(ink_B1HW, _fit(ink_B1HW[:, 0] > 0, generator)) > 0).float()
    counts_B1hw = functional.avg_pool2d(_specks(ink_B1hw, generator), _BLOCK) * _BLOCK**2
    return counts_B1hw.round()


def _uniform(num: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(num, generator=generator) * (high - low) + low


def _sample(image_B1HW: Tensor, grid_BhwD: Tensor) -> Tensor:
    return functional.grid_sample(image_B1HW, grid_BhwD, padding_mode="border", align_corners=False)


def _warp(num: int, generator: torch.Generator) -> Tensor:
    """Return where each pixel of the warped field looks: rotation, shear, smooth displacement."""
    angle_B = torch.randn(num, generator=generator) * 0.14  # radians
    shear_B = torch.randn(num, generator=generator) * 0.22
    taper_B = torch.randn(num, generator=generator) * 0.10
    cos_B, sin_B, zero_B = angle_B.cos(), angle_B.sin(), torch.zeros(num)
    rows = [cos_B, -sin_B + shear_B, zero_B, sin_B, cos_B, zero_B]
    matrix = torch.stack(rows, dim=1).view(num, 2, 3)
    grid_BHWD = functional.affine_grid(matrix, [num, 1, CANVAS, CANVAS], align_corners=False)
    widen_BHW = 1 + taper_B[:, None, None] * grid_BHWD[..., 1]
    grid_BHWD = torch.stack([grid_BHWD[..., 0] * widen_BHW, grid_BHWD[..., 1]], dim=-1)
    coarse = (
        _smooth_noise(num, 4, generator) * _uniform(num, 0.0, 0.13, generator)[:, None, None, None]
    )
    fine = (
        _smooth_noise(num, 8, generator) * _uniform(num, 0.0, 0.05, generator)[:, None, None, None]
    )
    return grid_BHWD + coarse + fine


def _smooth_noise(num: int, knots: int, generator: torch.Generator) -> Tensor:
    """Return a smooth random field of about unit deviation at its knots: [B, H, W, 2]."""
    knots_DBhw = torch.randn(2, num, knots, knots, generator=generator)
    spline_Hh = _spline(knots)
    return (spline_Hh @ knots_DBhw @ spline_Hh.mT).permute(1, 2, 3, 0)


@functools.cache
def _spline(knots: int) -> Tensor:
    """Return the matrix of bicubic interpolation from `knots` values to `CANVAS` values."""
    unit = torch.eye(knots).view(1, knots, knots, 1)
    wide = functional.interpolate(unit, size=(CANVAS, 1), mode="bicubic", align_corners=True)
    return wide[0, :, :, 0].mT.contiguous()


def _ink_depth(field_B1HW: Tensor, pen_B: Tensor, generator: torch.Generator) -> Tensor:
    """Return a map that is positive in the ink, its zero line the edge of strokes of random width.

    Widths are in pixels of the 64x64 field, whose glyph of 44 becomes 32; they vary smoothly.
    """
    num = len(field_B1HW)
    pen_radius_B = _uniform(num, 2.0, 4.4, generator)
    growth_B = _uniform(num, -1.0, 1.8, generator)
    deepest_B = -field_B1HW.flatten(1).min(dim=1).values
    growth_B = torch.maximum(growth_B, 1.0 - deepest_B)  # thin outlines keep some ink
    reach_B = torch.where(pen_B, pen_radius_B, growth_B)
    pressure = _smooth_noise(num, 5, generator)[..., 0].unsqueeze(1)
    strength_B = _uniform(num, 0.0, 0.5, generator)
    return reach_B[:, None, None, None] + pressure * strength_B[:, None, None, None] - field_B1HW


def _fit(ink_BHW: Tensor, generator: torch.Generator) -> Tensor:
    """Return the grid that fits the ink's box to the picture's height, or to its width if wide."""
    num = len(ink_BHW)
    left_B, right_B = _extent(ink_BHW.any(dim=1))
    top_B, bottom_B = _extent(ink_BHW.any(dim=2))
    wide_B, high_B = right_B - left_B, bottom_B - top_B
    room_B = _uniform(num, 0.88, 1.0, generator) * _SIDE
    aspect_B = torch.exp(torch.randn(num, generator=generator) * 0.18)
    scale_B = torch.minimum(room_B / high_B, room_B / (wide_B * aspect_B))
    half_x_B = _SIDE / (scale_B * aspect_B * CANVAS)  # half of the picture, in field coordinates
    half_y_B = _SIDE / (scale_B * CANVAS)
    slack = _uniform(2 * num, -1.0, 1.0, generator).view(2, num)
    shift_x_B = slack[0] * 1.5 / _SIDE * 2 * half_x_B
    shift_y_B = slack[1] * (_SIDE - scale_B * high_B).clamp(0.0, 2.0) / _SIDE * half_y_B
    centre_x_B = (left_B + right_B) / CANVAS - 1 + shift_x_B
    centre_y_B = (top_B + bottom_B) / CANVAS - 1 + shift_y_B
    zero_B = torch.zeros(num)
    rows = [half_x_B, zero_B, centre_x_B, zero_B, half_y_B, centre_y_B]
    matrix = torch.stack(rows, dim=1).view(num, 2, 3)
    return functional.affine_grid(matrix, [num, 1, _SIDE, _SIDE], align_corners=False)


def _extent(marks_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first marked position and one past the last; the whole length if none is."""
    length = marks_BL.shape[1]
    first_B = marks_BL.int().argmax(dim=1)
    last_B = length - marks_BL.flip(1).int().argmax(dim=1)
    return first_B.float(), last_B.float()


def _specks(ink_B1hw: Tensor, generator: torch.Generator) -> Tensor:
    """Flip a few pixels, as a scanner does."""
    rate_B = _uniform(len(ink_B1hw), 0.0, 0.004, generator)[:, None, None, None]
    flip_B1hw = torch.rand(ink_B1hw.shape, generator=generator) < rate_B
    return torch.where(flip_B1hw, 1 - ink_B1hw, ink_B1hw)
