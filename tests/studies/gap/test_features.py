"""Features are what the head gets: put through the head again, they give the model's logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from torch import nn

from fedpeft.core.errors import ModelError
from fedpeft.models.families import PLAIN
from fedpeft.models.loaded import LoadedModel
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.models.tasks import IMAGE_CLASSIFICATION
from fedpeft.studies.gap.features import GapRequest, features_of, read_features

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 3,
         "intermediate_size": 24, "vocab_size": 30, "max_position_embeddings": 20,
         "pad_token_id": 0}  # fmt: skip
CONV = {"depths": [1, 1], "hidden_sizes": [8, 12], "num_labels": 3}

MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, torch.Tensor], object]]] = {
    "bert": (
        lambda: hf.BertForSequenceClassification(hf.BertConfig(**SMALL)),
        lambda m, x: m.classifier(m.bert.pooler(x[:, None])),
    ),
    "roberta": (
        lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**SMALL)),
        lambda m, x: m.classifier(x[:, None]),
    ),
    "distilbert": (
        lambda: hf.DistilBertForSequenceClassification(
            hf.DistilBertConfig(
                dim=16, n_layers=1, n_heads=2, hidden_dim=24, vocab_size=30, num_labels=3
            )
        ),
        lambda m, x: m.classifier(torch.relu(m.pre_classifier(x))),
    ),
    "llama-classifier": (
        lambda: hf.LlamaForSequenceClassification(hf.LlamaConfig(**SMALL)),
        lambda m, x: m.score(x),
    ),
    "llama": (
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)),
        lambda m, x: m.lm_head(x),
    ),
    "gpt2": (
        lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=30, n_positions=20)
        ),
        lambda m, x: m.lm_head(x),
    ),
    "resnet": (
        lambda: hf.ResNetForImageClassification(
            hf.ResNetConfig(embedding_size=8, layer_type="basic", **CONV)
        ),
        lambda m, x: m.classifier(x[:, :, None, None]),
    ),
    "convnext": (
        lambda: hf.ConvNextForImageClassification(
            hf.ConvNextConfig(num_stages=2, patch_size=4, **CONV)
        ),
        lambda m, x: m.classifier(x),
    ),
    "dinov2": (
        lambda: hf.Dinov2ForImageClassification(
            hf.Dinov2Config(**(SMALL | {"num_labels": 3, "image_size": 28, "patch_size": 14}))
        ),
        lambda m, x: m.classifier(x),
    ),
}
TEXTS = ("bert", "roberta", "distilbert", "llama-classifier", "llama", "gpt2")
TOKENS = torch.tensor([[5, 6, 7, 8, 9, 4], [5, 9, 3, 0, 0, 0], [7, 2, 8, 4, 0, 0]])


def inputs(name: str) -> dict[str, torch.Tensor]:
    if name in TEXTS:
        return {"input_ids": TOKENS, "attention_mask": (TOKENS != 0).long()}
    generator = torch.Generator().manual_seed(3)
    return {"pixel_values": torch.randn(3, 3, 28, 28, generator=generator)}


def examples(batch: dict[str, torch.Tensor]) -> SimpleNamespace:
    return SimpleNamespace(batch=lambda rows, seed: {k: x[list(rows)] for k, x in batch.items()})


def loaded_from(folder: object, name: str) -> LoadedModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = MODELS[name][0]()
    model.save_pretrained(folder)
    return load_model(ModelRequest(name=str(folder)))


def wanted(loaded: LoadedModel, name: str) -> torch.Tensor:
    batch = inputs(name)
    with torch.no_grad():
        logits = loaded.module(**batch).logits
    if logits.ndim == 3:
        logits = logits[torch.arange(3), batch["attention_mask"].sum(1) - 1]
    return logits


@pytest.mark.parametrize("name", MODELS)
def test_the_head_makes_the_logits_from_the_features(name, tmp_path):
    loaded = loaded_from(tmp_path, name)
    found = features_of(loaded, examples(inputs(name)), [0, 1, 2])
    head = MODELS[name][1]
    with torch.no_grad():
        logits = head(loaded.module, torch.from_numpy(found).float())
    assert torch.allclose(logits, wanted(loaded, name), atol=1e-5)
    swapped = torch.from_numpy(found[[1, 0, 2]]).float()
    with torch.no_grad():
        assert not torch.allclose(head(loaded.module, swapped), wanted(loaded, name), atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_padding_does_not_move_the_features(name, tmp_path):
    loaded = loaded_from(tmp_path, name)
    alone = {key: x[2:, :4] for key, x in inputs(name).items()}
    padded = features_of(loaded, examples(inputs(name)), [2])
    assert features_of(loaded, examples(alone), [0]) == pytest.approx(padded, abs=1e-6)
    blind = {"input_ids": TOKENS}  # without a mask, padding counts
    assert features_of(loaded, examples(blind), [2]) != pytest.approx(padded, abs=1e-4)


def test_shufflenet_gives_its_pooled_map():
    loaded = load_model(ModelRequest(name="preset:tiny-shufflenet"))
    pixels = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    found = features_of(loaded, examples({"pixel_values": pixels}), range(4))
    with torch.no_grad():
        logits = loaded.module.fc(torch.from_numpy(found).float())
        assert torch.allclose(logits, loaded.module(pixel_values=pixels).logits, atol=1e-5)


class _Map(nn.Module):
    """A head that gets a map of places."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.top = nn.Conv2d(4, 2, 1)
        self.spare = nn.Linear(4, 2)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.top(self.body(pixel_values)).mean((2, 3))


@pytest.mark.parametrize(("head", "message"), [
    (("top",), "'top' gets a map of places"),
    (("spare",), "'spare' is not called"),
    ((), "it has none"),
])  # fmt: skip
def test_models_without_pooled_features_are_refused(head, message):
    loaded = LoadedModel(_Map(), IMAGE_CLASSIFICATION, PLAIN, ("top",), None, "mine")
    with pytest.raises(ModelError, match=rf"of 'mine' {message}.*Use a model"):
        features_of(dataclasses.replace(loaded, head=head), examples(inputs("resnet")), [0, 1, 2])


def test_a_source_may_name_its_split():
    request = GapRequest("preset:tiny-vit", {"a": "digits@train", "b": "digits"}, sample=500)
    found = read_features(request)
    assert (len(found["a"]), len(found["b"])) == (500, 359)
    whole = read_features(GapRequest("preset:tiny-vit", {"b": "digits"}))["b"]
    assert found["b"] == pytest.approx(whole) and found["a"][:359] != pytest.approx(whole)
