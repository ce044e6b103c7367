"""Clients that draw their own examples: the same whenever they are asked, and none is kept."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

from fedpeft.core.errors import DataError
from fedpeft.data.drawn import DrawnClients, Names, Sizes, names_of
from fedpeft.data.partition import partition
from fedpeft.data.schemes import PartitionRequest

LABELS = np.repeat(np.arange(10), 30)
REQUEST = PartitionRequest("drawn", 500, alpha=0.3, min_examples=1, examples_per_client=40)


def drawn(**changes: object) -> DrawnClients:
    settings = {"clients": 500, "size": 40, "alpha": 0.3, "seed": 1, **changes}
    return DrawnClients(LABELS, **settings)  # type: ignore[arg-type]  # plain numbers


def test_rows_depend_on_seed_and_number_alone() -> None:
    one, other = drawn(), drawn(clients=100_000)
    names = list(itertools.islice(one, 20))
    assert all(np.array_equal(one[name], one[name]) for name in names)
    assert all(np.array_equal(one[f"client-{i:03d}"], other[f"client-{i:05d}"]) for i in range(20))
    assert not all(np.array_equal(one[name], drawn(seed=2)[name]) for name in names)
    assert len({one[name].tobytes() for name in names}) == len(names)


def test_every_client_has_its_size_and_rows_that_there_are() -> None:
    clients = drawn()
    for rows in itertools.islice(clients.values(), 50):
        assert len(rows) == 40
        assert rows.dtype == np.int64
        assert rows.min() >= 0 and rows.max() < len(LABELS)


@pytest.mark.parametrize(("alpha", "least", "most"), [(0.05, 1.0, 3.0), (100.0, 9.0, 10.0)])
def test_alpha_is_the_skew(alpha: float, least: float, most: float) -> None:
    rows = itertools.islice(drawn(alpha=alpha).values(), 200)
    held = np.mean([len(np.unique(LABELS[each])) for each in rows])
    assert least <= held <= most


def test_over_many_clients_classes_are_alike() -> None:
    rows = np.concatenate(list(drawn(clients=2000).values()))
    shares = np.bincount(LABELS[rows], minlength=10) / len(rows)
    assert np.abs(shares - 0.1).max() < 0.02


@pytest.mark.parametrize("count", [1, 64, 101, 1000])
def test_names_are_those_of_a_partition(count: int) -> None:
    width = max(2, len(str(count - 1)))
    names = Names(count)
    assert list(names) == [f"client-{i:0{width}d}" for i in range(count)]
    assert names[count - 1] == names[-1] == list(names)[-1]
    assert names[:3] == list(names)[:3] and names[::-2] == list(names)[::-2]
    assert all(name in names for name in names)
    strangers = ("client-x", "client-", f"client-{count}", "client--1", "client-0", 3)
    assert not any(name in names for name in strangers)


def test_a_million_clients_take_no_memory() -> None:
    tracemalloc.start()
    clients = partition(LABELS, PartitionRequest("drawn", 10**6, min_examples=1))
    names = names_of(clients)
    assert len(names) == len(clients) == 10**6
    assert len(clients[names[999_999]]) == 20
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert isinstance(names_of(partition(LABELS, PartitionRequest("iid", 4))), tuple)


def test_strangers_and_too_few_examples_are_refused() -> None:
    with pytest.raises(KeyError):
        drawn()["client-500"]
    with pytest.raises(DataError, match=r"examples_per_client: found 3; allowed is 10"):
        partition(LABELS, PartitionRequest("drawn", 8, min_examples=10, examples_per_client=3))
    with pytest.raises(DataError, match=r"no examples to draw from"):
        partition(np.empty(0, np.int64), REQUEST)


def test_sizes_are_known_without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    clients, dealt = drawn(), partition(LABELS, PartitionRequest("quantity", 5, alpha=1.0))
    assert dict(Sizes(clients, 3)) == {name: 3 * len(rows) for name, rows in clients.items()}
    assert dict(Sizes(dealt)) == {name: len(rows) for name, rows in dealt.items()}
    monkeypatch.setattr("fedpeft.core.seeds.derive", None)
    assert Sizes(clients, 2)["client-007"] == 80
    with pytest.raises(TypeError):
        clients["client-007"]
