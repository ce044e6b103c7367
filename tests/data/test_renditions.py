"""Other renderings of the digits and the characters: closed forms, and what stays as it was."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.data.bundled import BUNDLED_DATASETS, read_set
from fedpeft.data.renditions import blur, invert, permute
from renditions import RENDITIONS, strokes


@pytest.mark.parametrize("word", RENDITIONS)
def test_rows_labels_and_scale_stay(word):
    digits, other = read_set("digits"), BUNDLED_DATASETS[f"digits-{word}"].read()
    assert other.full_scale == 16 and list(other.tables) == list(digits.tables)
    for name, table in digits.tables.items():
        images = other.tables[name].columns["image"]
        assert np.array_equal(other.tables[name].columns["label"], table.columns["label"])
        assert images.shape == table.columns["image"].shape and images.dtype == np.uint8
        assert images.max() == 16 and not np.array_equal(images, table.columns["image"])


@pytest.mark.parametrize("change", RENDITIONS.values(), ids=RENDITIONS)
def test_a_picture_is_changed_without_its_neighbours_and_never_in_place(change):
    images = read_set("digits").tables["test"].columns["image"][:7]
    before = images.copy()
    assert np.array_equal(change(images)[3:4], change(images[3:4]))
    assert np.array_equal(images, before)


def test_inverting_twice_is_nothing():
    images = read_set("digits").tables["test"].columns["image"]
    assert np.array_equal(invert(invert(images)), images)
    assert invert(np.zeros((1, 8, 8), np.uint8)).min() == 16


def test_blur_of_a_point_is_the_kernel():
    point = np.zeros((1, 8, 8), np.uint8)
    point[0, 3, 4] = 16
    wanted = np.outer([1, 2, 1], [1, 2, 1])
    assert np.array_equal(blur(point)[0, 2:5, 3:6], wanted) and blur(point).sum() == 16


def test_permuted_pixels_are_the_same_numbers_in_one_order():
    images = read_set("digits").tables["test"].columns["image"]
    assert np.array_equal(
        np.sort(permute(images).reshape(len(images), -1)), np.sort(images.reshape(len(images), -1))
    )
    places = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    order = permute(places).reshape(-1)
    assert np.array_equal(permute(images).reshape(-1, 64), images.reshape(-1, 64)[:, order])
    assert (order != np.arange(64)).mean() > 0.9


def test_strokes_of_a_thick_bar_and_of_a_thin_one_are_one_line():
    thick, thin = np.zeros((2, 1, 8, 8), np.uint8)
    thick[0, :, 2:5] = 16
    thin[0, :, 3:4] = 16
    for drawn in (strokes(thick)[0], strokes(thin)[0]):
        assert (drawn[2:6, 3] == 16).all() and drawn[2:6, [0, 1, 5, 6, 7]].sum() == 0
    assert not np.array_equal(blur(thick), blur(thin))  # they are not alike to begin with


@pytest.mark.parametrize(
    ("word", "change"), [("inverted", invert), ("blurred", blur), ("permuted", permute)]
)
def test_the_characters_have_renditions_with_the_same_rows(word, change):
    characters = read_set("characters")
    other = BUNDLED_DATASETS[f"characters-{word}"].read()
    assert other.full_scale == 16 and list(other.tables) == list(characters.tables)
    for name, table in characters.tables.items():
        images, changed = table.columns["image"], other.tables[name].columns["image"]
        assert np.array_equal(other.tables[name].columns["label"], table.columns["label"])
        assert np.array_equal(changed[:9], change(images[:9]))
        assert not np.array_equal(changed, images)
