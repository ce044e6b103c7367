"""Augmentation: printed glyphs become small pictures in the manner of size-normalised handwriting.

    distance field 64x64 -> affine and elastic warp -> pen of random width -> ink's box placed on a
    page of 4 x side pixels -> ink counted in blocks of 4x4 -> side x side pixels of 0..16
    -> (v / 16 - 0.5) / 0.5

Most pictures are drawn by a pen along the skeleton, the others have the outline of the font, grown
or shrunk. Everything is drawn from one generator, so a batch is a function of its seed.

Legend of shape suffixes: B pictures, H W height and width of a field, h w of the page, D the two
coordinates (x, y) in [-1, 1].
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from glyph_fields import CANVAS, FIELD_UNIT, GlyphSet

__all__ = ["PAGES", "Hand", "Page", "draw", "normalise"]

_BLOCK = 4
_PEN_SHARE = 0.6


@dataclass(frozen=True)
class Page:
    """The picture that a glyph is drawn on.

    Attributes:
      side: height and width, in pixels.
      least_room: least share of the side that the longer side of the ink fills; at most all.
      sway_x: largest shift of the ink to either side, as a share of the side.
      sway_y: the same up and down, but never out of the page.
    """

    side: int
    least_room: float
    sway_x: float
    sway_y: float

    @property
    def fine(self) -> int:
        """Side in the small pixels whose ink is counted."""
        return self.side * _BLOCK


PAGES: Mapping[int, Page] = {
    8: Page(8, least_room=0.88, sway_x=1.5 / 32, sway_y=2 / 32),
    28: Page(28, least_room=0.75, sway_x=0.06, sway_y=0.12),
}
"""By the side, in pixels."""


@dataclass(frozen=True)
class Hand:
    """How a glyph is drawn.

    Attributes:
      generator: source of all randomness.
      wobble: factor of the rotation, shear, taper and displacement; 0 leaves the print's form.
      dtype: with `torch.float64` a picture is the same on every processor.
    """

    generator: torch.Generator
    wobble: float = 1.0
    dtype: torch.dtype = torch.float32

    def uniform(self, num: int, low: float, high: float) -> Tensor:
        """Draw evenly from an interval: [num]."""
        unit = torch.rand(num, generator=self.generator, dtype=self.dtype)
        return unit * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        """Draw from the standard normal distribution."""
        return torch.randn(*shape, generator=self.generator, dtype=self.dtype)


def normalise(counts_B1hw: Tensor) -> Tensor:
    """Map ink counts 0..16 to [-1, 1]."""
    return (counts_B1hw / _BLOCK**2 - 0.5) / 0.5


def draw(glyphs: GlyphSet, index_B: Tensor, hand: Hand, page: Page = PAGES[8]) -> Tensor:
    """Draw each glyph once in a random hand.

    Args:
      glyphs: the distance fields.
      index_B: which glyph each picture shows.
      hand: how they are drawn.
      page: size of the pictures, and where the ink stands.

    Returns:
      ink counts [B, 1, side, side], whole numbers 0..16 of the hand's dtype.
    """
    num = len(index_B)
    pen_B = hand.uniform(num, 0.0, 1.0) < _PEN_SHARE
    chosen_BHW = torch.where(
        pen_B[:, None, None], glyphs.pen_GHW[index_B], glyphs.outline_GHW[index_B]
    )
    field_B1HW = chosen_BHW.unsqueeze(1).to(hand.dtype) * FIELD_UNIT
    warped_B1HW = _sample(field_B1HW, _warp(num, hand))
    ink_B1HW = _ink_depth(warped_B1HW, pen_B, hand)
    ink_B1hw = (_sample(ink_B1HW, _fit(ink_B1HW[:, 0] > 0, hand, page)) > 0).to(hand.dtype)
    counts_B1hw = functional.avg_pool2d(_specks(ink_B1hw, hand), _BLOCK) * _BLOCK**2
    return counts_B1hw.round()


def _sample(image_B1HW: Tensor, grid_BhwD: Tensor) -> Tensor:
    return functional.grid_sample(image_B1HW, grid_BhwD, padding_mode="border", align_corners=False)


def _warp(num: int, hand: Hand) -> Tensor:
    """Return where each pixel of the warped field looks: rotation, shear, smooth displacement."""
    angle_B = hand.normal(num) * (0.14 * hand.wobble)  # radians
    shear_B = hand.normal(num) * (0.22 * hand.wobble)
    taper_B = hand.normal(num) * (0.10 * hand.wobble)
    cos_B, sin_B, zero_B = angle_B.cos(), angle_B.sin(), torch.zeros(num, dtype=hand.dtype)
    rows = [cos_B, -sin_B + shear_B, zero_B, sin_B, cos_B, zero_B]
    matrix = torch.stack(rows, dim=1).view(num, 2, 3)
    grid_BHWD = functional.affine_grid(matrix, [num, 1, CANVAS, CANVAS], align_corners=False)
    widen_BHW = 1 + taper_B[:, None, None] * grid_BHWD[..., 1]
    grid_BHWD = torch.stack([grid_BHWD[..., 0] * widen_BHW, grid_BHWD[..., 1]], dim=-1)
    coarse = _smooth_noise(num, 4, hand) * hand.uniform(num, 0.0, 0.13)[:, None, None, None]
    fine = _smooth_noise(num, 8, hand) * hand.uniform(num, 0.0, 0.05)[:, None, None, None]
    return grid_BHWD + coarse * hand.wobble + fine * hand.wobble


def _smooth_noise(num: int, knots: int, hand: Hand) -> Tensor:
    """Return a smooth random field of about unit deviation at its knots: [B, H, W, 2]."""
    knots_DBhw = hand.normal(2, num, knots, knots)
    spline_Hh = _spline(knots, hand.dtype)
    return (spline_Hh @ knots_DBhw @ spline_Hh.mT).permute(1, 2, 3, 0)


@functools.cache
def _spline(knots: int, dtype: torch.dtype) -> Tensor:
    """Return the matrix of bicubic interpolation from `knots` values to `CANVAS` values."""
    unit = torch.eye(knots, dtype=dtype).view(1, knots, knots, 1)
    wide = functional.interpolate(unit, size=(CANVAS, 1), mode="bicubic", align_corners=True)
    return wide[0, :, :, 0].mT.contiguous()


def _ink_depth(field_B1HW: Tensor, pen_B: Tensor, hand: Hand) -> Tensor:
    """Return a map that is positive in the ink, its zero line the edge of strokes of random width.

    Widths are in pixels of the 64x64 field, whose glyph of 44 becomes 32; they vary smoothly.
    """
    num = len(field_B1HW)
    pen_radius_B = hand.uniform(num, 2.0, 4.4)
    growth_B = hand.uniform(num, -1.0, 1.8)
    deepest_B = -field_B1HW.flatten(1).min(dim=1).values
    growth_B = torch.maximum(growth_B, 1.0 - deepest_B)  # thin outlines keep some ink
    reach_B = torch.where(pen_B, pen_radius_B, growth_B)
    pressure = _smooth_noise(num, 5, hand)[..., 0].unsqueeze(1)
    strength_B = hand.uniform(num, 0.0, 0.5)
    return reach_B[:, None, None, None] + pressure * strength_B[:, None, None, None] - field_B1HW


def _fit(ink_BHW: Tensor, hand: Hand, page: Page) -> Tensor:
    """Return the grid that fits the ink's box to the page's height, or to its width if wide."""
    num = len(ink_BHW)
    left_B, right_B = _extent(ink_BHW.any(dim=1))
    top_B, bottom_B = _extent(ink_BHW.any(dim=2))
    wide_B, high_B = right_B - left_B, bottom_B - top_B
    room_B = hand.uniform(num, page.least_room, 1.0) * page.fine
    aspect_B = torch.exp(hand.normal(num) * 0.18)
    scale_B = torch.minimum(room_B / high_B, room_B / (wide_B * aspect_B))
    half_x_B = page.fine / (scale_B * aspect_B * CANVAS)  # half of the page, in field coordinates
    half_y_B = page.fine / (scale_B * CANVAS)
    slack = hand.uniform(2 * num, -1.0, 1.0).view(2, num)
    shift_x_B = slack[0] * page.sway_x * 2 * half_x_B
    free_B = (page.fine - scale_B * high_B).clamp(0.0, page.sway_y * page.fine)
    shift_y_B = slack[1] * free_B / page.fine * half_y_B
    centre_x_B = (left_B + right_B) / CANVAS - 1 + shift_x_B
    centre_y_B = (top_B + bottom_B) / CANVAS - 1 + shift_y_B
    zero_B = torch.zeros(num, dtype=hand.dtype)
    rows = [half_x_B, zero_B, centre_x_B, zero_B, half_y_B, centre_y_B]
    matrix = torch.stack(rows, dim=1).view(num, 2, 3)
    return functional.affine_grid(matrix, [num, 1, page.fine, page.fine], align_corners=False)


def _extent(marks_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first marked position and one past the last; the whole length if none is."""
    length = marks_BL.shape[1]
    first_B = marks_BL.int().argmax(dim=1)
    last_B = length - marks_BL.flip(1).int().argmax(dim=1)
    return first_B, last_B


def _specks(ink_B1hw: Tensor, hand: Hand) -> Tensor:
    """Flip a few pixels, as a scanner does."""
    rate_B = hand.uniform(len(ink_B1hw), 0.0, 0.004)[:, None, None, None]
    flip_B1hw = torch.rand(ink_B1hw.shape, generator=hand.generator, dtype=hand.dtype) < rate_B
    return torch.where(flip_B1hw, 1 - ink_B1hw, ink_B1hw)
