"""The glyphs: no digits, no class without training pictures, fonts held out."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.data.bundled import BUNDLED_DATASETS, read_set
from glyphs import CANVAS, NUM_GLYPH_LABELS, count_ink, is_wanted
from thinning import FIELD_UNIT, distances, skeletons

WANTED = {"A": True, "ж": True, "→": True, "7": False, "²": False, "Ⅳ": False, "é": False}


@pytest.mark.parametrize(("char", "wanted"), WANTED.items())
def test_numbers_and_accents_are_not_wanted(char, wanted):
    assert is_wanted(char) == wanted


def test_ink_is_counted_in_blocks():
    ink = np.zeros((1, CANVAS, CANVAS), bool)
    ink[0, 8:14, 8:11] = True  # half of the first block of 6 x 6
    counted = count_ink(ink)
    assert counted.shape == (1, 8, 8) and counted[0, 0, 0] == 8 == counted.sum()


def test_skeleton_of_a_bar_is_a_line_and_distances_are_from_it():
    bar = np.zeros((1, 20, 20), bool)
    bar[0, 5:8, 3:17] = True
    line = skeletons(bar)
    assert set(np.flatnonzero(line[0].any(1))) == {6}
    assert distances(line, signed=False)[0, 10, 10] == 4 / FIELD_UNIT
    assert distances(bar, signed=True)[0, 6, 10] == -2 / FIELD_UNIT
    assert distances(bar, signed=False)[0, 6, 10] == 0


def test_glyphs_have_the_classes_of_the_bundled_model():
    tables = read_set("glyphs").tables
    train, test = (tables[name].columns for name in ("train", "test"))
    assert len(tables["train"].names["label"]) == NUM_GLYPH_LABELS
    assert set(test["label"]) <= set(train["label"]) == set(range(NUM_GLYPH_LABELS))
    assert train["image"].shape[1:] == (8, 8) and len(test["image"]) > 1000
    assert BUNDLED_DATASETS["glyphs"].num_labels == NUM_GLYPH_LABELS
