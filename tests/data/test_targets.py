"""Targets that are no single class: numbers, and lists of classes."""

from __future__ import annotations

import json

import pytest
import torch

from fedpeft.core.errors import DataError
from fedpeft.data.load import load_data
from fedpeft.data.request import DataRequest
from fedpeft.data.rows import check_rows
from fedpeft.data.schemes import PartitionRequest
from fedpeft.data.tables import Table
from fedpeft.data.targets import read_targets

PARTS = PartitionRequest("iid", clients=2, min_examples=1)


def read(kind: str, values: list[object], **more: object):
    table = Table({"label": values}, names=more.pop("names", {}))
    return read_targets(kind, (table, table), DataRequest(**more))


def test_numbers_are_taken_as_they_are():
    found = read("number", [1, -2.5, "3e2"])
    assert found.train.tolist() == [1, -2.5, 300] and found.train.dtype == torch.float32
    assert found.num_labels is None and found.classes is None and found.skew.tolist() == [0, 0, 0]


@pytest.mark.parametrize("value", [None, "", "high", float("nan"), float("inf"), True, [1]])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(DataError, match=r"row 1 has .*; allowed is a finite number"):
        read("number", [1.0, value])


def test_lists_of_classes_become_a_row_of_zeros_and_ones():
    found = read("classes", [["sport", "news"], [], '["art"]'])
    assert found.names == ("art", "news", "sport") and found.num_labels == 3
    assert found.train.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    given = read("classes", [["sport"]], classes=("sport", "news"))
    assert given.train.tolist() == [[1, 0]]
    numbered = read("classes", [[0, 2]], names={"label": ("a", "b", "c")})
    assert numbered.names == ("a", "b", "c") and numbered.train.tolist() == [[1, 0, 1]]


@pytest.mark.parametrize(
    ("values", "more", "words"),
    [
        (["sport"], {}, r"row 0 has 'sport'; allowed is a list of classes"),
        ([[1.5]], {}, r"row 0 has \[1.5\]"),
        ([[], []], {}, r"no row has a class in 'label'"),
        ([["new"]], {"classes": ("old",)}, r"row 0 has 'new', which is not among the 1 classes"),
    ],
)
def test_what_is_no_list_of_known_classes_is_refused(values, more, words):
    with pytest.raises(DataError, match=words):
        read("classes", values, **more)


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("text-regression", [0.5, 1.5, 2.0, 7.0]),
        ("text-multi-label", [["a"], [], ["b"], ["a", "b"]]),
    ],
)
def test_a_batch_holds_the_targets_of_its_texts(tmp_path, text_input, task, labels):
    rows = [{"text": "the cat", "label": label} for label in labels * 5]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    request = DataRequest(str(tmp_path / "all.jsonl"), task, partition=PARTS)
    check_rows(request)
    data = load_data(request, text_input)
    assert (len(data.train), len(data.test)) == (16, 4)  # held out whatever the labels are
    batch = data.train.batch(range(len(data.train)), seed=None)
    assert batch["labels"].dtype == torch.float32 and data.labels is None
    assert len(batch["labels"].unique(dim=0)) == 4
    skewed = DataRequest(request.source, task, partition=PartitionRequest(clients=2))
    with pytest.raises(DataError, match=rf"examples for {task} have no class; allowed are iid"):
        load_data(skewed, text_input)
