"""Models that the user has wrapped with `peft`: adopted, they equal what our own methods make."""

from __future__ import annotations

import dataclasses

import peft
import pytest
import torch
from torch import nn

from fedpeft.core.errors import TuningError
from fedpeft.tuning.adopt import from_peft
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.tuned import read_delta, write_delta

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
]

QV = {"vit": ["q_proj", "v_proj"], "llama": ["q_proj", "v_proj"], "bert": ["query", "value"]}
CASES = [
    (
        "vit",
        "lora",
        {"lora_alpha": 64, "r": 2, "rank_pattern": {"layers.1.attention.q_proj": 4}, "bias": "all"},
    ),
    ("vit", "lora", {"use_dora": True, "lora_dropout": 0.1}),
    ("bert", "vera", {"r": 4, "projection_prng_key": 3}),
    ("vit", "ln_tuning", {"target_modules": ["layernorm_before"]}),
    ("llama", "lora", {"use_rslora": True}),
    ("llama", "prompt_tuning", {"num_virtual_tokens": 3}),
    ("bert", "prefix_tuning", {"num_virtual_tokens": 3}),
    ("plain", "lora", {"target_modules": ["second"], "lora_alpha": 5}),
]
CONFIGS = {
    "lora": peft.LoraConfig,
    "vera": peft.VeraConfig,
    "ln_tuning": peft.LNTuningConfig,
    "prompt_tuning": peft.PromptTuningConfig,
    "prefix_tuning": peft.PrefixTuningConfig,
}
TASK_TYPES = {"llama": "CAUSAL_LM", "bert": "SEQ_CLS"}


def loaded_of(make, kind):
    return dataclasses.replace(make(kind), fresh=frozenset())


def options_of(kind, method, options):
    placed = {} if "target_modules" in options or "tuning" in method else QV.get(kind)
    return {**options, "target_modules": placed} if placed else options


def wrap(make, kind, method="lora", options=None, *, name="default", **config):
    """Wrap a model as a user does, with random values in the adapter."""
    loaded = loaded_of(make, kind)
    fields = {**options_of(kind, method, options or {}), **config}
    if kind in TASK_TYPES:
        fields["task_type"] = TASK_TYPES[kind]
    elif "modules_to_save" not in fields:
        fields["modules_to_save"] = list(loaded.head)
    model = peft.get_peft_model(loaded.module, CONFIGS[method](**fields), adapter_name=name).eval()
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return model


def adopt(make, kind, model):
    return from_peft(model, task=loaded_of(make, kind).task)


def logits(model, batch):
    with torch.no_grad():
        found = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    return found[:, -batch["input_ids"].shape[1] :] if found.dim() == 3 else found


@pytest.mark.parametrize("name", ["default", "mine"])
@pytest.mark.parametrize(("kind", "method", "options"), CASES)
def test_adopted_is_the_users_model_and_ours(kind, method, options, name, make, batch_for):
    model, batch = wrap(make, kind, method, options, name=name), batch_for(kind)
    adopted = adopt(make, kind, model)
    request = TuningRequest(method, options_of(kind, method, options), seed=3)
    ours = tune(loaded_of(make, kind), request)
    assert adopted.spec.digest == ours.spec.digest and adopted.method == method
    assert not torch.allclose(logits(ours.model, batch), logits(model, batch), atol=1e-5)
    write_delta(ours, read_delta(adopted))
    assert torch.equal(logits(adopted.model, batch), logits(model, batch))
    if "projection_prng_key" in options or method != "vera":
        assert torch.equal(logits(ours.model, batch), logits(model, batch))


def test_options_are_read_from_the_config(make):
    model = wrap(make, "vit", "lora", {"lora_alpha": 64, "r": 2})
    ours = tune(make("vit"), TuningRequest("lora", {"lora_alpha": 64, "r": 2, **targets("vit")}))
    assert adopt(make, "vit", model).options == ours.options
    other = tune(make("vit"), TuningRequest("lora", {"r": 2, **targets("vit")}))
    assert adopt(make, "vit", model).options != other.options


def targets(kind):
    return {"target_modules": QV[kind]}


def test_the_users_model_stays_as_it_is(make, batch_for):
    model = wrap(make, "vit")
    before = logits(model, batch_for("vit"))
    adopted = adopt(make, "vit", model)
    write_delta(adopted, read_delta(adopted) + 1)
    assert torch.equal(logits(model, batch_for("vit")), before)
    assert not torch.allclose(logits(adopted.model, batch_for("vit")), before)


def test_what_requires_gradients_is_what_travels(make):
    model = wrap(make, "vit", modules_to_save=None)
    assert not any("head" in name for name in adopt(make, "vit", model).spec.names)
    model.base_model.model.vit.layernorm.weight.requires_grad_(True)
    first = next(p for n, p in model.named_parameters() if "lora_A" in n)
    first.requires_grad_(False)
    narrow, whole = adopt(make, "vit", model), adopt(make, "vit", wrap(make, "vit"))
    assert "norm.weight" in narrow.spec.names and len(narrow.spec.names) == 8
    assert len(whole.spec.names) == 10
    assert {p for p in narrow.model.parameters() if p.requires_grad} == {
        *narrow.parameters.values()
    }


def quantised(make):
    model = wrap(make, "vit")
    model.get_base_model().quantization_method = "bitsandbytes"
    return model


def merged(make):
    model = wrap(make, "vit")
    model.merge_adapter()
    return model


def two_adapters(make):
    model = wrap(make, "vit")
    model.add_adapter("second", peft.LoraConfig(**targets("vit")))
    return model


def frozen(make):
    return wrap(make, "vit").requires_grad_(False)


def rescaled(make):
    model = wrap(make, "vit")
    model.base_model.model.vit.layers[0].attention.q_proj.scale_layer(2.0)
    return model


def pissa(make):
    return wrap(make, "vit", init_lora_weights="pissa")


def adalora(make):
    config = peft.AdaLoraConfig(total_step=10, **targets("vit"))
    return peft.get_peft_model(make("vit").module, config)


def tied(make):
    module = make("llama", tie_word_embeddings=True).module
    config = peft.LoraConfig(modules_to_save=["lm_head"], **targets("llama"))
    return peft.get_peft_model(module, config)


def tokens(make):
    return wrap(make, "llama", trainable_token_indices=[1, 2])


def mixed(make):
    return peft.get_peft_model(make("vit").module, peft.LoraConfig(**targets("vit")), mixed=True)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda make: nn.Linear(2, 2), r"found a Linear; allowed is what `peft\.get_peft_model`"),
        (mixed, r"found a PeftMixedModel"),
        (two_adapters, r"found 2 adapters \(default, second\); exactly one is allowed"),
        (merged, r"the adapter is merged; call `model\.unmerge_adapter\(\)` first"),
        (quantised, r"the base is quantised"),
        (frozen, r"nothing requires gradients.*is_trainable=True"),
        (rescaled, r"q_proj' scales by 2\.0, which differs from its config"),
        (pissa, r"init_lora_weights = 'pissa': it changes frozen weights"),
        (adalora, r"'adalora': not supported on any model: it needs a call inside"),
        (tokens, r"trainable_token_indices: not supported"),
        (tied, r"modules_to_save has 'lm_head', whose weight is shared"),
    ],
)
def test_what_cannot_be_sent_is_refused_in_words(build, message, make):
    with pytest.raises(TuningError, match=message):
        from_peft(build(make))


def test_a_task_that_cannot_be_told_is_refused(make):
    from fedpeft.core.errors import ModelError

    with pytest.raises(ModelError, match=r"Plain: its task cannot be inferred; pass task="):
        from_peft(wrap(make, "plain", options={"target_modules": ["second"]}))
