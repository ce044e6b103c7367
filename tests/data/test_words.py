"""Lists of words with a class for each."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fedpeft.core.errors import DataError
from fedpeft.data.load import load_data
from fedpeft.data.request import DataRequest
from fedpeft.data.rows import check_rows
from fedpeft.data.schemes import PartitionRequest
from fedpeft.data.tables import Table
from fedpeft.data.texts import load_tokenizer
from fedpeft.data.words import read_tags, tagged


def test_the_first_token_of_a_word_has_its_class(text_input):
    pieces = {"[UNK]": 0, "[CLS]": 1, "ada": 2, "love": 3, "##lace": 4, "wrote": 5}
    made = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", 1)]
    )
    tokenizer = load_tokenizer(text_input, 5)
    own = replace(tokenizer, encode=PreTrainedTokenizerFast(tokenizer_object=made))
    found = tagged(
        [["ada", "lovelace", "wrote"], ["wrote"]], [[1, 2, 0], [0]], own, "row {}".format
    )
    batch = found.batch([0, 1], seed=None)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [1, 5, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 1, 2, -100, 0], [-100, 0, -100, -100, -100]]
    cut = tagged([["ada", "lovelace", "wrote"]], [[1, 2, 0]], replace(own, max_length=3), str)
    assert cut.batch([0], seed=None)["labels"].tolist() == [[-100, 1, 2]]


def read(words: list[object], tags: list[object], names=(), classes=()):
    table = Table({"tokens": words, "tags": tags}, names={"tags": names} if names else {})
    return read_tags((table, table), "tokens", "tags", DataRequest(classes=classes))


def test_the_tag_of_no_part_comes_first_unless_the_source_has_an_order():
    assert read([["a", "b", "c"]], [["B-X", "O", "A"]]) == ([[[2, 0, 1]]] * 2, ("O", "A", "B-X"))
    assert read([["a", "b"]], [[1, 0]], names=("O", "B"))[0][0] == [[1, 0]]
    assert read([["a"]], [["O"]], classes=("B", "O")) == ([[[1]]] * 2, ("B", "O"))


@pytest.mark.parametrize(
    ("words", "tags", "classes", "said"),
    [
        ("a b", ["O", "O"], (), r"data.text: row 0 has 'a b'; allowed is a list of words"),
        (["a"], "O", (), r"data.label: row 0 has 'O'; allowed is a list of tags"),
        (["a", "b"], ["O"], (), r"row 0 has 2 words and 1 tags"),
        (["a"], [1.5], (), r"row 0 has the tag 1.5"),
        (["a"], ["X"], ("O",), r"the data has the tag 'X', which is not among the 1 classes"),
        ([], [], (), r"data.text: row 0 has \[\]"),
    ],
)
def test_what_is_not_one_tag_for_each_word_is_refused(words, tags, classes, said):
    with pytest.raises(DataError, match=said):
        read([words], [tags], classes=classes)


def test_rows_are_loaded_with_their_classes(tmp_path, text_input):
    rows = [
        {"tokens": ["the", "cat"], "ner_tags": ["O", "B"], "client": f"c{n % 2}"} for n in range(10)
    ]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parts = PartitionRequest("natural", None, min_examples=1)
    request = DataRequest(str(tmp_path / "all.jsonl"), "token-classification", partition=parts)
    check_rows(request)
    data = load_data(request, text_input)
    assert data.label_names == ("O", "B") and data.num_labels == 2 and data.labels is None
    assert data.train.batch([0], seed=None)["labels"].tolist() == [[-100, 0, 1]]


def test_a_text_that_is_written_ends_with_the_end_of_text(tmp_path, text_input):
    folder = tmp_path / "model"
    tokenizer = AutoTokenizer.from_pretrained(text_input.folder)
    tokenizer.eos_token = "down"
    tokenizer.save_pretrained(folder)
    rows = [{"text": "the cat sat", "summary": "cat"}, {"text": "dog", "summary": "cat " * 9}] * 5
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parts = PartitionRequest("iid", clients=2, min_examples=1)
    request = DataRequest(str(tmp_path / "all.jsonl"), "seq2seq-lm", max_length=5, partition=parts)
    data = load_data(request, replace(text_input, folder=str(folder)))
    batch = data.train.batch([0, 1], seed=None)
    rows = {tuple(row) for row in batch["labels"].tolist()}
    assert rows <= {(1, 4, 9, -100, -100), (1, 4, 4, 4, 9), (1, 4, 9)}
    assert 9 not in batch["input_ids"].flatten().tolist()  # what is read is left as it is


@pytest.mark.parametrize("key", ["learn", "packing", "truncation", "chat_template"])
def test_keys_of_language_models_are_refused_for_other_tasks(tmp_path, text_input, key):
    (tmp_path / "all.jsonl").write_text('{"text": "cat", "label": 1}\n' * 10)
    value = {"learn": "all", "packing": True, "truncation": "left", "chat_template": "none"}[key]
    request = DataRequest(str(tmp_path / "all.jsonl"), "text-classification", **{key: value})
    with pytest.raises(DataError, match=rf"data.{key}: found with the task text-classification"):
        load_data(request, text_input)
