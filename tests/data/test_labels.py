"""Labels of every kind, and the rows that have none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedpeft.core.errors import DataError
from fedpeft.data.labels import encode_labels, read_names, warn_of_near_names
from fedpeft.data.tables import Table


def tables(train, test, names=None):
    known = {"label": names} if names else {}
    return Table({"label": train}, known), Table({"label": test}, known), "label"


def test_words_are_numbered_in_sorted_order_over_both_tables():
    classes = encode_labels(*tables(["b", "c", "b"], ["a"]))
    assert classes.names == ("a", "b", "c") and classes.count == 3
    assert classes.train.tolist() == [1, 2, 1] and classes.test.tolist() == [0]
    assert classes.train.dtype == np.int64


@pytest.mark.parametrize("train", [[0, 2], [0.0, 2.0], np.array([0, 2], np.uint8)])
def test_numbers_stay_and_gaps_count(train):
    classes = encode_labels(*tables(train, [1]))
    assert (classes.train.tolist(), classes.count, classes.names) == ([0, 2], 3, None)


def test_numbers_with_gaps_name_their_classes(caplog):
    classes = encode_labels(*tables([1, 4, 2], [3]))
    assert (classes.names, classes.train.tolist()) == (("1", "2", "3", "4"), [0, 3, 1])
    assert "leave gaps" in caplog.text
    site = encode_labels(*tables([2, 4], [4]), classes=classes.names, part=True)
    assert (site.train.tolist(), site.count) == ([1, 3], 4)


def test_the_data_of_one_site_keep_their_numbers():
    classes = encode_labels(*tables([0, 2], [0]), part=True)
    assert (classes.train.tolist(), classes.count, classes.names) == ([0, 2], 3, None)
    with pytest.raises(DataError, match=r"3 different numbers up to 1000000"):
        encode_labels(*tables([5, 1_000_000], [0]), part=True)


def test_names_are_compared_in_one_form_of_unicode_and_near_ones_are_told(caplog):
    composed, apart = "caf\u00e9", "cafe\u0301"
    assert encode_labels(*tables([composed, apart, "b"], ["b"])).count == 2
    assert not caplog.text
    assert encode_labels(*tables(["cat", "Cat", "cat "], ["b"])).count == 4
    assert "'Cat', 'cat', 'cat '" in caplog.text


def test_names_of_the_source_are_kept():
    classes = encode_labels(*tables([0, 1], [0], names=("no", "yes", "maybe")))
    assert classes.names == ("no", "yes", "maybe") and classes.count == 3


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([0, None], r"'label' is missing in row 1"),
        ([0.0, math.nan], r"missing in row 1"),
        ([-1, 0], r"row 0 has -1"),
        ([0.5], r"row 0 has 0.5"),
        ([[0, 1]], r"row 0 has \[0, 1\]"),
        ([0, " "], r"'label' is missing in row 1"),
    ],
)
def test_bad_label_is_refused(train, message):
    with pytest.raises(DataError, match=message):
        encode_labels(*tables(train, [0]))


def test_label_outside_the_names_and_absent_test_column_are_refused():
    with pytest.raises(DataError, match=r"row 0 has 2; allowed are 0 to 1"):
        encode_labels(*tables([2], [0], names=("no", "yes")))
    with pytest.raises(DataError, match=r"test split has no column 'label'; found are text"):
        encode_labels(Table({"label": [0]}), Table({"text": ["a"]}), "label")


def test_clients_are_words():
    assert read_names(Table({"c": np.array([3, 1])}), "c") == ["3", "1"]
    assert read_names(Table({"c": [1, 0]}, {"c": ("x", "y")}), "c") == ["y", "x"]
    with pytest.raises(DataError, match=r"'c' is missing in row 0"):
        read_names(Table({"c": [None]}), "c")


def test_truth_values_are_named_classes_also_where_one_is_absent():
    both, one = (Table({"y": values}) for values in ([True, False, True], [True]))
    found = encode_labels(both, one, "y")
    assert (found.names, found.train.tolist(), found.test.tolist()) == (
        ("False", "True"),
        [1, 0, 1],
        [1],
    )
    assert encode_labels(one, one, "y").names == ("False", "True")
    assert encode_labels(one, one, "y", ("False", "True")).train.tolist() == [1]


@pytest.mark.parametrize("value", [["a"], {"a": 1}, b"a", 0.5, float("inf"), 10**30])
def test_a_label_that_is_neither_word_nor_whole_number_is_refused(value):
    for train in (["a", value], [0, value]):
        with pytest.raises(DataError, match=r"data\.label: row 1 has"):
            encode_labels(*tables(train, train[:1]))


def test_what_makes_a_figure_say_nothing_is_told(caplog):
    encode_labels(*tables(["a", "b"], ["b"]))
    assert not caplog.text
    encode_labels(*tables(["a", "b"], ["c"]))
    assert "the class 'c' of the test set" in caplog.text
    encode_labels(*tables(["a", "a"], ["a"]))
    assert "has one class, 'a'" in caplog.text
    caplog.clear()
    encode_labels(*tables(["a", "a"], ["b"]), part=True)
    assert not caplog.text


def test_words_that_may_stand_for_a_missing_label_are_told(caplog):
    encode_labels(*tables(["NA", "DE"], ["DE"]))
    assert "'NA' of 'label' is taken as a class" in caplog.text


def test_near_names_of_clients_are_told(caplog):
    warn_of_near_names(["h1", "h2", "h1"], "client", "clients")
    assert not caplog.text
    warn_of_near_names(["h1", "H1 "], "client", "clients")
    assert "'H1 ', 'h1' of 'client' are different clients" in caplog.text


@pytest.mark.parametrize(
    "names", [("cat", "cat\u200b"), ("t-shirt", "t_shirt"), ("big cat", "big\u00a0Cat")]
)
def test_names_that_a_person_takes_for_one_are_told(caplog, names):
    encode_labels(*tables([*names, "dog"], ["dog"]))
    assert "are different classes" in caplog.text


def test_a_client_is_a_word_without_control_characters():
    with pytest.raises(DataError, match=r"row 1 has \['h'\]; allowed are words"):
        read_names(Table({"c": ["a", ["h"]]}), "c")
    for name in ("h\x1b[31m", "h\x00"):
        with pytest.raises(DataError, match=r"'c' in row 0 holds a control character"):
            read_names(Table({"c": [name]}), "c")
