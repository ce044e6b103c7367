"""The bundled data sets: a fixed split, and docstrings that do not give themselves away."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
from sklearn.datasets import load_digits

from characters import SETTINGS
from fedpeft.core.errors import DataError
from fedpeft.data.bundled import BUNDLED_DATASETS, read_set
from fedpeft.data.docstrings import read_docstrings, summary_of
from fedpeft.models.tasks import TASKS
from font_files import missing_packages
from make_sets import SETS, draw_digits_split, packed


@pytest.fixture(scope="module")
def docstrings():
    return read_docstrings(("networkx", "sklearn"))


def test_stored_split_is_the_one_that_is_drawn():
    pictures, labels = load_digits(return_X_y=True)
    tables = read_set("digits").tables
    drawn = draw_digits_split(labels)
    assert list(tables) == list(drawn)
    for split, rows in drawn.items():
        columns = tables[split].columns
        assert np.array_equal(columns["image"].reshape(-1, 64), pictures[rows])
        assert np.array_equal(columns["label"], labels[rows])


QUICK_SETS = ("digits", "digits-inverted", "digits-blurred", "digits-permuted")
OF_MORE_FONTS = (*SETTINGS, "glyphs-28", "glyphs-new")
MISSING = missing_packages()


def _marks(name: str) -> list[pytest.MarkDecorator]:
    """Sets that take long are slow, and those of fonts beyond matplotlib's need the fonts."""
    fonts = pytest.mark.skipif(
        name in OF_MORE_FONTS and bool(MISSING), reason=f"apt-get install {' '.join(MISSING)}"
    )
    return [fonts] if name in QUICK_SETS else [fonts, pytest.mark.slow]


@pytest.mark.parametrize("name", [pytest.param(name, marks=_marks(name)) for name in SETS])
def test_stored_sets_are_those_that_are_made(name):
    stored = resources.files("fedpeft.data").joinpath("sets", f"{name}.npz").read_bytes()
    made = SETS[name]()
    assert stored == packed(made)
    read = BUNDLED_DATASETS[name].read()
    assert (read.full_scale, read.digest) == (made.full_scale, "")
    assert {n: list(t.columns) for n, t in read.tables.items()} == {
        n: list(t.columns) for n, t in made.tables.items()
    }
    for split, table in made.tables.items():
        assert read.tables[split].names == table.names
        for column, values in table.columns.items():
            found = read.tables[split].columns[column]
            assert found.dtype == values.dtype and np.array_equal(found, values)


def test_another_picture_is_another_file():
    """The negative control of the comparison above."""
    made = SETS["digits"]()
    made.tables["test"].columns["image"][3, 2, 1] += 1
    stored = resources.files("fedpeft.data").joinpath("sets", "digits.npz").read_bytes()
    assert stored != packed(made)


def test_digits_are_parted_without_loss_and_stratified():
    tables = read_set("digits").tables
    assert {name: len(table) for name, table in tables.items()} == {
        "train": 1258, "validation": 180, "test": 359,
    }  # fmt: skip
    counts = np.bincount(np.concatenate([table.columns["label"] for table in tables.values()]))
    assert np.array_equal(counts, np.bincount(load_digits().target))
    shares = np.bincount(tables["test"].columns["label"]) / counts
    assert np.abs(shares - 0.2).max() < 0.005


def test_digits_keep_their_scale():
    images = read_set("digits").tables["train"].columns["image"]
    assert images.dtype == np.uint8 and images.max() == 16 == read_set("digits").full_scale


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
