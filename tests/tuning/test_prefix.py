"""The law of the cut: prefix, then rest, equals the whole model, in losses and in gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from fedpeft.models.families import before_head, family_of
from fedpeft.models.loaded import ImageInput, LoadedModel, TextInput, VideoInput
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.models.tasks import (
    CAUSAL_LM,
    IMAGE_CLASSIFICATION,
    TEXT_CLASSIFICATION,
    VIDEO_CLASSIFICATION,
    custom_task,
)
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.prefix import (
    NoPrefix,
    Split,
    features,
    find_split,
    probe_batch,
    rest_batch,
    rest_equals_whole,
    rest_of,
)

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 3,
}
IMAGE = {**SMALL, "image_size": 16, "patch_size": 8}
ENCODER = {**SMALL, "vocab_size": 50, "max_position_embeddings": 42}
DECODER = {
    **SMALL, "vocab_size": 50, "max_position_embeddings": 40, "num_key_value_heads": 1,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {
    "vocab_size": 50, "n_positions": 40, "n_embd": 16, "n_layer": 3, "n_head": 2, "num_labels": 3,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
DISTILBERT = {
    "vocab_size": 50, "max_position_embeddings": 40, "dim": 16, "n_layers": 3, "n_heads": 2,
    "hidden_dim": 32, "num_labels": 3,
}  # fmt: skip
VIDEO = {**SMALL, "image_size": 8, "patch_size": 4, "num_frames": 4, "tubelet_size": 2}
MODELS = {
    "vit": ("ViTForImageClassification", "ViTConfig", IMAGE, ("classifier",)),
    "deit": (
        "DeiTForImageClassificationWithTeacher", "DeiTConfig", IMAGE,
        ("cls_classifier", "distillation_classifier"),
    ),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", IMAGE, ("classifier",)),
    "videomae": ("VideoMAEForVideoClassification", "VideoMAEConfig", VIDEO, ("classifier",)),
    "bert": ("BertForSequenceClassification", "BertConfig", ENCODER, ("classifier",)),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", ENCODER, ("classifier",)),
    "distilbert": (
        "DistilBertForSequenceClassification", "DistilBertConfig", DISTILBERT, ("classifier",),
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2, ("lm_head",)),
    "gpt2-classes": ("GPT2ForSequenceClassification", "GPT2Config", GPT2, ("score",)),
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER, ("lm_head",)),
    "llama-classes": ("LlamaForSequenceClassification", "LlamaConfig", DECODER, ("score",)),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**DECODER, "head_dim": 8}, ("lm_head",)),
    "mistral": ("MistralForCausalLM", "MistralConfig", DECODER, ("lm_head",)),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", DECODER, ("lm_head",)),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**DECODER, "head_dim": 8}, ("lm_head",)),
}  # fmt: skip
STORED = {"gpt2": 9, "llama": 9, "gemma": 9, "mistral": 9, "qwen2": 9, "qwen3": 9}
"""Tokens that a head reads, where it is more than one vector an example."""


def loaded(kind: str, *, meta: bool = False) -> LoadedModel:
    import transformers

    name, config, fields, head = MODELS[kind]
    with torch.random.fork_rng(devices=[]), torch.device("meta" if meta else "cpu"):
        torch.manual_seed(0)
        module = getattr(transformers, name)(getattr(transformers, config)(**fields)).eval()
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    family = family_of(module)
    paths = before_head(module, head)
    fresh = {f"{p}.{n}" for p in paths for n, _ in module.get_submodule(p).named_parameters()}
    return LoadedModel(
        module, task(kind, head), family, head, inputs(kind), kind, fresh=frozenset(fresh)
    )


def task(kind, head):
    if kind in ("vit", "deit", "dinov2"):
        return IMAGE_CLASSIFICATION
    if kind == "videomae":
        return VIDEO_CLASSIFICATION
    return CAUSAL_LM if head == ("lm_head",) else TEXT_CLASSIFICATION


def inputs(kind):
    half = (0.5, 0.5, 0.5)
    if kind in ("vit", "deit", "dinov2"):
        return ImageInput(16, 16, 3, half, half)
    return (
        VideoInput(4, ImageInput(8, 8, 3, half, half)) if kind == "videomae" else TextInput("", 40)
    )


def batch(model: LoadedModel, seed: int = 3):
    draw, labels = torch.Generator().manual_seed(seed), torch.tensor([0, 1, 2, 0])
    if isinstance(model.inputs, ImageInput):
        return {"pixel_values": torch.randn(4, 3, 16, 16, generator=draw), "labels": labels}
    if isinstance(model.inputs, VideoInput):
        return {"pixel_values": torch.randn(4, 4, 3, 8, 8, generator=draw), "labels": labels}
    ids, mask = torch.randint(3, 50, (4, 9), generator=draw), torch.ones(4, 9, dtype=torch.int64)
    mask[0, 6:] = 0
    ids[0, 6:] = model.module.config.pad_token_id or 0
    targets = ids.masked_fill(mask == 0, -100) if model.task is CAUSAL_LM else labels
    return {"input_ids": ids, "attention_mask": mask, "labels": targets}


def tuned(kind, method="head", blocks=None, *, meta=False, **options):
    return tune(loaded(kind, meta=meta), TuningRequest(method, options, blocks, 1))


def options_for(kind, method):
    return {"fan_in_fan_out": True} if method == "lora" and kind.startswith("gpt2") else {}


@pytest.mark.parametrize("kind", MODELS)
def test_head_starts_from_the_smallest_feature(kind):
    model = tuned(kind)
    one = batch(model.loaded)
    split = find_split(model, one)
    assert isinstance(split, Split)
    stored = features(model, split, one)
    assert stored.shape[:-1] in ((4,), (4, STORED.get(kind, 1)))
    assert not stored.requires_grad
    assert rest_equals_whole(model, split, one)


@pytest.mark.parametrize(
    ("kind", "method"),
    [*((kind, "lora") for kind in MODELS), ("vit", "adapter"), ("bert", "adapter")],
)
def test_late_blocks_start_from_the_block_before(kind, method):
    model = tuned(kind, method, (2, 2), **options_for(kind, method))
    one = batch(model.loaded)
    split = find_split(model, one)
    assert isinstance(split, Split) and len(split.skipped) == 2 and split.tokens
    assert rest_equals_whole(model, split, one)


@pytest.mark.parametrize("method", ["bias", "prompt", "ia3", "ln_tuning", "full"])
def test_every_method_of_late_blocks_can_be_cut(method):
    model = tuned("vit", method, (1, 2))
    one = batch(model.loaded)
    split = find_split(model, one)
    assert isinstance(split, Split) and split.skipped == ("vit.layers.0",)
    assert rest_equals_whole(model, split, one)


def test_a_cut_behind_something_trained_is_noticed():
    model = tuned("vit", "bias", (1, 2))
    one = batch(model.loaded)
    right = find_split(model, one)
    assert isinstance(right, Split)
    late = dataclasses.replace(
        right, sites=("vit.layers.2",), skipped=("vit.layers.0", "vit.layers.1")
    )
    assert rest_equals_whole(model, right, one)
    assert not rest_equals_whole(model, late, one)


def test_features_of_another_backbone_are_noticed():
    model, other = tuned("vit"), tuned("vit")
    with torch.no_grad():
        other.model.get_parameter("vit.layers.0.mlp.fc1.weight").mul_(1.1)
    one = batch(model.loaded)
    split = find_split(model, one)
    assert isinstance(split, Split)
    score = model.loaded.task.score
    whole = score(model.model, one).loss_B
    right, wrong = (
        score(rest_of(model, split).model, rest_batch(split, one, features(m, split, one))).loss_B
        for m in (model, other)
    )
    assert torch.equal(right, whole) and not torch.allclose(wrong, whole, rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "blocks", "reason"),
    [
        ("bias", None, "from the first block on"),
        ("bias", (0, 1), "from the first block on"),
        ("lora", None, "from the first block on"),
        ("prompt", None, "from the first block on"),
    ],
)
def test_what_trains_from_the_first_block_on_has_no_prefix(method, blocks, reason):
    model = tuned("vit", method, blocks)
    found = find_split(model, batch(model.loaded))
    assert isinstance(found, NoPrefix) and reason in found.reason


def test_learned_tokens_before_the_text_have_no_prefix():
    model = tuned("bert", "prompt_tuning", num_virtual_tokens=2)
    assert find_split(model, batch(model.loaded)) == NoPrefix(
        "method prompt_tuning puts learned tokens before the first block"
    )


def test_a_task_or_a_model_of_the_users_own_has_no_prefix():
    model = tuned("vit")
    own = dataclasses.replace(
        model, loaded=dataclasses.replace(model.loaded, task=custom_task(lambda m, b: b["x"]))
    )
    assert find_split(own, batch(model.loaded)) == NoPrefix("the task is the user's own")
    plain = dataclasses.replace(model.loaded.family, name="plain", block="")
    unknown = dataclasses.replace(model, loaded=dataclasses.replace(model.loaded, family=plain))
    assert find_split(unknown, batch(model.loaded)) == NoPrefix(
        "models of family plain cannot be split"
    )


def test_shufflenet_is_cut_at_its_head_only():
    one = {"pixel_values": torch.randn(4, 1, 8, 8), "labels": torch.tensor([0, 1, 2, 3])}
    request = ModelRequest("preset:tiny-shufflenet", num_labels=10)
    head = tune(load_model(request), TuningRequest("head"))
    split = find_split(head, one)
    assert isinstance(split, Split) and rest_equals_whole(head, split, one)
    full = tune(load_model(request), TuningRequest("full"))
    assert find_split(full, one) == NoPrefix("method full trains the whole model")


SKETCHED = ["vit", "deit", "videomae", "bert", "distilbert", "gpt2", "llama-classes", "qwen3"]


@pytest.mark.parametrize("kind", SKETCHED)
@pytest.mark.parametrize(("method", "blocks"), [("head", None), ("lora", (1, 1))])
def test_shapes_alone_give_the_same_cut(kind, method, blocks):
    options = options_for(kind, method)
    real = tuned(kind, method, blocks, **options)
    sketch = tuned(kind, method, blocks, meta=True, **options)
    probe = probe_batch(sketch)
    assert probe is not None
    found, planned = find_split(real, batch(real.loaded)), find_split(sketch, probe)
    if isinstance(found, Split) and isinstance(planned, Split) and found.text:
        planned = dataclasses.replace(planned, length=found.length)
    assert found == planned


def test_the_rest_trains_the_same_parameters():
    model = tuned("vit", "lora", (2, 2))
    one = batch(model.loaded)
    split = find_split(model, one)
    assert isinstance(split, Split)
    rest = rest_of(model, split)
    inside = {id(parameter) for parameter in rest.model.parameters()}
    assert all(id(parameter) in inside for parameter in rest.parameters.values())
    assert rest.parameters is model.parameters and rest.model is not model.model
    whole = model.loaded.task.score(model.model, one).loss_B
    assert torch.equal(whole, rest_loss(model, split, one))
    with torch.no_grad():
        for parameter in model.parameters.values():
            parameter.mul_(2.0).add_(torch.linspace(0, 1, parameter.numel()).view_as(parameter))
    assert not torch.equal(whole, rest_loss(model, split, one))


def rest_loss(model, split, one):
    stored = rest_batch(split, one, features(model, split, one))
    return model.loaded.task.score(rest_of(model, split).model, stored).loss_B
