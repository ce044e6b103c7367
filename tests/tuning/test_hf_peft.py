"""Methods of peft: equal to direct use of the library, dropout by example, refusals."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from fedpeft.core import seeds
from fedpeft.core.errors import TuningError
from fedpeft.models.families import block_of
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.models.tasks import TEXT_CLASSIFICATION, mean_loss
from fedpeft.tuning import hf_peft
from fedpeft.tuning.dropout import KeyedDropout
from fedpeft.tuning.methods import TuningRequest, tune


def used_directly(make, request):
    """LoRA by the library alone: the same seed, targets and head."""
    from peft import LoraConfig, get_peft_model

    module = make("vit").module
    config = LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    with seeds.isolated(seeds.derive(request.seed, "tuning")):
        return get_peft_model(module, config).eval()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_lora_agrees_with_the_library_used_directly(make, batch_for):
    request = TuningRequest("lora", seed=4)
    tuned, other = tune(make("vit"), request), used_directly(make, request)
    theirs = {n: p for n, p in other.named_parameters() if p.requires_grad}
    batch = batch_for("vit")
    for model, parameters in ((tuned.model, tuned.parameters), (other, theirs)):
        optimizer = torch.optim.SGD(parameters.values(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            mean_loss(tuned.loaded.task.score(model, batch)).backward()
            optimizer.step()
    ours = [p for _, p in tuned.model.named_parameters() if p.requires_grad]
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs.values(), strict=True))


def test_range_of_blocks_limits_the_layers(make):
    names = tune(make("bert"), TuningRequest("lora", blocks=(1, 1))).spec.names
    assert {block_of(n) for n in names if "lora" in n} == {1}
    assert "head.weight" in names


def test_range_works_with_every_linear_layer(make):
    request = TuningRequest("lora", {"target_modules": "all-linear"}, blocks=(0, 0))
    names = tune(make("vit"), request).spec.names
    assert len([n for n in names if "lora_a" in n]) == 6


def test_range_that_misses_the_targets_is_an_error(make):
    request = TuningRequest("lora", {"target_modules": ["classifier"]}, blocks=(0, 0))
    with pytest.raises(TuningError, match="match nothing in the range of blocks"):
        tune(make("vit"), request)


def test_types_without_blocks_refuse_a_range(make):
    with pytest.raises(TuningError, match="takes no range of blocks"):
        tune(make("llama"), TuningRequest("prompt_tuning", blocks=(0, 0)))


def test_every_linear_layer_leaves_the_head_whole(make):
    tuned = tune(make("vit"), TuningRequest("lora", {"target_modules": "all-linear"}))
    assert [n for n in tuned.spec.names if n.startswith("head")] == ["head.bias", "head.weight"]


def test_target_inside_the_head_is_refused(make):
    with pytest.raises(TuningError, match="match 'classifier', a part of the head"):
        tune(make("vit"), TuningRequest("lora", {"target_modules": ["q_proj", "classifier"]}))


def test_target_that_is_not_there_is_an_error(make):
    with pytest.raises(TuningError, match=r"Target modules .*nothing.* named are first, second$"):
        tune(make("plain"), TuningRequest("lora", {"target_modules": ["nothing"]}))


def test_all_parts_of_a_head_that_a_target_matches_are_named_at_once(make):
    loaded = dataclasses.replace(make("plain"), head=("second", "top"))
    request = TuningRequest("lora", {"target_modules": ["first", "second", "top"]})
    with pytest.raises(TuningError, match="'second', 'top', parts of the head"):
        tune(loaded, request)
    found = {**request.options, "exclude_modules": ["second", "top"]}
    assert tune(make("plain"), TuningRequest("lora", found)).spec.num_params > 0


def test_lora_biases_have_the_models_own_names(make):
    names = tune(make("vit"), TuningRequest("lora", {"bias": "lora_only"})).spec.names
    assert {"blocks.0.attn.q.bias", "blocks.1.attn.v.bias"} <= set(names)


def test_changed_backbone_is_caught(make, monkeypatch):
    real = hf_peft.remove_copies

    def tamper(wrapper: nn.Module) -> None:
        real(wrapper)
        with torch.no_grad():
            wrapper.get_base_model().vit.layernorm.weight.add_(1.0)

    monkeypatch.setattr(hf_peft, "remove_copies", tamper)
    with pytest.raises(TuningError, match=r"changed the frozen parameter 'vit.layernorm.weight'"):
        tune(make("vit"), TuningRequest("lora"))


def test_dropout_of_the_library_becomes_ours(make, batch_for):
    tuned = tune(make("vit"), TuningRequest("lora", {"lora_dropout": 0.5}))
    places = [m.salt for m in tuned.model.modules() if isinstance(m, KeyedDropout)]
    assert len(places) == len(set(places)) == 4
    with torch.no_grad():
        for parameter in tuned.parameters.values():
            parameter.add_(0.3)
    images, keys = batch_for("vit")["pixel_values"], torch.tensor([5, 6, 7, 8])
    plain = tuned.model(pixel_values=images).logits
    with tuned.dropout.using(keys):
        together = tuned.model(pixel_values=images).logits
    with tuned.dropout.using(keys[:1]):
        alone = tuned.model(pixel_values=images[:1]).logits
    torch.testing.assert_close(together[:1], alone)
    assert not torch.allclose(together, plain)


def test_dropout_that_cannot_be_ours_is_refused(make):
    with pytest.raises(TuningError, match=r"module_dropout = 0\.5.*global generator"):
        tune(make("vit"), TuningRequest("loha", {"module_dropout": 0.5}))


def test_shared_projections_follow_the_seed_and_stay_at_home(make):
    def projection(seed: int) -> torch.Tensor:
        tuned = tune(make("vit"), TuningRequest("vera", {"r": 4}, seed=seed))
        assert not [name for name in tuned.spec.names if "vera_a" in name]
        return next(b for n, b in tuned.model.named_buffers() if "vera_A" in n)

    assert torch.equal(projection(1), projection(1))
    assert not torch.equal(projection(1), projection(2))


def test_shared_parameter_is_sent_once(make):
    names = tune(make("vit"), TuningRequest("unilora", {"theta_d_length": 16})).spec.names
    assert [n for n in names if "theta" in n] == ["blocks.0.attn.q.unilora_theta_d"]


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "prefix_tuning"])
def test_logits_of_a_prompted_language_model_are_the_texts(make, batch_for, method):
    tuned = tune(make("llama"), TuningRequest(method))
    tokens = batch_for("llama")["input_ids"]
    assert tuned.model(input_ids=tokens).logits.shape == (4, 9, 50)


def test_classifier_that_looks_for_padding_takes_no_prompt(make):
    loaded = dataclasses.replace(make("llama"), task=TEXT_CLASSIFICATION, head=("score",))
    with pytest.raises(TuningError, match="padding tokens, which a prompt hides"):
        tune(loaded, TuningRequest("prompt_tuning"))


def test_model_without_a_cache_takes_no_prefix(make, monkeypatch):
    loaded = make("bert")
    monkeypatch.setattr(loaded.module.bert, "forward", lambda input_ids: input_ids)
    with pytest.raises(TuningError, match="no key-value cache; choose prompt_tuning"):
        tune(loaded, TuningRequest("prefix_tuning"))


def test_prompt_learning_keeps_the_wrapper(make):
    assert (tuned := tune(make("bert"), TuningRequest("prompt_tuning"))).model is tuned.peft_model
    assert (tuned := tune(make("bert"), TuningRequest("lora"))).model is not tuned.peft_model


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_a_tied_weight_is_no_target(target, tmp_path):
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    for tied in (True, False):
        config = LlamaConfig(**sizes, intermediate_size=16, tie_word_embeddings=tied)
        LlamaForCausalLM(config).save_pretrained(tmp_path)
        loaded = load_model(ModelRequest(str(tmp_path), "causal-lm"))
        request = TuningRequest("lora", {"target_modules": [target]})
        if tied:
            with pytest.raises(TuningError, match="whose weight is also that of"):
                tune(loaded, request)
        else:
            assert tune(loaded, request).spec.num_params > 0
