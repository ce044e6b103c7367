"""Checkpoints of a backbone alone, or of masked-token prediction, under a new classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from fedpeft.core.errors import ModelError
from fedpeft.models.source import ModelRequest, load_model, sketch_model

WIDE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TEXT = {**WIDE, "vocab_size": 24, "max_position_embeddings": 48, "pad_token_id": 0}
IMAGE = {**WIDE, "image_size": 16, "patch_size": 8}
DEBERTA = {**TEXT, "relative_attention": True, "pos_att_type": "c2p|p2c", "pooler_hidden_size": 16}
LEVIT = {
    **{"image_size": 32, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2]},
    **{"depths": [1, 1, 1], "key_dim": [8, 8, 8], "mlp_ratio": [2, 2, 2], "num_labels": 5},
}
MOBILE = {**TEXT, "embedding_size": 8, "intra_bottleneck_size": 8, "true_hidden_size": 8}

PARTIAL = [
    ("BertForMaskedLM", TEXT, {"bert.pooler.dense", "classifier"}),
    ("AlbertForMaskedLM", {**TEXT, "embedding_size": 8}, {"albert.pooler", "classifier"}),
    ("DebertaForMaskedLM", DEBERTA, {"pooler.dense", "classifier"}),
    ("DebertaV2ForMaskedLM", DEBERTA, {"pooler.dense", "classifier"}),
    ("MobileBertForMaskedLM", MOBILE, {"mobilebert.pooler.dense", "classifier"}),
    ("ErnieForMaskedLM", TEXT, {"ernie.pooler.dense", "classifier"}),
    ("EuroBertForMaskedLM", {**TEXT, "num_key_value_heads": 2}, {"dense", "classifier"}),
    ("Data2VecTextForMaskedLM", TEXT, {"classifier.dense", "classifier.out_proj"}),
    ("BeitForMaskedImageModeling", IMAGE, {"beit.pooler.layernorm", "classifier"}),
    ("Data2VecVisionModel", IMAGE, {"data2vec_vision.pooler.layernorm", "classifier"}),
    ("PoolFormerModel", {"image_size": 32}, {"norm", "classifier"}),
    ("LevitModel", LEVIT, {"classifier.batch_norm", "classifier.linear"}),
    (
        "LevitForImageClassificationWithTeacher",
        LEVIT,
        {
            f"{head}.{part}"
            for head in ("classifier", "classifier_distill")
            for part in ("batch_norm", "linear")
        },
    ),
]


def saved(name: str, settings: dict[str, object], folder: Path) -> transformers.PreTrainedModel:
    cls = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = cls(cls.config_class(**settings))
    module.save_pretrained(folder)
    return module


@pytest.mark.parametrize(("name", "settings", "new"), PARTIAL, ids=[row[0] for row in PARTIAL])
def test_what_stands_between_backbone_and_head_may_be_new(
    tmp_path: Path, name: str, settings: dict[str, object], new: set[str]
) -> None:
    original = saved(name, settings, tmp_path).state_dict()
    task = "image-classification" if "image_size" in settings else "text-classification"
    request = ModelRequest(str(tmp_path), task=task, num_labels=3, seed=1)
    loaded, planned = load_model(request), sketch_model(request)
    assert {path.rpartition(".")[0] for path in loaded.fresh} == new
    assert planned.fresh == loaded.fresh, "a plan counts what a run trains"
    again = load_model(request).module.state_dict()
    for path, tensor in loaded.module.state_dict().items():
        assert torch.equal(tensor, again[path]), "new parts follow from the seed"
        if path in original and path not in loaded.fresh and "classifier" not in path:
            assert torch.equal(tensor, original[path])


def test_a_missing_part_of_the_backbone_is_still_an_error(tmp_path: Path) -> None:
    module = saved("DebertaV2ForMaskedLM", DEBERTA, tmp_path)
    state = {k: v for k, v in module.state_dict().items() if "layer.1.output.dense" not in k}
    module.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ModelError, match=r"2 missing: deberta\.encoder\.layer\.1\.output\.dense"):
        load_model(ModelRequest(str(tmp_path), task="text-classification", num_labels=3))


POSITIONS = [
    ("Roberta", TEXT, 47),
    ("XLMRoberta", {**TEXT, "pad_token_id": 1}, 46),
    ("Camembert", {**TEXT, "pad_token_id": 1}, 46),
    ("MPNet", {**TEXT, "pad_token_id": 5}, 46),
    ("Longformer", {**TEXT, "pad_token_id": 1, "attention_window": [4, 4]}, 46),
    ("IBert", {**TEXT, "pad_token_id": 1}, 46),
    ("Bert", TEXT, 48),
    ("Electra", {**TEXT, "embedding_size": 8}, 48),
]


@pytest.mark.parametrize(("kind", "settings", "longest"), POSITIONS, ids=[r[0] for r in POSITIONS])
def test_the_longest_text_is_the_longest_that_the_model_takes(
    tmp_path: Path, kind: str, settings: dict[str, object], longest: int
) -> None:
    saved(f"{kind}ForSequenceClassification", settings, tmp_path)
    loaded = load_model(ModelRequest(str(tmp_path), task="text-classification"))
    assert loaded.inputs is not None and loaded.inputs.max_length == longest
    tokens = torch.full((1, longest), 7)
    loaded.module(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    one_more = torch.full((1, longest + 1), 7)
    with pytest.raises((IndexError, RuntimeError)):
        loaded.module(input_ids=one_more, attention_mask=torch.ones_like(one_more))


GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 24, "pad_token_id": 0}


def test_a_classifier_that_reads_its_padding_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of a type that nobody has listed: here a decoder that forgets its mask."""
    saved("GPT2ForSequenceClassification", GPT, tmp_path)
    request = ModelRequest(str(tmp_path), task="text-classification")
    load_model(request)
    forward = transformers.GPT2ForSequenceClassification.forward

    def maskless(self: object, input_ids: torch.Tensor, **others: object) -> object:
        return forward(self, input_ids=input_ids.clamp(min=1))  # type: ignore[arg-type]

    monkeypatch.setattr(transformers.GPT2ForSequenceClassification, "forward", maskless)
    with pytest.raises(ModelError, match="this classifier reads its padding"):
        load_model(request)
