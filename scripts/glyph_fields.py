"""The glyphs of `glyphs.py` as distance fields, from which pictures are drawn.

    64x64 bitmaps and their classes -> two distance fields per (class, font)

Legend of shape suffixes: G glyphs (one rendering of one code point), C classes, H W height, width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from glyphs import CANVAS, CHOICES, HELD_OUT_FONTS, Choice, find_glyphs, is_wanted
from thinning import FIELD_UNIT, Bitmap, distances, skeletons

__all__ = [
    "CANVAS",
    "FIELD_UNIT",
    "HELD_OUT_FONTS",
    "GlyphSet",
    "fields_of",
    "is_wanted",
    "render_all",
]


@dataclass(frozen=True)
class GlyphSet:
    """Every rendering, its class and its font.

    Attributes:
      outline_GHW: int8, distance to the outline in `FIELD_UNIT` pixels, negative inside the ink.
      pen_GHW: int8, distance to the skeleton of the ink, in the same unit.
      class_G: int64, the class of each glyph.
      font_G: int64, the index into `fonts` of each glyph.
      fonts: names of the font files.
      labels: one readable name per class.
      held_out_C: bool, classes never trained on.
    """

    outline_GHW: Tensor
    pen_GHW: Tensor
    class_G: Tensor
    font_G: Tensor
    fonts: tuple[str, ...]
    labels: tuple[str, ...]
    held_out_C: Tensor

    def select(self, *, held_out_fonts: bool, held_out_classes: bool) -> Tensor:
        """Return the indices of the glyphs on these sides of the two splits, int64."""
        fonts = torch.tensor([name in HELD_OUT_FONTS for name in self.fonts])
        font_ok_G = fonts[self.font_G] == held_out_fonts
        return torch.nonzero(font_ok_G & (self.held_out_C[self.class_G] == held_out_classes))[:, 0]


def render_all(held_out_seed: int = 2026, choice: Choice = CHOICES[8]) -> GlyphSet:
    """Render every wanted glyph of every font and merge code points that look the same.

    Args:
      held_out_seed: decides which classes are kept away from training.
      choice: which fonts, and which of their characters.
    """
    found = find_glyphs(held_out_seed, choice)
    outline_GHW, pen_GHW = fields_of(found.ink_GHW)
    return GlyphSet(
        outline_GHW=outline_GHW,
        pen_GHW=pen_GHW,
        class_G=found.class_G,
        font_G=found.font_G,
        fonts=found.fonts,
        labels=found.labels,
        held_out_C=found.held_out_C,
    )


def fields_of(ink_GHW: Bitmap) -> tuple[Tensor, Tensor]:
    """Return the distances of bitmaps to the outline and to the skeleton, int8 [G, H, W] each."""
    return distances(ink_GHW, signed=True), distances(skeletons(ink_GHW), signed=False)
