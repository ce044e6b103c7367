"""The bundled data sets: a fixed split, and docstrings that do not give themselves away."""

from __future__ import annotations

import json
from importlib import resources

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedpeft.core.errors import DataError
from fedpeft.data.bundled import BUNDLED_DATASETS, draw_digits_split, read_digits
from fedpeft.data.docstrings import read_docstrings, summary_of
from fedpeft.models.tasks import TASKS


@pytest.fixture(scope="module")
def docstrings():
    return read_docstrings(("networkx", "sklearn"))


def test_stored_split_is_the_one_that_is_drawn():
    text = resources.files("fedpeft.data").joinpath("digits_split.json").read_text("utf-8")
    assert json.loads(text) == draw_digits_split(load_digits().target)


def test_digits_are_parted_without_loss_and_stratified():
    tables = read_digits().tables
    assert {name: len(table) for name, table in tables.items()} == {
        "train": 1258, "validation": 180, "test": 359,
    }  # fmt: skip
    counts = np.bincount(np.concatenate([table.columns["label"] for table in tables.values()]))
    assert np.array_equal(counts, np.bincount(load_digits().target))
    shares = np.bincount(tables["test"].columns["label"]) / counts
    assert np.abs(shares - 0.2).max() < 0.005


def test_digits_keep_their_scale():
    images = read_digits().tables["train"].columns["image"]
    assert images.dtype == np.uint8 and images.max() == 16 == read_digits().full_scale


def test_every_row_of_the_table_says_what_it_is():
    for name, row in BUNDLED_DATASETS.items():
        assert name and row.summary and row.task in TASKS


def test_docstrings_are_masked_and_parted_within_modules(docstrings):
    train, test = (docstrings.tables[name].columns for name in ("train", "test"))
    assert set(train["label"]) == {"networkx", "sklearn"}
    texts = train["text"] + test["text"]
    assert len(set(texts)) == len(texts) > 300 and min(map(len, texts)) >= 60
    assert not any("networkx" in text.lower() or "sklearn" in text.lower() for text in texts)
    assert not set(train["name"]) & set(test["name"])
    for module in set(test["client"]):
        held, kept = (columns["client"].count(module) for columns in (test, train))
        assert held == round(0.2 * (held + kept))


def test_docstrings_are_the_same_each_time_and_known_by_a_digest(docstrings):
    again = read_docstrings(("networkx", "safetensors"))
    first, second = (
        [
            t
            for t, label in zip(columns["text"], columns["label"], strict=True)
            if label == "networkx"
        ]
        for columns in (docstrings.tables["train"].columns, again.tables["train"].columns)
    )
    assert first == second and len(first) > 100
    assert docstrings.digest != again.digest and len(again.digest) == 64


def test_summary_stops_at_the_first_section():
    text = """Draw with np.random.

    More of it.

    Parameters
    ----------
    x : array
    """
    assert summary_of(text) == "Draw with package.random. More of it."
    assert summary_of("One.\n\nArgs:\n  x: two") == "One."


def test_docstrings_need_two_packages():
    with pytest.raises(DataError, match=r"found are networkx"):
        read_docstrings(("networkx", "not_installed_at_all"))


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    from fedpeft.data.bundled import _digit_rows

    pictures, labels = load_digits(return_X_y=True)
    rows = _digit_rows()
    assert np.array_equal(rows[:, :64], pictures) and np.array_equal(rows[:, 64], labels)
