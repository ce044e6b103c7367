"""One padding id: the logits of a text alone are those of the text in any batch."""

import dataclasses
import json

import pytest
import torch
from tiny_models import WORDS, text_folder, texts
from transformers import AutoConfig, AutoModelForSequenceClassification

from fedpeft.core.errors import ModelError
from fedpeft.data.load import load_data
from fedpeft.data.request import DataRequest
from fedpeft.data.schemes import PartitionRequest
from fedpeft.models.padding import UNMASKED
from fedpeft.models.source import ModelRequest, load_model, sketch_model

PAD, UNK, ADDED = {"pad_token": "<pad>"}, {"pad_token": "<unk>"}, {"pad_token": "[PAD]"}
EOS = {"eos_token": "</s>"}
ROWS = (
    [
        pytest.param(kind, config, tokens, expected, id=f"{kind}-{name}")
        for kind in ("llama", "qwen2", "gpt2")
        for name, config, tokens, expected in (
            ("agree", {"pad_token_id": 0}, PAD, 0),
            ("tokenizer-pads-with-unk", {"pad_token_id": None}, UNK, 3),
            ("added-token", {"pad_token_id": None}, ADDED, 2),
            ("pad-of-minus-one", {"pad_token_id": -1}, EOS, 2),
            ("eos-is-a-list", {"pad_token_id": None, "eos_token_id": [2, 3]}, {}, 2),
            ("eos-of-the-tokenizer", {"pad_token_id": None, "eos_token_id": None}, EOS, 2),
            ("others", {"pad_token_id": 5}, PAD, 0),
            ("pad-is-a-word", {"pad_token_id": 5}, {}, 2),
            ("pad-is-a-word-and-eos-unknown", {"pad_token_id": 5, "eos_token_id": None}, EOS, 2),
        )
    ]
    + [
        pytest.param(kind, config, tokens, expected, id=f"{kind}-{name}")
        for kinds, name, config, tokens, expected in (
            ("llama gpt2 opt phi mistral gemma", "beyond", {"pad_token_id": 99}, EOS, 2),
            ("opt phi mistral gemma", "added-token", {"pad_token_id": None}, ADDED, 2),
            ("opt phi", "tokenizer-pads-with-unk", {"pad_token_id": None}, UNK, 3),
            ("gpt2 opt", "left", {"pad_token_id": 0}, {**PAD, "padding_side": "left"}, 0),
            (
                "llama",
                "cut-on-the-left",
                {"pad_token_id": 0},
                {**PAD, "truncation_side": "left"},
                0,
            ),
            ("llama", "only-in-the-config", {"pad_token_id": 0}, {}, 2),
            ("llama", "end", {"pad_token_id": 2}, {"pad_token": "</s>", **EOS}, 2),
            ("llama", "begin", {"pad_token_id": 1}, {"pad_token": "<s>", **EOS}, 1),
        )
        for kind in kinds.split()
    ]
    + [
        pytest.param("bert", {"pad_token_id": 0}, UNK, 3, id="bert-others"),
        pytest.param("roberta", {"pad_token_id": 1}, PAD, 1, id="roberta-keeps-its-own"),
    ]
)


def loaded_and_data(tmp_path, kind, config, tokens):
    folder = text_folder(tmp_path / "model", kind, config, tokens)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts()))
    loaded = load_model(ModelRequest(str(folder), "text-classification", num_labels=2))
    parts = PartitionRequest("iid", clients=2, min_examples=1)
    request = DataRequest(str(tmp_path / "texts.jsonl"), "text-classification", partition=parts)
    return loaded, load_data(request, loaded.inputs)


def logits(loaded, examples, rows):
    batch = dict(examples.batch(rows, seed=None))
    batch.pop("labels")
    with torch.no_grad():
        return loaded.module(**batch).logits


def furthest(loaded, examples):
    rows = range(len(examples))
    alone = torch.cat([logits(loaded, examples, [row]) for row in rows])
    return (alone - logits(loaded, examples, list(rows))).abs().max()


@pytest.mark.parametrize(("kind", "config", "tokens", "expected"), ROWS)
def test_a_text_alone_scores_as_in_any_batch(kind, config, tokens, expected, tmp_path):
    loaded, data = loaded_and_data(tmp_path, kind, config, tokens)
    assert loaded.module.config.pad_token_id == data.train.pad_id == expected
    assert data.preprocessing.text.pad_id == expected
    assert furthest(loaded, data.train) < 1e-5


def test_another_padding_in_the_batch_is_seen(tmp_path):
    """The negative control of the law."""
    loaded, data = loaded_and_data(tmp_path, "llama", {"pad_token_id": 0}, PAD)
    assert furthest(loaded, dataclasses.replace(data.train, pad_id=5)) > 1e-3


def test_neither_padding_nor_end_is_refused(tmp_path):
    folder = text_folder(tmp_path, "llama", {"pad_token_id": None, "eos_token_id": None}, {})
    with pytest.raises(ModelError, match=r"neither config\.json nor the tokenizer"):
        load_model(ModelRequest(str(folder), "text-classification", num_labels=2))


def test_a_token_without_an_embedding_is_refused(tmp_path):
    with pytest.raises(Exception, match=f"embeddings for 0 to {len(WORDS) - 5}"):
        loaded_and_data(tmp_path, "llama", {"vocab_size": len(WORDS) - 4, "pad_token_id": 0}, PAD)


WIDE = {"embedding_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
MIXING = {
    "convbert": {**WIDE, "conv_kernel_size": 3, "head_ratio": 1},
    "fnet": WIDE,
    "reformer": {
        **{"attention_head_size": 8, "attn_layers": ["local", "local"], "feed_forward_size": 32},
        **{"axial_pos_embds": False, "is_decoder": False, "local_attn_chunk_length": 4},
    },
    "xlnet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32},
    "yoso": WIDE,
}


def change_by_padding(kind, settings):
    """Return how far the logits of texts move when they are padded, after a random step."""
    sizes = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 32, "pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **sizes, **settings)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        furthest = 0.0
        for length in (3, 6):
            text = torch.arange(4, 4 + length)[None]
            padded = torch.nn.functional.pad(text, (0, 10 - length))
            with torch.no_grad():
                alone = model(input_ids=text, attention_mask=torch.ones_like(text)).logits
                beside = model(input_ids=padded, attention_mask=(padded > 0).long()).logits
            furthest = max(furthest, float((alone - beside).abs().max()))
    return furthest


@pytest.mark.parametrize("kind", sorted(MIXING))
def test_a_classifier_that_looks_at_padding_is_refused(kind, tmp_path):
    assert change_by_padding(kind, MIXING[kind]) > 1e-3  # the reason holds
    assert MIXING.keys() == UNMASKED.keys()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **MIXING[kind]}))
    request = ModelRequest(str(tmp_path), "text-classification", num_labels=2)
    for load in (load_model, sketch_model):
        with pytest.raises(ModelError, match=f"type '{kind}' cannot classify texts in batches"):
            load(request)


@pytest.mark.parametrize("kind", ["bert", "electra", "squeezebert"])
def test_most_encoders_do_not_look_at_padding(kind):
    """The negative control: their logits stay where a text is padded."""
    assert change_by_padding(kind, WIDE) < 1e-5
