"""Torch data sets of the user's own."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from fedpeft.core.errors import DataError
from fedpeft.data.schemes import PartitionRequest
from fedpeft.data.torch_data import default_collate, from_torch

TRAIN = TensorDataset(torch.arange(40.0).reshape(20, 2), torch.arange(20) % 4)
PARTS = PartitionRequest(clients=4, alpha=1.0, min_examples=1)


class Noisy(Dataset):
    """Adds noise from the global generator, as random transforms do."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return {"x": torch.randn(3) + index, "labels": index % 2}


def words(samples):
    return {"n": torch.tensor([len(sample) for sample in samples])}


def test_pairs_become_inputs_and_labels():
    data = from_torch(TRAIN, TRAIN, PARTS)
    batch = data.train.batch([3, 1], seed=None)
    assert batch["inputs"].tolist() == [[6, 7], [2, 3]] and batch["labels"].tolist() == [3, 1]
    assert data.num_labels == 4 and data.labels.tolist() == TRAIN.tensors[1].tolist()
    assert not data.augmented and not from_torch(Subset(TRAIN, range(8)), TRAIN, PARTS).augmented


def test_sample_does_not_depend_on_its_batch_nor_touch_the_global_generator():
    data = from_torch(Noisy(), Noisy(), PARTS)
    before = torch.get_rng_state()
    together = data.train.batch([4, 2], seed=9)["x"]
    assert torch.equal(together[1], data.train.batch([2], seed=9)["x"][0])
    assert not torch.equal(together[1], data.train.batch([2], seed=8)["x"][0])
    assert torch.equal(torch.get_rng_state(), before) and data.augmented


def test_clients_can_be_given():
    data = from_torch(TRAIN, TRAIN, {"site-b": [0, 1], "site-a": [5]}, labels=[0] * 20)
    assert list(data.clients) == ["site-b", "site-a"] and data.num_labels == 1


def test_own_collate_and_no_labels():
    data = from_torch(["a", "bcd"], ["x"], {"c": [0, 1]}, collate=words)
    assert data.train.batch([1], seed=None)["n"].tolist() == [3] and data.num_labels is None
    iid = PartitionRequest("iid", 2, min_examples=1)
    assert len(from_torch(["a", "bcd"], ["x"], iid, collate=words).clients) == 2
    with pytest.raises(DataError, match=r"partition 'dirichlet' needs labels"):
        from_torch(["a", "bcd"], ["x"], PARTS, collate=words)


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ({"a": [0, 20]}, r"rows 0 to 20 of 20"),
        ({"a": [0], "b": [0]}, r"belongs to two clients"),
        ({"a": []}, r"every client needs a row"),
        ({}, r"there must be a client"),
    ],
)
def test_bad_clients_are_refused(clients, message):
    with pytest.raises(DataError, match=message):
        from_torch(TRAIN, TRAIN, clients)


def test_bad_samples_and_labels_are_refused():
    with pytest.raises(DataError, match=r"a sample is str; .* pass collate="):
        default_collate(["abc"])
    with pytest.raises(DataError, match=r"2 labels for 20"):
        from_torch(TRAIN, TRAIN, PARTS, labels=[0, 1])


def test_a_mapping_gives_each_client_its_own_data_set():
    parts = {"site-b": Subset(TRAIN, range(15)), "site-a": Subset(TRAIN, range(15, 20))}
    data = from_torch(parts, {"site-b": TRAIN, "site-a": Subset(TRAIN, [0])})
    assert {name: len(rows) for name, rows in data.clients.items()} == {"site-b": 15, "site-a": 5}
    batch = data.train.batch(data.clients["site-a"], seed=None)
    assert torch.equal(batch["inputs"], TRAIN.tensors[0][15:]) and not data.augmented
    assert data.test_clients["site-a"].tolist() == [20] and data.name == "TensorDataset"
    whole = from_torch(TRAIN, TRAIN, {"b": range(15), "a": range(15, 20)})
    assert torch.equal(batch["inputs"], whole.train.batch(whole.clients["a"], seed=None)["inputs"])


def test_names_of_classes_are_kept():
    import datasets

    names = datasets.ClassLabel(names=["cat", "dog", "owl"])
    features = datasets.Features({"x": datasets.Value("float32"), "label": names})
    rows = {"x": [0.0, 1.0], "label": [0, 1]}
    data = from_torch(
        datasets.Dataset.from_dict(rows, features), TRAIN, {"c": [0, 1]}, labels=[0, 1]
    )
    assert (data.label_names, data.num_labels) == (("cat", "dog", "owl"), 3)
    assert from_torch(TRAIN, TRAIN, PARTS).label_names is None


@pytest.mark.parametrize(
    ("train", "clients", "message"),
    [
        (TRAIN, None, r"found two divisions into clients, or none"),
        ({"a": TRAIN}, PARTS, r"found two divisions into clients, or none"),
        ({"a": TRAIN, "b": Subset(TRAIN, [])}, None, r"every client needs a row"),
        ({}, None, r"there must be a client"),
        ({"train": TRAIN, "Test": TRAIN}, None, r"'train', 'Test' are splits"),
        ({"a": DataLoader(TRAIN)}, None, r"client 'a' is DataLoader; needed is a data set"),
        (iter([1]), PARTS, r"the data is list_iterator; needed is a data set"),
    ],
)
def test_clients_are_said_once(train, clients, message):
    with pytest.raises(DataError, match=message):
        from_torch(train, TRAIN, clients)


def test_a_client_of_the_test_data_is_one_of_the_training_data():
    with pytest.raises(DataError, match=r"test has the client 'b', which train lacks; .* a"):
        from_torch({"a": TRAIN}, {"a": TRAIN, "b": TRAIN})
