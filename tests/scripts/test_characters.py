"""Characters in clutter: closed forms, the same pictures each time, disjoint classes."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
import torch

from characters import BLOCK, CLASSES, SETTINGS, SIDE, Setting, draw_block, render_classes
from characters import _expose as expose
from characters import _move as move
from characters import _pen as pen
from choose_characters import choose, trained_looks
from fedpeft.data.bundled import BUNDLED_DATASETS, read_set
from font_files import BED_SCRIPTS, missing_packages, script_of
from glyph_fields import GlyphSet, fields_of
from glyphs import CANVAS, CHOICES
from handwriting import Hand

MISSING = missing_packages()
needs_fonts = pytest.mark.skipif(bool(MISSING), reason=f"apt-get install {' '.join(MISSING)}")
MODELS = ("vit-glyphs-8", "vit-glyphs-28")


@pytest.fixture(scope="module")
def bars() -> GlyphSet:
    """Two classes: an upright bar, and a level one in two thicknesses."""
    ink = np.zeros((3, CANVAS, CANVAS), bool)
    ink[0, 10:54, 28:36] = ink[1, 28:36, 10:54] = ink[2, 26:38, 10:54] = True
    outline, strokes = fields_of(ink)
    classes, fonts = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])
    return GlyphSet(outline, strokes, classes, fonts, ("a", "b"), ("|", "-"), torch.zeros(2).bool())


@pytest.fixture
def small(monkeypatch) -> int:
    """Blocks of a few pictures."""
    monkeypatch.setattr("characters.BLOCK", 12)
    return 12


def test_a_block_is_drawn_again_alone_and_others_differ(bars, small):
    setting = Setting()
    block = draw_block(setting, bars, "train", small)
    assert block.shape == (small, SIDE, SIDE) and block.dtype == np.uint8 and block.max() <= 16
    assert np.array_equal(block, draw_block(setting, bars, "train", small))
    others = [
        draw_block(setting, bars, "train", 0),
        draw_block(setting, bars, "test", small),
        draw_block(replace(setting, seed=1), bars, "train", small),
    ]
    assert not any(np.array_equal(block, other) for other in others)


def test_without_clutter_a_picture_shows_its_letter_and_nothing_else(bars, small):
    plain = Setting(
        wobble=0, neighbour=0, ruled=0, scratches=0, least_contrast=1, noise=0, least_room=0.9
    )
    images = draw_block(plain, bars, "train", 0)
    high = (images.max(axis=2) > 4).sum(axis=1)  # more than the specks of a pen
    wide = (images.max(axis=1) > 4).sum(axis=1)
    assert (high[0::2] > wide[0::2]).all() and (high[1::2] < wide[1::2]).all()
    busy = replace(plain, neighbour=1.0, ruled=1.0, scratches=3.0)
    assert draw_block(busy, bars, "train", 0).mean() > 1.5 * images.mean()


def test_a_moved_picture_leaves_empty_pixels_behind():
    picture = torch.arange(SIDE * SIDE, dtype=torch.float64).view(1, SIDE, SIDE) + 1
    moved = move(picture, torch.tensor([3]), torch.tensor([-2]))
    assert torch.equal(moved[0, :-2, 3:], picture[0, 2:, :-3])
    assert moved[0, -2:].sum() == moved[0, :, :3].sum() == 0


def test_a_pen_inks_what_is_nearer_than_its_radius():
    middle = (SIDE // 2 + 0.5) / SIDE
    points = torch.tensor([[[-1.0, middle], [0.5, middle], [2.0, middle]]], dtype=torch.float64)
    ink = pen(points, torch.tensor([1.0], dtype=torch.float64))[0]
    wanted = torch.zeros(SIDE, dtype=torch.float64)
    wanted[SIDE // 2 - 1 : SIDE // 2 + 2] = torch.tensor([0.5, 1.0, 0.5])
    assert torch.allclose(ink, wanted[:, None].expand(SIDE, SIDE))


def test_exposure_keeps_the_order_of_grey_levels_unless_it_is_inverted(small):
    ink = torch.linspace(0, 1, SIDE, dtype=torch.float64).expand(small, SIDE, SIDE)
    plain = Setting(noise=0.0, least_contrast=0.5)
    images = expose(plain, ink, Hand(torch.Generator(), dtype=torch.float64)).astype(int)
    spans = images[:, 0, -1] - images[:, 0, 0]
    assert 8 <= spans.min() < spans.max() <= 16 and (np.diff(images, axis=2) >= 0).all()
    dark = replace(plain, inverted=1.0)
    images = expose(dark, ink, Hand(torch.Generator(), dtype=torch.float64)).astype(int)
    assert (np.diff(images, axis=2) <= 0).all()


@pytest.mark.parametrize("name", SETTINGS)
def test_the_stored_set_has_as_many_pictures_of_each_letter_as_its_setting_says(name):
    splits = read_set(name)
    assert splits.full_scale == 16 and BUNDLED_DATASETS[name].num_labels == len(CLASSES)
    for split, table in splits.tables.items():
        assert table.names["label"] == tuple(CLASSES)
        assert table.columns["image"].shape[1:] == (SIDE, SIDE)
        counts = np.bincount(table.columns["label"], minlength=len(CLASSES))
        assert (counts == getattr(SETTINGS[name], split)).all()
    pictures = np.concatenate([table.columns["image"] for table in splits.tables.values()])
    assert len(np.unique(pictures.reshape(len(pictures), -1), axis=0)) == len(pictures)


def test_the_letters_are_different_ones_of_the_held_out_scripts():
    assert len(set(CLASSES)) == len(CLASSES)
    assert {script_of(letter) for letter in CLASSES} == BED_SCRIPTS


@pytest.mark.parametrize("name", MODELS)
def test_no_class_of_a_bundled_model_is_of_a_held_out_script(name):
    config = resources.files("fedpeft.models").joinpath("bundled", name, "config.json")
    labels = json.loads(config.read_text("utf-8"))["id2label"].values()
    scripts = {script_of(chr(int(label.split()[0].removeprefix("U+"), 16))) for label in labels}
    assert "LATIN" in scripts and not scripts & BED_SCRIPTS


@needs_fonts
def test_fonts_that_models_are_trained_with_give_no_letter_of_a_held_out_script():
    given = {char for choice in CHOICES.values() for _, chars in choice.fonts() for char in chars}
    assert len(given) > 5000 and not given & set(CLASSES)


@needs_fonts
@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_block_equals_the_stored_rows(name):
    for split in ("train", "validation"):
        stored = read_set(name).tables[split].columns["image"]
        drawn = draw_block(SETTINGS[name], render_classes(), split, BLOCK)
        assert np.array_equal(drawn[: len(stored) - BLOCK], stored[BLOCK : 2 * BLOCK])


@needs_fonts
@pytest.mark.slow
def test_the_letters_are_those_that_are_chosen_and_look_like_nothing_trained():
    assert choose(trained_looks()) == CLASSES
