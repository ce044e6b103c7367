"""Examples of a language model: what is learnt of them, what fits, and what is said of the rest."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chat_models import CHATML, THINKING, answer, chat_tokenizer, user

from fedpeft.core.errors import DataError
from fedpeft.data.load import load_data
from fedpeft.data.request import DataRequest
from fedpeft.data.rows import check_rows
from fedpeft.data.schemes import PartitionRequest
from fedpeft.models.loaded import PadTokens, TextInput


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> TextInput:
    folder = tmp_path_factory.mktemp("qwen2")
    chat_tokenizer().save_pretrained(folder)
    return TextInput(str(folder), 256, PadTokens(num_tokens=400))


def request(folder: Path, rows: list[dict[str, object]], **keys: object) -> DataRequest:
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = PartitionRequest("iid", clients=2, min_examples=1)
    return DataRequest(**{"source": str(folder), "task": "causal-lm", "partition": parts, **keys})


def talks(*answers: str) -> list[dict[str, object]]:
    return [
        {"messages": [user(f"question {n}"), answer(each)], "client": f"c{n % 2}"}
        for n, each in enumerate(answers)
    ]


SIX = talks("one", "two", "three", "four", "five", "six")


def targets(batch: dict[str, object], inputs: TextInput) -> list[str]:
    tokenizer = chat_tokenizer()
    return [tokenizer.decode(row[row != -100]) for row in batch["labels"]]


def test_answers_alone_are_the_targets_of_a_batch(tmp_path, inputs):
    data = load_data(request(tmp_path, SIX), inputs)
    batch = data.train.batch(range(6), seed=None)
    assert targets(batch, inputs) == [
        f"{word}<|im_end|>" for word in ("one", "two", "three", "four", "five", "six")
    ]
    assert (batch["labels"] == -100).any() and data.num_labels is None
    known = batch["labels"] != -100
    assert (batch["labels"][known] == batch["input_ids"][known]).all()
    assert data.preprocessing.text.chat_template == CHATML
    everything = load_data(request(tmp_path, SIX, learn="all"), inputs)
    labels = everything.train.batch(range(6), seed=None)["labels"]
    assert (labels != -100).sum() > 3 * known.sum()


def test_each_client_and_the_test_set_has_its_own_conversations(tmp_path, inputs):
    natural = PartitionRequest("natural", None, min_examples=1)
    data = load_data(request(tmp_path, SIX, partition=natural), inputs)
    batch = data.train.batch(data.clients["c1"].tolist(), seed=None)
    assert targets(batch, inputs) == ["two<|im_end|>", "four<|im_end|>", "six<|im_end|>"]
    assert {name: rows.tolist() for name, rows in data.test_clients.items()} == {
        "c0": [0, 2, 4], "c1": [1, 3, 5]
    }  # fmt: skip
    few = load_data(request(tmp_path, SIX, budget=4), inputs)
    assert len(few.train) == 4 and sum(map(len, few.clients.values())) == 4


@pytest.mark.parametrize(("side", "ends"), [("right", "one " * 8), ("left", "one<|im_end|>")])
def test_what_is_too_long_is_cut_on_a_side_and_counted(tmp_path, inputs, caplog, side, ends):
    rows = talks("one " * 30 + "one", "two")
    with caplog.at_level(logging.WARNING):
        keys = {"max_length": 64, "truncation": side}
        data = load_data(request(tmp_path, rows, **keys), inputs)
    batch = data.train.batch([0, 1], seed=None)
    found = targets(batch, inputs)
    assert batch["input_ids"].shape == (2, 64) and found[1] == "two<|im_end|>"
    assert found[0].startswith("one one") and found[0].rstrip().endswith(ends.rstrip())
    assert ("<|im_end|>" in found[0]) == (side == "left")
    assert "1 of 2 training conversations are longer than 64 tokens" in caplog.text
    assert f"cut on the {side}, which takes" in caplog.text and "0 of them have none" in caplog.text


def test_the_figures_that_are_said_add_up(tmp_path, inputs, caplog):
    rows = talks("one " * 30 + "one", "two")
    whole = load_data(request(tmp_path, rows), inputs).train.batch([0], seed=None)
    with caplog.at_level(logging.WARNING):
        cut = load_data(request(tmp_path, rows, max_length=64), inputs).train.batch([0], seed=None)
    tokens = whole["input_ids"].numel() - 64
    learnt = int((whole["labels"] != -100).sum() - (cut["labels"] != -100).sum())
    assert f"which takes {tokens} tokens, {learnt} of them to be learnt" in caplog.text


def test_what_has_nothing_to_learn_is_left_out_with_its_client_and_counted(
    tmp_path, inputs, caplog
):
    asked = {"messages": [user("nothing is answered")], "client": "c1"}
    long = {"messages": [user("why " * 60), answer("so")], "client": "c1"}
    natural = PartitionRequest("natural", None, min_examples=1)
    rows = [asked, SIX[0], long, SIX[1]]
    with caplog.at_level(logging.WARNING):
        data = load_data(request(tmp_path, rows, max_length=64, partition=natural), inputs)
    assert len(data.train) == 2
    batch = data.train.batch(np.concatenate([data.clients["c0"], data.clients["c1"]]), seed=None)
    assert targets(batch, inputs) == ["one<|im_end|>", "two<|im_end|>"]
    assert "1 of 4 training conversations have no answer to learn" in caplog.text
    assert "1 of them have none left and are left out" in caplog.text


def test_the_first_token_of_what_is_left_is_no_target(tmp_path, inputs):
    rows = talks("one " * 60, "two")
    data = load_data(request(tmp_path, rows, max_length=16, truncation="left"), inputs)
    labels = data.train.batch([0], seed=None)["labels"][0]
    assert labels[0] == -100 and (labels[1:-1] != -100).all()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"messages": [user("a")]}], "has a turn of the assistant's"),
        (
            [{"messages": [user("why " * 60), answer("so")]}],
            "has an answer within 32 tokens; raise it",
        ),
    ],
)
def test_data_with_nothing_to_learn_are_refused(tmp_path, inputs, rows, words):
    with pytest.raises(DataError, match=words):
        load_data(request(tmp_path, rows, max_length=32), inputs)


def test_a_template_of_the_users_goes_before_the_tokenizers(tmp_path, inputs, caplog):
    rows = [{"prompt": "2 + 2 = ", "completion": "4"}] * 4
    data = load_data(request(tmp_path, rows, chat_template="none"), inputs)
    batch = data.train.batch([0], seed=None)
    assert chat_tokenizer().decode(batch["input_ids"][0]) == "2 + 2 = 4<|im_end|>"
    assert targets(batch, inputs) == ["4<|im_end|>"] and not caplog.text
    own = "{% for m in messages %}{{ m.content }};{% endfor %}"
    load_data(request(tmp_path, rows, chat_template=own), inputs)
    assert "does not learn from it where to stop" in caplog.text


def test_conversations_are_at_most_1024_tokens_and_documents_128(tmp_path, inputs):
    long = replace(inputs, max_length=4096)
    data = load_data(request(tmp_path, talks(*["one " * 2000] * 4)), long)
    assert data.train.batch([0], seed=None)["input_ids"].shape == (1, 1024)
    data = load_data(request(tmp_path, [{"text": "one " * 2000}] * 4), long)
    assert data.train.batch([0], seed=None)["input_ids"].shape == (1, 128)


def test_rows_are_checked_without_a_tokenizer(tmp_path):
    check_rows(request(tmp_path, SIX))
    with pytest.raises(DataError, match=r"line 2 of .*train.jsonl is str"):
        check_rows(request(tmp_path, [SIX[0], {"messages": "hello"}]))


def test_a_refusal_names_the_line_of_the_file(tmp_path, inputs):
    talk = [user("a"), answer("b"), user("c"), answer("d")]
    with pytest.raises(DataError, match=r"turn 2 of line 1 of .*train.jsonl in another way"):
        load_data(request(tmp_path, [{"messages": talk}], chat_template=THINKING), inputs)
