"""Data sets of the `datasets` library in memory: what a folder of the same data gives."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch

from fedpeft.core.errors import DataError
from fedpeft.data.hf_data import from_datasets
from fedpeft.data.load import load_data
from fedpeft.data.request import Columns, DataRequest, TransformSpec
from fedpeft.data.schemes import PartitionRequest
from fedpeft.models.families import PLAIN
from fedpeft.models.loaded import LoadedModel
from fedpeft.models.tasks import CAUSAL_LM, IMAGE_CLASSIFICATION, TEXT_CLASSIFICATION

LABELS = datasets.ClassLabel(names=["cat", "dog"])
PARTS = PartitionRequest(clients=3, alpha=1.0, min_examples=1)
REQUEST = DataRequest(partition=PARTS, transforms=TransformSpec("dataset", random_crop=1))


def model_of(inputs, task):
    return LoadedModel(torch.nn.Linear(1, 1), task, PLAIN, (), inputs, "net")


@pytest.fixture
def pictures(image_input):
    return model_of(image_input, IMAGE_CLASSIFICATION)


@pytest.fixture
def texts(text_input):
    return model_of(text_input, TEXT_CLASSIFICATION)


def pictured(noise, rows):
    from PIL import Image

    features = datasets.Features({"image": datasets.Image(), "label": LABELS})
    columns = {"image": [Image.fromarray(noise[r]) for r in rows], "label": [r % 2 for r in rows]}
    return datasets.Dataset.from_dict(columns, features)


def worded(*sentences):
    features = datasets.Features({"text": datasets.Value("string"), "label": LABELS})
    labels = [row % 2 for row in range(len(sentences))]
    return datasets.Dataset.from_dict({"text": list(sentences), "label": labels}, features)


def same(ours, theirs):
    assert list(ours.clients) == list(theirs.clients)
    for name, rows in ours.clients.items():
        assert rows.tolist() == theirs.clients[name].tolist()
    for table, other in ((ours.train, theirs.train), (ours.test, theirs.test)):
        batches = [t.batch(range(len(t)), seed=3) for t in (table, other)]
        assert batches[0].keys() == batches[1].keys()
        assert all(torch.equal(batches[0][key], batches[1][key]) for key in batches[0])
    return True


def test_a_dict_of_splits_is_the_same_data_as_its_folder(noise, pictures, tmp_path):
    data = datasets.DatasetDict(
        train=pictured(noise, range(30)), test=pictured(noise, range(30, 40))
    )
    data.save_to_disk(tmp_path / "saved")
    ours = from_datasets(data, pictures, REQUEST)
    for name, split in data.items():
        (tmp_path / "parquet").mkdir(exist_ok=True)
        split.to_parquet(tmp_path / "parquet" / f"{name}.parquet")
    for folder in ("saved", "parquet"):
        request = DataRequest(
            str(tmp_path / folder), partition=PARTS, transforms=REQUEST.transforms
        )
        theirs = load_data(request, pictures.inputs)
        assert same(ours, theirs) and theirs.label_names == ours.label_names == ("cat", "dog")
    swapped = datasets.DatasetDict(train=data["train"].shuffle(seed=1), test=data["test"])
    with pytest.raises(AssertionError):
        same(from_datasets(swapped, pictures, REQUEST), ours)


def test_a_format_changes_nothing(noise, pictures):
    data = pictured(noise, range(40))
    assert same(
        from_datasets(data.with_format("torch"), pictures, REQUEST),
        from_datasets(data, pictures, REQUEST),
    )


def test_a_dict_of_clients_gives_exactly_these_clients(texts):
    clients = {
        "site-b": worded("the cat", "the dog", "dog barks loud"),
        "site-a": worded("cat sat down"),
    }
    data = from_datasets(clients, texts, test=worded("the cat sat", "dog"))
    assert {name: len(rows) for name, rows in data.clients.items()} == {"site-a": 1, "site-b": 3}
    assert (len(data.test), data.label_names, data.test_clients) == (2, ("cat", "dog"), {})
    own = data.train.batch(data.clients["site-a"], seed=None)
    assert own["input_ids"].tolist() == [[1, 4, 5, 9]]


def test_clients_may_have_test_sets_and_a_client_column(texts):
    part = worded("the cat", "the dog").add_column("client", ["x", "y"])
    clients = {n: datasets.DatasetDict(train=part, validation=part) for n in ("b", "a", "c")}
    data = from_datasets(clients, texts)
    assert {n: r.tolist() for n, r in data.test_clients.items()} == {
        "a": [2, 3],
        "b": [0, 1],
        "c": [4, 5],
    }
    column = DataRequest(
        columns=Columns(client="client"),
        partition=PartitionRequest("natural", None, min_examples=1),
    )
    assert list(from_datasets(part, texts, column, test=part).clients) == ["x", "y"]


def test_a_language_model_takes_documents(text_input):
    clients = {"a": worded("the cat sat"), "b": worded("dog barks", "loud dog")}
    data = from_datasets(clients, model_of(text_input, CAUSAL_LM), test=worded("the cat"))
    assert {n: len(rows) for n, rows in data.clients.items()} == {"a": 1, "b": 1}
    assert data.num_labels is None


def streamed():
    return worded("the cat").to_iterable_dataset()


def renamed():
    other = worded("the cat").cast_column("label", datasets.ClassLabel(names=["dog", "cat"]))
    return {"a": worded("the cat"), "b": other}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (streamed(), r"source, split 'train' is a IterableDataset; allowed are"),
        ({"a": [1, 2]}, r"client 'a', split 'train' is a list"),
        ({"a": worded("x").select([])}, r"client 'a', split 'train' has no rows"),
        (worded("x").with_transform(dict), r"has a transform of its own"),
        (renamed(), r"columns or class names of the clients differ"),
        ({}, r"clients need the same splits, at least one; found"),
        ({"train": worded("x"), "val": worded("x")}, r"'train', 'val' are splits"),
        (
            {"a": worded("x"), "b": datasets.DatasetDict(test=worded("x"))},
            r"same splits, at least one; found a: train; b: test",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(source, message, texts):
    with pytest.raises(DataError, match=message):
        from_datasets(source, texts)


def test_a_model_with_inputs_of_its_own_takes_torch_data(noise):
    with pytest.raises(DataError, match=r"inputs of its own: pass a torch data set"):
        from_datasets(pictured(noise, range(4)), model_of(None, IMAGE_CLASSIFICATION))


def test_rows_of_clients_are_theirs(texts):
    clients = {"a": worded("the cat", "dog"), "b": worded("loud dog")}
    data = from_datasets(clients, texts, test=worded("the cat"))
    assert np.concatenate([*data.clients.values()]).tolist() == [0, 1, 2]
