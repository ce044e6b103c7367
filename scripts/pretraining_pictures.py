"""Pictures like those that vit-glyphs-28 was pretrained on: the data set `glyphs-28`.

    glyphs of Noto's and matplotlib's fonts -> `handwriting.draw` on a page of 28 x 28

The training split shows fonts of the pretraining, the test split fonts that were kept from it, both
the classes that the model knows. Fashion, scripts of the beds and digits are not among them. It is
the reference of `fedpeft gap`: how far a set lies from what the backbone knows.
"""

from __future__ import annotations

import numpy as np
import torch

from fedpeft.core import seeds
from fedpeft.data.tables import Splits, Table
from glyph_fields import GlyphSet, render_all
from glyphs import CHOICES
from handwriting import PAGES, Hand, draw

__all__ = ["read_pretraining_pictures"]

SIDE = 28
SEED = 2026
WHITE = 16
NUM_PICTURES = {"train": 1500, "test": 500}


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
