"""Pictures of the characters that vit-glyphs-28 was pretrained on, and of their nearest relatives.

    glyphs-28    classes of the pretraining, drawn as in it: the reference of `fedpeft gap`
    glyphs-new   60 classes of the same fonts and scripts that were kept from it: a set to tune on

    glyphs of Noto's and matplotlib's fonts -> `handwriting.draw` on a page of 28 x 28

The training split of `glyphs-28` shows fonts of the pretraining, its test split fonts that were
kept from it. `glyphs-new` is drawn as `characters` is, without clutter, at full contrast.
"""

from __future__ import annotations

import numpy as np
import torch

from characters import SIDE, WHITE, Setting, draw_set
from fedpeft.core import seeds
from fedpeft.data.tables import Splits, Table
from glyph_fields import GlyphSet, render_all
from glyphs import CHOICES
from handwriting import PAGES, Hand, draw

__all__ = ["read_new_glyphs", "read_pretraining_pictures"]

SEED = 2026
NUM_PICTURES = {"train": 1500, "test": 500}
NEW = Setting(wobble=1.0, neighbour=0.0, ruled=0.0, scratches=0.0, least_contrast=1.0, noise=0.0)
"""How `glyphs-new` is drawn."""


def read_pretraining_pictures() -> Splits:
    """Draw the set: `image` uint8 [28, 28] of 0 to 16, and `label`; takes about a minute."""
    glyphs = render_all(choice=CHOICES[SIDE])
    known_C = ~glyphs.held_out_C
    label_C = (torch.cumsum(known_C, dim=0) - 1).numpy()
    labels = zip(glyphs.labels, known_C.tolist(), strict=True)
    names = {"label": tuple(label for label, known in labels if known)}
    tables = {}
    for split, num in NUM_PICTURES.items():
        index_N = _choose(glyphs, split, num)
        hand = Hand(seeds.generator(SEED, "glyphs-28", split), dtype=torch.float64)
        ink_N1hw = draw(glyphs, index_N, hand, PAGES[SIDE])
        columns = {
            "image": ink_N1hw[:, 0].clamp(0, WHITE).to(torch.uint8).numpy(),
            "label": label_C[glyphs.class_G[index_N].numpy()].astype(np.int64),
        }
        tables[split] = Table(columns, names)
    return Splits(tables, full_scale=WHITE)


def _choose(glyphs: GlyphSet, split: str, num: int) -> torch.Tensor:
    """Choose the glyph that each picture of a split shows, int64 [num]."""
    index_G = glyphs.select(held_out_fonts=split == "test", held_out_classes=False)
    generator = seeds.generator(SEED, "glyphs-28", split, "glyphs")
    return index_G[torch.randint(len(index_G), (num,), generator=generator)]


def read_new_glyphs() -> Splits:
    """Draw the classes that were kept from the pretraining, like `read_pretraining_pictures`."""
    glyphs = render_all(choice=CHOICES[SIDE])
    return draw_set(NEW, _held_out(glyphs))


def _held_out(glyphs: GlyphSet) -> GlyphSet:
    """Keep the classes that were held out, in all fonts, numbered anew and ordered by class."""
    kept = torch.nonzero(glyphs.held_out_C)[:, 0]
    number_C = torch.cumsum(glyphs.held_out_C, dim=0) - 1
    rows_G = torch.nonzero(glyphs.held_out_C[glyphs.class_G])[:, 0]
    order_G = rows_G[torch.argsort(number_C[glyphs.class_G[rows_G]], stable=True)]
    return GlyphSet(
        outline_GHW=glyphs.outline_GHW[order_G],
        pen_GHW=glyphs.pen_GHW[order_G],
        class_G=number_C[glyphs.class_G[order_G]],
        font_G=glyphs.font_G[order_G],
        fonts=glyphs.fonts,
        labels=tuple(glyphs.labels[number] for number in kept.tolist()),
        held_out_C=torch.zeros(len(kept), dtype=torch.bool),
    )
