"""Tokens, blocks and padding."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch

from fedpeft.core.errors import DataError, ModelError
from fedpeft.data.tensors import TextExamples, flat_tokens
from fedpeft.data.texts import blocks_of, load_tokenizer, tokenize

TEXTS = [[1, 3, 4], [1, 5], [1, 3, 4, 5, 6]]


def table(labels=None):
    return TextExamples(*flat_tokens(TEXTS), labels, pad_id=0)


def test_batch_gives_back_each_text():
    batch = table().batch([2, 0, 1, 2], seed=None)
    mask = batch["attention_mask"].bool()
    rows = [ids[keep].tolist() for ids, keep in zip(batch["input_ids"], mask, strict=True)]
    assert rows == [TEXTS[2], TEXTS[0], TEXTS[1], TEXTS[2]]
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_padding_reaches_to_the_longest_of_the_batch_only():
    assert table().batch([0, 1], seed=None)["input_ids"].shape == (2, 3)


def test_language_model_labels_are_the_tokens_and_nothing_on_padding():
    batch = table().batch([0, 1], seed=None)
    assert batch["labels"].tolist() == [[1, 3, 4], [1, 5, -100]]
    assert batch["input_ids"].tolist() == [[1, 3, 4], [1, 5, 0]]


def test_classes_are_the_labels_where_there_are_any():
    batch = table(torch.tensor([7, 8, 9])).batch([2, 0], seed=1)
    assert batch["labels"].tolist() == [9, 7]


def test_table_is_picklable():
    again = pickle.loads(pickle.dumps(table()))
    assert torch.equal(again.batch([1], seed=None)["input_ids"], torch.tensor([[1, 5]]))


def test_tokenize_adds_special_tokens_and_cuts(text_input):
    tokenizer = load_tokenizer(text_input, 4)
    assert tokenize(["the cat sat down", "dog", "zebra"], tokenizer) == [
        [1, 3, 4, 5],
        [1, 6],
        [1, 2],
    ]
    assert tokenizer.pad_id == 0
    whole = tokenize(["the cat sat down"], tokenizer, truncate=False)
    assert whole == [[1, 3, 4, 5, 9]]


def test_blocks_never_mix_owners_and_lose_no_pair():
    documents = [[1, 3, 4], [1, 7], [1, 5, 6, 6], [1, 8]]
    blocks, owners = blocks_of(documents, ["a", "b", "a", "b"], length=4)
    assert blocks == [[1, 3, 4, 1], [5, 6, 6], [1, 7, 1, 8]]
    assert owners == ["a", "a", "b"]
    together, _ = blocks_of(documents, [""] * 4, length=4)
    assert together != blocks


def test_lone_last_token_is_left_out():
    assert blocks_of([[1, 2, 3]], ["a"], length=2) == ([[1, 2]], ["a"])


def test_text_errors_say_which_row(text_input):
    tokenizer = load_tokenizer(text_input, None)
    with pytest.raises(DataError, match=r"row 1 is int, not a text"):
        tokenize(["cat", 3], tokenizer)
    bare = replace(tokenizer, encode=lambda texts, **_: {"input_ids": [[1], []]})
    with pytest.raises(DataError, match=r"row 1 is empty"):
        tokenize(["cat", ""], bare)


@pytest.mark.parametrize("length", [1, 17])
def test_length_outside_the_models_is_refused(text_input, length):
    with pytest.raises(DataError, match=rf"max_length: found {length}.*2 to 16"):
        load_tokenizer(text_input, length)


def test_folder_without_tokenizer_is_refused(text_input, tmp_path):
    with pytest.raises(ModelError, match=r"no tokenizer loads"):
        load_tokenizer(replace(text_input, folder=str(tmp_path)), None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "row 1 is empty"),
        ("  ", "row 1 is empty"),
        (b"cat", "row 1 is bytes, not a text: save it as text"),
        ("cat \ud800", r"row 1 is no valid text: character 4 is half of a pair"),
    ],
)
def test_a_text_that_cannot_be_read_is_named(text_input, text, message):
    tokenizer = load_tokenizer(text_input, None)
    with pytest.raises(DataError, match=message):
        tokenize(["cat", text], tokenizer)


def test_documents_of_a_language_model_may_be_empty(text_input):
    tokenizer = load_tokenizer(text_input, None)
    bare = replace(tokenizer, encode=lambda texts, **_: {"input_ids": [[1], []]})
    assert tokenize(["cat", ""], bare, truncate=False) == [[1], []]
