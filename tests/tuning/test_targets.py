"""Default targets: which rule decides, that the head is never one, and what is recorded."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from fedpeft.core.errors import TuningError
from fedpeft.models.families import family_of
from fedpeft.models.loaded import LoadedModel
from fedpeft.models.tasks import CAUSAL_LM, IMAGE_CLASSIFICATION, TEXT_CLASSIFICATION, mean_loss
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.targets import block_paths, find_targets, last_layers

SIZES = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
RESNET = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]}
CLASSES = {
    TEXT_CLASSIFICATION: AutoModelForSequenceClassification,
    CAUSAL_LM: AutoModelForCausalLM,
    IMAGE_CLASSIFICATION: AutoModelForImageClassification,
}


def loaded(kind: str, task=TEXT_CLASSIFICATION, head=("classifier",), **settings) -> LoadedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **(settings or SIZES))
        module = CLASSES[task].from_config(config).eval()
    return LoadedModel(module, task, family_of(module), head, None, f"tiny-{kind}")


def layers(tuned) -> set[str]:
    """Return the paths of the layers that got low-rank factors."""
    return {
        n.removesuffix(".lora_a.weight") for n in tuned.spec.names if n.endswith("lora_a.weight")
    }


def test_our_own_table_goes_first():
    found = find_targets(loaded("roberta"), "lora", None)
    assert found.modules == ("query", "value")
    assert found.rule == "the table of family roberta"


def test_then_the_librarys_table():
    found = find_targets(loaded("opt", CAUSAL_LM, ("lm_head",), **SIZES, ffn_dim=32), "lora", None)
    assert set(found.modules) == {"q_proj", "v_proj"}
    assert found.rule == "the peft library's table for model type 'opt'"


def test_the_librarys_table_has_a_row_for_each_type():
    model = loaded("opt", CAUSAL_LM, ("lm_head",), **SIZES, ffn_dim=32)
    found = find_targets(model, "ia3", None)
    assert (set(found.modules), found.feedforward) == ({"q_proj", "k_proj", "fc2"}, ("fc2",))


def test_then_every_linear_layer_outside_the_head():
    model = loaded("mpnet")  # its head, too, has a layer called `dense`
    found = find_targets(model, "lora", None)
    tuned = tune(model, TuningRequest("lora", {"r": 2}))
    assert found.rule == "every linear layer outside the head"
    assert layers(tuned) == {
        path
        for path, part in loaded("mpnet").module.named_modules()
        if isinstance(part, nn.Linear) and not path.startswith("classifier")
    }


def test_a_row_of_the_library_that_matches_the_head_leaves_it_out():
    model = loaded("xlm-roberta")
    model = dataclasses.replace(model, head=("classifier", "roberta.encoder.layer.1.attention"))
    tuned = tune(model, TuningRequest("lora", {"r": 2}))
    assert {name.partition(".attention")[0] for name in layers(tuned)} == {
        "roberta.encoder.layer.0"
    }


@pytest.mark.parametrize("kind", ["roberta", "electra", "xlm-roberta"])
def test_all_linear_works_with_a_nested_head_at_once(kind):
    tuned = tune(loaded(kind), TuningRequest("lora", {"target_modules": "all-linear", "r": 2}))
    assert len(layers(tuned)) >= 12
    assert not [name for name in layers(tuned) if "classifier" in name or "head" in name]


def test_a_layer_at_the_root_is_told_from_one_of_its_name_inside(make):
    module = nn.ModuleDict(
        {"top": nn.Linear(4, 3), "body": nn.ModuleDict({"top": nn.Linear(4, 4)})}
    )
    module["proj"] = nn.Linear(4, 4)
    model = dataclasses.replace(make("plain"), module=module, head=("body",))
    found = find_targets(model, "lora", None)
    assert found.modules == "top|proj"


def test_convolutions_with_one_group_are_targets_where_blocks_have_no_linear_layer():
    model = loaded("resnet", IMAGE_CLASSIFICATION, **RESNET)
    found = find_targets(model, "lora", None)
    tuned = tune(model, TuningRequest("lora", {"r": 2}))
    assert found.rule == "every convolution with one group outside the head"
    count = sum(
        isinstance(part, nn.Conv2d)
        for part in loaded("resnet", IMAGE_CLASSIFICATION, **RESNET).module.modules()
    )
    assert len(layers(tuned)) == count


def test_depthwise_convolutions_are_no_targets():
    model = loaded("mobilenet_v2", IMAGE_CLASSIFICATION, image_size=32, depth_multiplier=0.1)
    names = layers(tune(model, TuningRequest("lora", {"r": 2})))
    assert names
    assert not [name for name in names if "conv_3x3" in name and "layer" in name]


@pytest.mark.parametrize(("method", "moves"), [("lora", False), ("full", True)])
def test_statistics_of_batchnorm_move_only_where_everything_trains(method, moves):
    tuned = tune(loaded("resnet", IMAGE_CLASSIFICATION, **RESNET), TuningRequest(method))
    buffers = {n: b.clone() for n, b in tuned.model.named_buffers() if "running" in n}
    tuned.model.train(tuned.trains_statistics)
    draw = torch.Generator().manual_seed(0)
    batch = {
        "pixel_values": torch.randn(2, 3, 32, 32, generator=draw),
        "labels": torch.tensor([0, 1]),
    }
    mean_loss(tuned.loaded.task.score(tuned.model, batch)).backward()
    moved = [n for n, b in tuned.model.named_buffers() if n in buffers and not b.equal(buffers[n])]
    assert bool(moved) == moves


def test_a_choice_from_the_model_is_recorded_as_options():
    tuned = tune(loaded("electra"), TuningRequest("lora", {"r": 2}))
    again = tune(loaded("electra"), TuningRequest("lora", tuned.options))
    assert tuned.options["target_modules"] == ["query", "value"]
    assert again.spec == tuned.spec
    assert tuned.targets.as_json()["rule"].startswith("the peft library's table")
    assert again.targets.rule == "named in tuning.options"


def test_a_choice_from_our_own_table_follows_from_the_method(make):
    assert "target_modules" not in tune(make("vit"), TuningRequest("lora")).options


def test_norms_are_the_targets_of_ln_tuning():
    found = find_targets(loaded("mpnet"), "ln_tuning", None)
    assert (found.modules, found.rule) == (("LayerNorm",), "every norm outside the head")


@pytest.mark.parametrize("method", ["lora", "ln_tuning", "adapter"])
def test_a_model_without_any_layer_is_told_what_works(make, method):
    module = nn.ModuleDict({"table": nn.Embedding(4, 4), "top": nn.Linear(4, 3)})
    model = dataclasses.replace(make("plain"), module=module, head=("top",))
    with pytest.raises(TuningError, match=r"outside its head.*choose head"):
        tune(model, TuningRequest(method))


def test_the_adapter_follows_the_last_linear_layer_of_each_block():
    tuned = tune(loaded("electra"), TuningRequest("adapter"))
    path = "electra.encoder.layer.{}.output.dense"
    assert tuned.targets.modules == (path.format(0), path.format(1))
    assert tuned.targets.rule == "the last linear layer of each block"


def test_the_adapter_of_a_convolution_acts_on_its_channels():
    model = loaded("resnet", IMAGE_CLASSIFICATION, **RESNET)
    tuned = tune(model, TuningRequest("adapter", {"reduction": 4}))
    assert tuned.parameters["adapter.width_16.down.weight"].shape == (4, 16)
    site = tuned.model.get_submodule(tuned.targets.modules[0])
    part, seen = tuned.model.fedpeft_adapter["width_16"], []
    with torch.no_grad():
        part.up.weight.normal_(generator=torch.Generator().manual_seed(1))
    site.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    tuned.model(pixel_values=torch.randn(2, 3, 32, 32))
    entered, given = seen[0]
    plain = nn.functional.conv2d(entered, site.weight, None, site.stride, site.padding)
    expected = plain + part(plain.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(given, expected)


def test_blocks_of_a_pyramid_are_not_one_sequence():
    swin = {
        "image_size": 32,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_size": 4,
    }
    assert block_paths(loaded("swin", IMAGE_CLASSIFICATION, **swin)) == []
    assert len(last_layers(loaded("swin", IMAGE_CLASSIFICATION, **swin)).modules) == 2


def test_prompts_work_in_an_image_transformer_of_no_known_family():
    small = {key: SIZES[key] for key in list(SIZES)[1:5]}
    model = loaded("vit_msn", IMAGE_CLASSIFICATION, **small, image_size=16, patch_size=8)
    tuned = tune(model, TuningRequest("prompt", {"num_tokens": 2}))
    assert tuned.parameters["prompt.tokens"].shape == (2, 2, 16)


def test_prompts_that_a_model_cannot_run_with_are_refused():
    small = {key: SIZES[key] for key in list(SIZES)[1:5]}
    model = loaded(
        "beit",
        IMAGE_CLASSIFICATION,
        **small,
        image_size=16,
        patch_size=8,
        use_relative_position_bias=True,
    )
    with pytest.raises(TuningError, match=r"cannot be run with prompts .*; choose adapter or lora"):
        tune(model, TuningRequest("prompt", {"num_tokens": 2}))


def test_virtual_tokens_have_the_width_of_the_embeddings():
    settings = {**SIZES, "embedding_size": 8}
    tuned = tune(loaded("electra", **settings), TuningRequest("prompt_tuning"))
    assert next(p.shape for n, p in tuned.parameters.items() if "prompt" in n)[1] == 8


def test_a_model_that_cannot_run_with_virtual_tokens_is_refused():
    config = {**SIZES, "attention_window": [4, 4]}
    with pytest.raises(TuningError, match=r"cannot be run with virtual tokens .*choose another"):
        tune(loaded("longformer", **config), TuningRequest("prompt_tuning"))
