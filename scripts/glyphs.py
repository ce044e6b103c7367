"""Glyph classes from the fonts that matplotlib ships: many scripts, no digits, no duplicates.

    fonts -> code points -> 64x64 bitmaps -> merged classes      (8x8 counts of ink for `glyphs`)

A code point is kept if it is a letter, a mathematical sign, a currency sign or an arrow, and has
neither a numeric value nor a number word in its name. Code points that look the same when their
size is normalised (Latin A, Greek Alpha, Cyrillic A; c and C) are one class.

Five fonts and 60 classes are kept away from the training of the bundled model. The data set
`glyphs` has the trained classes: its training split in the trained fonts, its test split in the
others. `make_sets.py` renders it for the package, which has no font of its own.

Legend of shape suffixes: G glyphs (one rendering of one code point), C classes, H W height, width.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fedpeft.core import seeds
from fedpeft.data.tables import Splits, Table
from font_files import matplotlib_fonts, noto_fonts
from thinning import FIELD_UNIT, Bitmap, distances, skeletons

if TYPE_CHECKING:
    from PIL import ImageFont

__all__ = [
    "CANVAS",
    "CHOICES",
    "HELD_OUT_FONTS",
    "NUM_GLYPH_LABELS",
    "Choice",
    "Glyphs",
    "count_ink",
    "find_glyphs",
    "is_wanted",
    "looks",
    "open_font",
    "read_glyphs",
    "render_glyph",
]

CANVAS = 64
"""Side of a bitmap, pixels; the longer side of the glyph in it is `GLYPH`."""
GLYPH = 44
HELD_OUT_FONTS = frozenset(
    ["DejaVuSansMono-Oblique", "DejaVuSerif-BoldItalic", "STIXGeneralBolIta", "cmss10", "cmti10"]
)
NUM_GLYPH_LABELS = 757
"""Classes of the data set `glyphs`."""
_KEPT_SIDE = 48
_NUM_HELD_OUT_CLASSES = 60
_MERGE_DISTANCE = 0.09
_COUNT_WORDS = (
    "ZERO",
    "ONE",
    "TWO",
    "THREE",
    "FOUR",
    "FIVE",
    "SIX",
    "SEVEN",
    "EIGHT",
    "NINE",
    "TEN",
)
_NUMBER_WORDS = frozenset([*_COUNT_WORDS, "DIGIT", "NUMBER", "NUMERAL"])
_LETTERS = frozenset(["Lu", "Ll", "Lt", "Lo", "Sc"])
_SIGNS = (("\u2190", "\u21b3"), ("\u2200", "\u22ff"))  # arrows; mathematical operators


@dataclass(frozen=True)
class Choice:
    """Which glyphs become classes.

    Attributes:
      fonts: yields font files, each with its characters.
      least_glyphs: number of glyphs that a class has in fonts that are trained on.
      most_per_script: number of classes of one script.
    """

    fonts: Callable[[], Iterator[tuple[Path, Sequence[str]]]]
    least_glyphs: int
    most_per_script: int


CHOICES: Mapping[int, Choice] = {
    8: Choice(matplotlib_fonts, least_glyphs=2, most_per_script=80),
    28: Choice(noto_fonts, least_glyphs=1, most_per_script=10),
}
"""By the side of the pictures, in pixels."""


@dataclass(frozen=True)
class Glyphs:
    """Every rendering, its class and its font.

    Attributes:
      ink_GHW: bool, [G, CANVAS, CANVAS].
      class_G: int64, the class of each glyph.
      font_G: int64, the index into `fonts` of each glyph.
      fonts: names of the font files.
      labels: one readable name per class.
      held_out_C: bool, classes never trained on.
    """

    ink_GHW: Bitmap
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


def is_wanted(char: str) -> bool:
    """Tell whether a code point may become part of a class: never true for digits and numbers."""
    name = unicodedata.name(char, "")
    if not name or unicodedata.numeric(char, None) is not None:
        return False
    if _NUMBER_WORDS & set(re.split("[ -]", name)):
        return False
    parts = unicodedata.decomposition(char)
    if parts and not parts.startswith("<font> "):
        return False
    sign = any(first <= char <= last for first, last in _SIGNS)
    return sign or unicodedata.category(char) in _LETTERS


def find_glyphs(held_out_seed: int = 2026, choice: Choice = CHOICES[8]) -> Glyphs:
    """Render every wanted glyph of every font and merge code points that look the same.

    Args:
      held_out_seed: decides which classes are kept away from training.
      choice: which fonts, and which of their characters.
    """
    bitmaps = _render_fonts(choice)
    fonts = tuple(sorted({font for font, _ in bitmaps}))
    names = _merge(bitmaps)
    kept = _one_per_font_and_look(bitmaps, names)
    trained = [names[char] for font, char in kept if font not in HELD_OUT_FONTS]
    labels = _choose_labels(trained, choice)
    number = {label: index for index, label in enumerate(labels)}
    kept = [key for key in kept if names[key[1]] in number]
    order = torch.randperm(len(labels), generator=seeds.generator(held_out_seed, "held-out"))
    held_out_C = torch.zeros(len(labels), dtype=torch.bool)
    held_out_C[order[:_NUM_HELD_OUT_CLASSES]] = True
    return Glyphs(
        ink_GHW=np.stack([bitmaps[key] for key in kept]),
        class_G=torch.tensor([number[names[char]] for _, char in kept]),
        font_G=torch.tensor([fonts.index(font) for font, _ in kept]),
        fonts=fonts,
        labels=labels,
        held_out_C=held_out_C,
    )


def read_glyphs() -> Splits:
    """Read the glyphs: `image` uint8 [8, 8] of 0 to 16, and `label`; takes some seconds."""
    glyphs = find_glyphs()
    label_C = (torch.cumsum(~glyphs.held_out_C, dim=0) - 1).numpy()
    names = {
        "label": tuple(
            label for label, out in zip(glyphs.labels, glyphs.held_out_C, strict=True) if not out
        )
    }
    tables = {}
    for split, held_out in (("train", False), ("test", True)):
        index_G = glyphs.select(held_out_fonts=held_out, held_out_classes=False).numpy()
        images = count_ink(glyphs.ink_GHW[index_G])
        labels = label_C[glyphs.class_G.numpy()[index_G]].astype(np.int64)
        tables[split] = Table({"image": images, "label": labels}, names)
    return Splits(tables, full_scale=16)


def count_ink(ink_GHW: Bitmap) -> NDArray[np.uint8]:
    """Shrink bitmaps [G, CANVAS, CANVAS] as the digits were: ink of 0 to 16 in 8 x 8 blocks.

    The middle 48 x 48 pixels are kept: the glyph and two pixels around it.
    """
    margin = (CANVAS - _KEPT_SIDE) // 2
    kept = ink_GHW[:, margin:-margin, margin:-margin]
    side = _KEPT_SIDE // 8
    share = kept.reshape(len(kept), 8, side, 8, side).mean(axis=(2, 4))
    return np.asarray(np.rint(16 * share), np.uint8)


def _render_fonts(choice: Choice) -> dict[tuple[str, str], Bitmap]:
    """Render (font, char) -> bitmap, without blank ones and ones equal to a digit of the font."""
    bitmaps: dict[tuple[str, str], Bitmap] = {}
    for path, chars in choice.fonts():
        face = open_font(path)
        digits = {d.tobytes() for c in string.digits if (d := render_glyph(face, c)) is not None}
        for char in filter(is_wanted, chars):
            bitmap = render_glyph(face, char)
            if bitmap is not None and bitmap.tobytes() not in digits:
                bitmaps[path.stem, char] = bitmap
    return bitmaps


def open_font(path: Path) -> ImageFont.FreeTypeFont:
    """Open a font file at the size that `render_glyph` draws at, without shaping."""
    from PIL import ImageFont

    return ImageFont.truetype(str(path), 128, layout_engine=ImageFont.Layout.BASIC)


def render_glyph(face: ImageFont.FreeTypeFont, char: str) -> Bitmap | None:
    """Draw a character, scale its longer side to `GLYPH`, centre it; None if there is no ink."""
    from PIL import Image, ImageDraw

    image = Image.new("L", (512, 512))
    ImageDraw.Draw(image).text((128, 128), char, fill=255, font=face)
    box = image.getbbox()
    if box is None:
        return None
    glyph = image.crop(box)
    scale = GLYPH / max(glyph.size)
    if scale > 1.5:  # specks: middle dots, primes
        return None
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    canvas = Image.new("L", (CANVAS, CANVAS))
    place = ((CANVAS - width) // 2, (CANVAS - height) // 2)
    canvas.paste(glyph.resize((width, height), Image.Resampling.BOX), place)
    return np.asarray(canvas) > 96


def _base(char: str) -> str:
    """Undo styled letters (bold, script, fraktur, double-struck) to the plain letter."""
    styled = unicodedata.decomposition(char).startswith("<font> ")
    return unicodedata.normalize("NFKD", char) if styled else char


def _merge(bitmaps: Mapping[tuple[str, str], Bitmap]) -> dict[str, str]:
    """Map each character to a label, the same label for characters that look the same.

    The look is judged once per character, in the first font of a fixed order that has it, by the
    distance of blurred, size-normalised bitmaps; clusters are average-linkage clusters.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    rank = {"DejaVuSans": 0, "DejaVuSerif": 1, "STIXGeneral": 2}
    shown: dict[str, Bitmap] = {}
    last = {font: 4 - font.endswith("-Regular") for font, _ in bitmaps}
    for font, char in sorted(bitmaps, key=lambda key: (rank.get(key[0], last[key[0]]), key)):
        shown.setdefault(char, bitmaps[font, char])
    bases = sorted({_base(c) for c in shown if _base(c) in shown})
    shapes = looks(np.stack([shown[char] for char in bases]))
    clusters = fcluster(linkage(shapes, "average", metric="cosine"), _MERGE_DISTANCE, "distance")
    first: dict[int, str] = {}
    for char, cluster in zip(bases, clusters, strict=True):
        first.setdefault(int(cluster), f"U+{ord(char):04X} {unicodedata.name(char)}")
    names = {c: first[int(k)] for c, k in zip(bases, clusters, strict=True)}
    return {char: names[_base(char)] for char in shown if _base(char) in names}


def looks(ink_GHW: Bitmap) -> NDArray[np.float32]:
    """Return evenly thick, blurred 16x16 pictures, flattened: [G, 256]."""
    pen_G1HW = distances(skeletons(ink_GHW), signed=False).float().unsqueeze(1) * FIELD_UNIT
    thick_G1HW = (3.0 - pen_G1HW).clamp(0.0, 1.0)
    blurred = functional.avg_pool2d(functional.avg_pool2d(thick_G1HW, 5, 1, 2), 4)
    return np.asarray(blurred.flatten(1).numpy(), dtype=np.float32)


def _one_per_font_and_look(
    bitmaps: Mapping[tuple[str, str], Bitmap], names: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Keep one of several equal bitmaps of a label, whatever font and code point they come from."""
    seen: set[tuple[str, bytes]] = set()
    kept = []
    for font, char in sorted(bitmaps):
        look = (names.get(char, ""), bitmaps[font, char].tobytes())
        if look[0] and look not in seen:
            seen.add(look)
            kept.append((font, char))
    return kept


def _choose_labels(training: Sequence[str], choice: Choice) -> tuple[str, ...]:
    """Choose labels with enough training glyphs, the first ones of each script."""
    counts = Counter(training)
    chosen: list[str] = []
    per_script: Counter[str] = Counter()
    for label in sorted(counts):
        script = label.split()[1]
        if counts[label] >= choice.least_glyphs and per_script[script] < choice.most_per_script:
            per_script[script] += 1
            chosen.append(label)
    return tuple(chosen)
