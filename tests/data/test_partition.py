"""Laws that every scheme must hold, and the errors of impossible requests."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from fedpeft.core.errors import DataError
from fedpeft.data.drawn import Names
from fedpeft.data.partition import partition
from fedpeft.data.schemes import PARTITIONS, PartitionRequest

LABELS = np.random.RandomState(3).randint(0, 10, 1200)
REQUEST = PartitionRequest(clients=12, alpha=0.5, min_examples=5, classes_per_client=3)
DEALT = [name for name in PARTITIONS if name not in ("natural", "drawn")]


def is_partition(parts, count):
    """Whether every example is given once."""
    rows = np.concatenate(list(parts.values()))
    return len(rows) == count and len(np.unique(rows)) == count


@pytest.mark.parametrize("scheme", DEALT)
@pytest.mark.parametrize("seed", [1, 42])
def test_every_example_is_given_once_and_every_client_has_enough(scheme, seed):
    parts = partition(LABELS, replace(REQUEST, scheme=scheme, seed=seed))
    assert is_partition(parts, len(LABELS))
    assert min(map(len, parts.values())) >= 5
    assert list(parts) == list(Names(12))


def test_law_can_fail():
    twice = {"a": np.array([0, 1]), "b": np.array([1])}
    assert not is_partition(twice, 3) and not is_partition({"a": np.array([0])}, 2)


@pytest.mark.parametrize("scheme", DEALT)
def test_seed_alone_decides(scheme):
    request = replace(REQUEST, scheme=scheme)
    first = partition(LABELS, request)
    np.random.seed(99)
    np.random.rand(5)
    again = partition(LABELS.copy(), request, ["ignored"] * len(LABELS))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    other = partition(LABELS, replace(request, seed=2))
    assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_iid_shares_are_equal():
    sizes = [len(p) for p in partition(LABELS, replace(REQUEST, scheme="iid", clients=7)).values()]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("k", [1, 3, 10])
def test_pathological_clients_see_exactly_k_classes(k):
    request = replace(REQUEST, scheme="pathological", classes_per_client=k, clients=20)
    parts = partition(LABELS, request)
    assert {len(np.unique(LABELS[rows])) for rows in parts.values()} == {k}


def test_quantity_skews_sizes_and_not_labels():
    labels = np.random.RandomState(0).randint(0, 2, 50_000)
    parts = partition(labels, replace(REQUEST, scheme="quantity"))
    sizes = np.array([len(rows) for rows in parts.values()])
    assert sizes.max() > 4 * sizes.min()
    means = [labels[rows].mean() for rows in parts.values() if len(rows) > 1000]
    assert np.ptp(means) < 0.1


def test_dirichlet_skews_labels():
    parts = partition(LABELS, replace(REQUEST, alpha=0.1))
    shares = [np.bincount(LABELS[rows]).max() / len(rows) for rows in parts.values()]
    assert np.mean(shares) > 0.3


def test_names_sort_in_order():
    assert list(Names(3)) == ["client-00", "client-01", "client-02"]
    assert Names(101)[-1] == "client-100" and sorted(Names(101)) == list(Names(101))


def test_natural_keeps_columns_and_drops_the_small(caplog):
    names = ["10", "9", "9", "10", "2"]
    request = PartitionRequest("natural", None, min_examples=2)
    with caplog.at_level(logging.INFO):
        parts = partition(np.zeros(5, np.int64), request, names)
    assert {name: rows.tolist() for name, rows in parts.items()} == {"9": [1, 2], "10": [0, 3]}
    assert "left out 1 of 3" in caplog.text and ": 2 (1); lower" in caplog.text


def test_natural_can_be_limited_by_the_seed():
    names = [f"author {n}" for n in range(30)] * 2
    requests = [PartitionRequest("natural", 5, min_examples=1, seed=seed) for seed in (1, 1, 2)]
    kept = [list(partition(np.zeros(60, np.int64), request, names)) for request in requests]
    assert kept[0] == kept[1] != kept[2] and len(kept[0]) == 5


def test_infeasible_names_what_was_reached_and_what_would_do():
    labels = np.repeat(np.arange(10), 126)
    with pytest.raises(DataError, match=r"smallest client reached 3 .* min_examples is 10") as info:
        partition(labels, PartitionRequest())
    advice = str(info.value).split("would do: ")[1]
    fields = dict(pair.split(" = ") for pair in advice.split(", "))
    assert set(fields) == {"min_examples", "alpha", "clients"}
    for field, value in fields.items():
        number = float(value) if field == "alpha" else int(value)
        partition(labels, replace(PartitionRequest(), **{field: number}))


def test_advice_stays_honest_where_little_would_do():
    with pytest.raises(DataError, match=r"in 200 tries .* clients = "):
        partition(LABELS[:50], replace(REQUEST, min_examples=20))
    plain = replace(REQUEST, scheme="dirichlet-plain", clients=4, alpha=1e-3, min_examples=200)
    with pytest.raises(DataError, match=r"reached 0 .* use more data"):
        partition(np.zeros(4, np.int64), plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheme": "dirichlett"}, r"scheme: found 'dirichlett'.*did you mean 'dirichlet'"),
        ({"clients": 2000}, r"2000 clients for 1200 examples"),
        ({"clients": 0}, r"clients: found 0"),
        ({"clients": None}, r"needs a number of clients"),
        ({"alpha": 0.0}, r"alpha > 0"),
        ({"min_examples": -1}, r"min_examples: found -1"),
        ({"seed": 2**32}, r"seed < 2\*\*32"),
        ({"scheme": "natural"}, r"data.client"),
        ({"scheme": "pathological", "classes_per_client": 11}, r"allowed are 1 to 10"),
        ({"scheme": "pathological", "clients": 4, "classes_per_client": 2}, r"allowed are 3 to 10"),
    ],
)
def test_bad_request_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        partition(LABELS, replace(REQUEST, **change))


def test_natural_without_large_clients_or_with_wrong_length_is_refused():
    request = PartitionRequest("natural", None, min_examples=3)
    with pytest.raises(DataError, match=r"none of 2 natural clients has 3"):
        partition(np.zeros(3, np.int64), request, ["a", "b", "b"])
    with pytest.raises(DataError, match=r"2 client names for 3 examples"):
        partition(np.zeros(3, np.int64), request, ["a", "b"])
