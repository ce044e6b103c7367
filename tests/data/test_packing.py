"""Packing: which examples share a row, and what of a row is learnt."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpeft.core.errors import DataError
from fedpeft.data.load import load_data
from fedpeft.data.packing import pack, pack_clients
from fedpeft.data.request import DataRequest
from fedpeft.data.schemes import PartitionRequest
from fedpeft.data.tensors import TextExamples, flat_tokens


@pytest.mark.parametrize("seed", range(5))
def test_every_example_is_in_one_row_that_holds_it(seed):
    draw = random.Random(seed)
    sizes = [draw.randint(1, 40) for _ in range(draw.randint(1, 200))]
    rows = pack(sizes, 40)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    filled = [sum(sizes[i] for i in row) for row in rows]
    assert max(filled) <= 40 and len(rows) <= 1.3 * -(-sum(sizes) // 40) + 1
    first_fit_in_order = next_fit(sizes, 40)  # the control: order alone wastes more
    assert len(rows) <= first_fit_in_order


def next_fit(sizes, length):
    rows, room = 0, 0
    for size in sizes:
        if size > room:
            rows, room = rows + 1, length
        room -= size
    return rows


def test_packing_is_best_fit_from_the_longest_on():
    assert pack([5, 3, 2, 4, 2], 8) == [[0, 1], [2, 3, 4]]
    assert pack([], 8) == [] and pack([8, 8], 8) == [[0], [1]]


def test_rows_hold_examples_of_one_client_with_their_targets_and_positions():
    texts = [[10, 11, 12], [20, 21], [30, 31, 32, 33], [40]]
    learnt = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1, 1], dtype=torch.bool)
    examples = TextExamples(*flat_tokens(texts), None, 0, learnt)
    clients = {"a": np.array([0, 1, 3]), "b": np.array([2])}
    table, owned = pack_clients(examples, clients, length=6)
    assert {name: rows.tolist() for name, rows in owned.items()} == {"a": [0], "b": [1]}
    batch = table.batch([0, 1], seed=None)
    assert batch["input_ids"].tolist() == [[10, 11, 12, 20, 21, 40], [30, 31, 32, 33, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * 4 + [0] * 2]
    # 40 is marked to be learnt, and begins its example: it has nothing to be predicted from
    assert batch["labels"].tolist() == [
        [-100, 11, 12, -100, 21, -100],
        [-100, -100, 32, 33, -100, -100],
    ]


@pytest.fixture
def documents(tmp_path) -> DataRequest:
    words = ["the", "cat", "sat", "dog", "barks"]
    rows = [
        {"text": " ".join(words[: 1 + n % 5] * (1 + 5 * (n == 7))), "client": f"c{n % 2}"}
        for n in range(20)
    ]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parts = PartitionRequest("natural", None, min_examples=1)
    return DataRequest(str(tmp_path), "causal-lm", max_length=8, partition=parts)


def test_documents_are_joined_or_packed_or_alone(documents, text_input):
    joined, packed, alone = (
        load_data(replace(documents, packing=packing), text_input)
        for packing in (None, True, False)
    )
    batches = [
        data.train.batch(range(len(data.train)), seed=None) for data in (joined, packed, alone)
    ]
    counts = [int(batch["attention_mask"].sum()) for batch in batches]
    assert counts[1] == counts[2] <= counts[0]  # a piece of one token teaches nothing
    assert "position_ids" in batches[1] and "position_ids" not in batches[2]
    assert len(packed.train) < len(alone.train) == 22  # two documents have one more piece
    assert (batches[1]["labels"] != -100).sum() == (batches[2]["labels"][:, 1:] != -100).sum()
    assert (batches[0]["labels"] != -100).sum() > (batches[1]["labels"] != -100).sum()
    for data in (packed, alone):  # a test set is never packed
        assert "position_ids" not in data.test.batch([0], seed=None)
        assert len(data.test) == 22


def test_clients_that_are_drawn_when_they_are_used_are_refused(documents, text_input):
    drawn = PartitionRequest("drawn", clients=2, examples_per_client=3, min_examples=1)
    with pytest.raises(DataError, match=r"data.packing: found true with .* 'drawn'"):
        load_data(replace(documents, partition=drawn, packing=True), text_input)
