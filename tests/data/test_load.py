"""From a request to a federated data set."""

from __future__ import annotations

import json
import logging
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpeft.core.errors import DataError
from fedpeft.data.load import load_data
from fedpeft.data.partition import partition
from fedpeft.data.request import Columns, DataRequest, TransformSpec
from fedpeft.data.rows import draw_budget
from fedpeft.data.schemes import PartitionRequest
from fedpeft.data.summary import label_table, sizes
from fedpeft.models.loaded import ImageInput
from fedpeft.models.tasks import TEXT_CLASSIFICATION

DIGITS = ImageInput(8, 8, 1, (0.5,), (0.5,), 1 / 16)
PARTS = PartitionRequest(clients=8, alpha=0.5, min_examples=1)
REQUEST = DataRequest(partition=PARTS)


@pytest.fixture(scope="module")
def plays(tmp_path_factory):
    """Four speakers' lines, with topics, without a test split."""
    path = tmp_path_factory.mktemp("plays") / "plays.jsonl"
    words = ("the cat sat down", "dog barks loud", "the dog sat", "cat down")
    rows = [
        {"text": words[(n + n // 7) % 4], "client": f"speaker {n % 4}", "topic": f"t{n % 3}"}
        for n in range(120)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return DataRequest(
        source=str(path),
        task="text-classification",
        columns=Columns(label="topic"),
        partition=PARTS,
    )


def test_digits_load_with_the_defaults_of_an_experiment():
    request = DataRequest(partition=PartitionRequest(min_examples=1))
    data = load_data(request, DIGITS)
    assert (len(data.train), len(data.test), len(data.clients)) == (1258, 359, 64)
    assert data.num_labels == 10 and data.label_names == tuple("0123456789")
    expected = partition(data.labels, request.partition)
    assert all(np.array_equal(data.clients[name], expected[name]) for name in expected)
    batch = data.train.batch([3, 1], seed=5)
    assert batch["pixel_values"].shape == (2, 1, 8, 8) and not data.augmented
    assert (
        batch["pixel_values"].min() == -1
        and batch["labels"].tolist() == data.labels[[3, 1]].tolist()
    )


def test_split_does_not_depend_on_the_seed_and_validation_is_never_trained_on():
    first = load_data(REQUEST, DIGITS)
    other = load_data(replace(REQUEST, seed=7, partition=replace(PARTS, seed=7)), DIGITS)
    searched = load_data(replace(REQUEST, evaluate_on="validation"), DIGITS)
    assert torch.equal(first.train.pixels.tensor, other.train.pixels.tensor)
    assert torch.equal(first.train.pixels.tensor, searched.train.pixels.tensor)
    assert len(searched.test) == 180
    assert any(not np.array_equal(first.clients[n], other.clients[n]) for n in first.clients)


def test_transforms_do_not_change_the_partition():
    spec = TransformSpec("dataset", None, 1, True)
    plain, changed = (
        load_data(replace(REQUEST, transforms=t), DIGITS) for t in (TransformSpec(), spec)
    )
    assert all(np.array_equal(plain.clients[n], changed.clients[n]) for n in plain.clients)
    assert changed.augmented and changed.test.view == changed.train.view


def test_budget_is_drawn_first_and_partitioned_after():
    request = replace(REQUEST, budget=300)
    data, everything = load_data(request, DIGITS), load_data(REQUEST, DIGITS)
    rows = draw_budget(1258, request)
    assert len(np.unique(rows)) == 300 == len(data.train)
    assert torch.equal(data.train.pixels.tensor, everything.train.pixels.tensor[rows])
    assert np.array_equal(data.labels, everything.labels[rows])
    assert sorted(np.concatenate(list(data.clients.values()))) == list(range(300))
    assert not np.array_equal(rows, draw_budget(1258, replace(request, seed=2)))


def test_paper_fidelity_loses_the_label_skew():
    parts = PartitionRequest(clients=8, alpha=0.05, min_examples=1)
    fixed = DataRequest(budget=600, partition=parts)
    skews = []
    for request in (fixed, replace(fixed, fidelity="paper")):
        table = label_table(load_data(request, DIGITS))
        skews.append(np.mean(table.max(1) / table.sum(1).clip(1)))
    assert skews[0] > 0.35 > skews[1]


def test_paper_fidelity_takes_the_first_pictures_and_test_statistics_of_their_own():
    request = replace(REQUEST, budget=200, transforms=TransformSpec("dataset"))
    paper = load_data(replace(request, fidelity="paper"), DIGITS)
    everything = load_data(REQUEST, DIGITS)
    assert torch.equal(paper.train.pixels.tensor, everything.train.pixels.tensor[:200])
    assert paper.test.view != paper.train.view
    assert load_data(request, DIGITS).test.view == load_data(request, DIGITS).train.view


def test_texts_are_classified_and_held_out(plays, text_input, caplog):
    with caplog.at_level(logging.INFO):
        data = load_data(plays, text_input)
    assert (len(data.train), len(data.test)) == (96, 24) and "held out 24 of 120" in caplog.text
    assert data.label_names == ("t0", "t1", "t2") and data.test_clients == {}
    assert np.array_equal(label_table(data).sum(1), sizes(data)) and sizes(data).sum() == 96


def test_natural_clients_have_rows_of_both_tables(plays, text_input):
    natural = replace(plays, partition=PartitionRequest("natural", None, min_examples=5))
    data = load_data(natural, text_input)
    assert list(data.clients) == list(data.test_clients) == [f"speaker {n}" for n in range(4)]
    assert {len(rows) for rows in data.test_clients.values()} == {6}


def test_language_model_blocks_stay_with_their_speaker(plays, text_input):
    request = replace(
        plays,
        task="causal-lm",
        columns=Columns(),
        max_length=7,
        partition=PartitionRequest("natural", None, min_examples=1),
    )
    data = load_data(request, text_input)
    assert data.num_labels is None and data.labels is None
    batch = data.train.batch(data.clients["speaker 1"], seed=None)
    assert batch["input_ids"].shape[1] == 7 and (batch["labels"] == -100).any()
    rows = np.concatenate(list(data.clients.values()))
    assert sorted(rows) == list(range(len(data.train)))
    few = load_data(
        replace(request, budget=5, partition=replace(PARTS, scheme="iid", clients=2)), text_input
    )
    assert len(few.train) == 5 and few.test_clients == {}


def test_language_models_have_no_labels_to_skew(plays, text_input):
    request = replace(plays, task="causal-lm")
    with pytest.raises(DataError, match=r"'dirichlet' needs labels"):
        load_data(request, text_input)
    data = load_data(replace(request, partition=replace(PARTS, scheme="iid")), text_input)
    with pytest.raises(DataError, match=r"no labels to count"):
        label_table(data)


def test_a_task_of_ones_own_names_its_columns(plays, text_input):
    task = replace(TEXT_CLASSIFICATION, name="topics", columns={"label": ("topic",)})
    own = load_data(replace(plays, task=task, columns=Columns()), text_input)
    assert np.array_equal(own.labels, load_data(plays, text_input).labels)
    with pytest.raises(DataError, match=r"data.label: none of the columns .* has a usual name"):
        load_data(replace(plays, columns=Columns()), text_input)
    untold = replace(task, inputs=None)
    with pytest.raises(DataError, match=r"no files are read for the task topics: pass a torch"):
        load_data(replace(plays, task=untold), text_input)


def test_validation_is_held_out_where_the_source_has_none(plays, text_input):
    data = load_data(replace(plays, evaluate_on="validation"), text_input)
    assert (len(data.train), len(data.test)) == (87, 9)


def test_data_set_is_picklable():
    data = load_data(REQUEST, DIGITS)
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(
        again.train.batch([4], seed=1)["pixel_values"],
        data.train.batch([4], seed=1)["pixel_values"],
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "translation"}, r"data.task: found 'translation'"),
        ({"task": "causal-lm"}, r"feeds texts, the model takes pictures"),
        ({"fidelity": "exact"}, r"data.fidelity: found 'exact'; allowed are None, paper"),
        ({"evaluate_on": "train"}, r"data.evaluate_on: found 'train'"),
        ({"budget": 0}, r"data.budget: found 0; allowed are 1 to the 1258"),
        ({"budget": 2000}, r"data.budget: found 2000"),
        ({"partition": PartitionRequest("natural")}, r"data.client: none of the columns"),
        ({"columns": Columns(label="digit")}, r"no column 'digit'; found are image, label"),
    ],
)
def test_bad_request_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        load_data(replace(REQUEST, **change), DIGITS)


def test_model_of_the_users_own_is_sent_to_python():
    with pytest.raises(DataError, match=r"pass a torch data set from Python"):
        load_data(REQUEST, None)


def test_test_split_must_have_the_column(tmp_path, text_input):
    (tmp_path / "train.jsonl").write_text('{"text": "cat", "label": 0}\n' * 9)
    (tmp_path / "test.jsonl").write_text('{"sentence": "cat", "label": 0}\n')
    request = DataRequest(source=str(tmp_path), task="text-classification", partition=PARTS)
    with pytest.raises(
        DataError, match=r"test split has no column 'text'; found are sentence, label"
    ):
        load_data(request, text_input)
