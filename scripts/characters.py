"""Characters in clutter: the data sets `characters` and `characters-hard`, 28 x 28 pixels.

    102 letters of six scripts -> fields of their fonts -> `handwriting.draw` on a page of 28 x 28
    -> neighbours, ruled lines and scratches beside it -> contrast, noise -> grey levels of 0..16

The scripts (`font_files.BED_SCRIPTS`) are kept from all pretraining, and no letter here looks like
a class of the bundled models. Everything is drawn in double precision, in blocks with a seed of
their own, so that a file can be made again byte by byte, or in part.

Legend of shape suffixes: B pictures, h w height and width of a picture, P points of a stroke, D the
two coordinates (x, y), in shares of the side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedpeft.core import seeds
from fedpeft.data.tables import Splits, Table
from font_files import BED_FONTS, FONTS, charmap, missing_packages
from glyph_fields import GlyphSet, fields_of
from glyphs import open_font, render_glyph
from handwriting import Hand, Page, draw

__all__ = [
    "BLOCK",
    "CLASSES",
    "SETTINGS",
    "Setting",
    "draw_block",
    "draw_characters",
    "draw_set",
    "read_characters",
    "render_classes",
]

CLASSES = (
    "ऄअआइईउऊऋऍएऐऑओकखगघ"
    "ಅಇಈಉಋಌಎಏಐಒಓಔಕಖಗಘಙ"
    "ആഈഉഊഋഌഎഐഒഔകഖഘങചഛജ"
    "ஃஅஆஇஈஎஏஐஒகஙசஞதநனம"
    "ఇఈఉఊఌఎఏఓఔకఖగఘఙచఛఝ"
    "กขฃคฆงฉซฌญฎฐฑฒธปผ"
)
"""The letters, a class each, 17 of each script; `choose_characters.py` chose them."""
SIDE = 28
WHITE = 16
BLOCK = 256
"""Pictures that are drawn with one seed."""
_STROKE_POINTS = 12

Layer: TypeAlias = tuple[Tensor, Tensor]
"""Rows of a block, and ink [B, h, w] that is added to these pictures."""


@dataclass(frozen=True)
class Setting:
    """One way of drawing a data set.

    Attributes:
      train: pictures of each class for training.
      validation: the same for validation.
      test: the same for testing.
      wobble: strength of the distortion; that of the pretraining is 1.
      least_room: least share of the side that a letter fills.
      neighbour: probability, for each of the four sides, of another letter that reaches in.
      ruled: probability of a ruled line.
      scratches: mean number of curved strokes across the picture.
      least_contrast: least difference of ink and page, as a share of full scale; the largest is 1.
      inverted: share of pictures with dark ink on a light page.
      noise: deviation of the noise of each pixel, as a share of full scale.
      seed: root of everything that is drawn.
    """

    train: int = 22
    validation: int = 8
    test: int = 10
    wobble: float = 0.5
    least_room: float = 0.7
    neighbour: float = 0.1
    ruled: float = 0.15
    scratches: float = 0.15
    least_contrast: float = 0.7
    inverted: float = 0.0
    noise: float = 0.03
    seed: int = 2026


SETTINGS: Mapping[str, Setting] = {
    "characters": Setting(),
    "characters-hard": Setting(
        wobble=0.8, least_room=0.65, neighbour=0.25, ruled=0.3, scratches=0.3, least_contrast=0.5
    ),
}
"""By the name of the data set."""


def read_characters(name: str) -> Splits:
    """Draw a data set: `image` uint8 [28, 28] of 0 to 16, and `label`; takes about a minute.

    Args:
      name: a key of `SETTINGS`.
    """
    return draw_characters(SETTINGS[name])


def draw_characters(setting: Setting) -> Splits:
    """Draw the data set of a setting, as `read_characters`."""
    return draw_set(setting, render_classes())


def draw_set(setting: Setting, glyphs: GlyphSet) -> Splits:
    """Draw a data set of any glyphs, as `read_characters`.

    Args:
      setting: how.
      glyphs: ordered by class.
    """
    num_classes, tables = len(glyphs.labels), {}
    for split in ("train", "validation", "test"):
        num = getattr(setting, split) * num_classes
        blocks = [draw_block(setting, glyphs, split, first) for first in range(0, num, BLOCK)]
        labels = np.arange(num, dtype=np.int64) % num_classes
        columns = {"image": np.concatenate(blocks)[:num], "label": labels}
        tables[split] = Table(columns, {"label": glyphs.labels})
    return Splits(tables, full_scale=WHITE)


def render_classes() -> GlyphSet:
    """Render every letter in every font that has it as distance fields, ordered by class."""
    paths = _paths()
    faces = [(open_font(path), set(charmap(path))) for path in paths]
    rows = [
        (label, font, ink)
        for label, char in enumerate(CLASSES)
        for font, (face, known) in enumerate(faces)
        if char in known and (ink := render_glyph(face, char)) is not None
    ]
    classes, fonts, bitmaps = zip(*rows, strict=True)
    outline, pen = fields_of(np.stack(bitmaps))
    return GlyphSet(
        outline_GHW=outline,
        pen_GHW=pen,
        class_G=torch.tensor(classes),
        font_G=torch.tensor(fonts),
        fonts=tuple(path.stem for path in paths),
        labels=tuple(CLASSES),
        held_out_C=torch.zeros(len(CLASSES), dtype=torch.bool),
    )


def _paths() -> list[Path]:
    paths = [FONTS / file for row in BED_FONTS for file in row.files]
    if missing := missing_packages():
        raise SystemExit(f"{FONTS}: fonts are missing; run: apt-get install {' '.join(missing)}")
    return paths


def draw_block(setting: Setting, glyphs: GlyphSet, split: str, first: int) -> np.ndarray:
    """Draw the pictures of a block of a split.

    Args:
      setting: how.
      glyphs: of `render_classes`.
      split: `train`, `validation` or `test`.
      first: row of the first picture, a multiple of `BLOCK`.

    Returns:
      uint8 [BLOCK, 28, 28] of 0 to 16; the label of a picture is its row modulo the classes.
    """
    generator = seeds.generator(setting.seed, "characters", split, first)
    hand = Hand(generator, setting.wobble, torch.float64)
    label_B = (first + torch.arange(BLOCK)) % len(glyphs.labels)
    ink_Bhw = _letters(setting, glyphs, label_B, hand)
    for rows, layer_Bhw in (*_neighbours(setting, glyphs, hand), *_strokes(setting, hand)):
        ink_Bhw[rows] = torch.maximum(ink_Bhw[rows], layer_Bhw)
    return _expose(setting, ink_Bhw, hand)


def _letters(setting: Setting, glyphs: GlyphSet, label_B: Tensor, hand: Hand) -> Tensor:
    """Draw a letter of each label in one of its fonts: shares of ink, [B, h, w]."""
    of_class_CG = glyphs.class_G == torch.arange(len(glyphs.labels))[:, None]
    count_B = of_class_CG.sum(dim=1)[label_B]
    rank_B = (hand.uniform(len(label_B), 0.0, 1.0) * count_B).long()
    first_B = torch.searchsorted(glyphs.class_G, label_B)
    page = Page(SIDE, setting.least_room, sway_x=0.1, sway_y=0.2)
    return draw(glyphs, first_B + rank_B, hand, page)[:, 0] / WHITE


def _neighbours(setting: Setting, glyphs: GlyphSet, hand: Hand) -> Iterator[Layer]:
    """Draw other letters that reach into the picture, from one side after the other."""
    for right, down in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        rows = _some(setting.neighbour, hand)
        if not len(rows):
            continue
        label_B = (hand.uniform(len(rows), 0.0, 1.0) * len(glyphs.labels)).long()
        letter_Bhw = _letters(setting, glyphs, label_B, hand)
        away_B = (hand.uniform(len(rows), 0.6, 0.9) * SIDE).long()
        level_B = hand.uniform(len(rows), 0.5, 1.0)[:, None, None]
        yield rows, _move(letter_Bhw, away_B * right, away_B * down) * level_B


def _some(share: float, hand: Hand) -> Tensor:
    """Choose this share of the pictures of a block: their rows."""
    return torch.nonzero(hand.uniform(BLOCK, 0.0, 1.0) < share)[:, 0]


def _move(picture_Bhw: Tensor, right_B: Tensor, down_B: Tensor) -> Tensor:
    """Move each picture by whole pixels; what comes in from outside is empty."""
    place = torch.arange(SIDE)
    row_Bh, column_Bw = place - down_B[:, None], place - right_B[:, None]
    inside_Bhw = ((row_Bh >= 0) & (row_Bh < SIDE))[:, :, None] & (
        (column_Bw >= 0) & (column_Bw < SIDE)
    )[:, None, :]
    rows = row_Bh.clamp(0, SIDE - 1)[:, :, None]
    columns = column_Bw.clamp(0, SIDE - 1)[:, None, :]
    moved_Bhw = picture_Bhw[torch.arange(len(picture_Bhw))[:, None, None], rows, columns]
    return moved_Bhw * inside_Bhw


def _strokes(setting: Setting, hand: Hand) -> Iterator[Layer]:
    """Draw ruled lines, then scratches, at most three in a picture."""
    for chance, path in ((setting.ruled, _line), *[(setting.scratches / 3, _curve)] * 3):
        rows = _some(chance, hand)
        if not len(rows):
            continue
        level_B = hand.uniform(len(rows), 0.3, 1.0)[:, None, None]
        points_BPD = path(len(rows), hand)
        yield rows, _pen(points_BPD, hand.uniform(len(rows), 0.3, 1.0)) * level_B


def _line(num: int, hand: Hand) -> Tensor:
    """Draw nearly level lines across the picture, [B, P, D]."""
    across = torch.linspace(-0.1, 1.1, _STROKE_POINTS, dtype=hand.dtype)
    slope_B, middle_B = hand.normal(num) * 0.05, hand.uniform(num, 0.05, 0.95)
    line_BP = middle_B[:, None] + slope_B[:, None] * (across - 0.5)
    return torch.stack([across.expand_as(line_BP), line_BP], dim=2)


def _curve(num: int, hand: Hand) -> Tensor:
    """Draw curves with three random control points each, [B, P, D]."""
    start, bend, end = (hand.uniform(num * 2, -0.1, 1.1).view(num, 1, 2) for _ in range(3))
    share = torch.linspace(0, 1, _STROKE_POINTS, dtype=hand.dtype)[None, :, None]
    return start * (1 - share) ** 2 + bend * (2 * share * (1 - share)) + end * share**2


def _pen(points_BPD: Tensor, radius_B: Tensor) -> Tensor:
    """Draw a round pen along the lines between points: shares of ink, [B, h, w].

    Args:
      points_BPD: in shares of the side.
      radius_B: of the pen, in pixels.
    """
    place = (torch.arange(SIDE, dtype=points_BPD.dtype) + 0.5) / SIDE
    pixels_ND = torch.stack(torch.meshgrid(place, place, indexing="xy"), dim=2).view(-1, 2)
    start_BPD, along_BPD = points_BPD[:, :-1], points_BPD.diff(dim=1)
    length_BP = (along_BPD**2).sum(dim=2).clamp(min=1e-9)
    offset = pixels_ND[None, None] - start_BPD[:, :, None]  # B, P, N, D
    share = ((offset * along_BPD[:, :, None]).sum(dim=3) / length_BP[:, :, None]).clamp(0, 1)
    gap = offset - share[..., None] * along_BPD[:, :, None]
    distance_BN = (gap**2).sum(dim=3).min(dim=1).values.sqrt() * SIDE
    ink_BN = (radius_B[:, None] + 0.5 - distance_BN).clamp(0, 1)
    return ink_BN.view(-1, SIDE, SIDE)


def _expose(setting: Setting, ink_Bhw: Tensor, hand: Hand) -> np.ndarray:
    """Turn shares of ink into grey levels: contrast, page, perhaps inverted, and noise."""
    contrast_B = hand.uniform(BLOCK, setting.least_contrast, 1.0)
    page_B = hand.uniform(BLOCK, 0.0, 1.0) * (1 - contrast_B)
    grey_Bhw = page_B[:, None, None] + contrast_B[:, None, None] * ink_Bhw
    dark_B = hand.uniform(BLOCK, 0.0, 1.0) < setting.inverted
    grey_Bhw = torch.where(dark_B[:, None, None], 1 - grey_Bhw, grey_Bhw)
    grey_Bhw = grey_Bhw + hand.normal(BLOCK, SIDE, SIDE) * setting.noise
    return (grey_Bhw.clamp(0, 1) * WHITE).round().to(torch.uint8).numpy()
