"""Per-example gradients of texts: batched under masks = one by one, for families and methods."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import transformers as hf

from fedpeft.client import private
from fedpeft.client.masks import can_batch_text, spread_mask
from fedpeft.client.private import check_rows, one_by_one, row_gradients, stand_in
from fedpeft.core.errors import PrivacyError
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.tuning.methods import METHODS, TuningRequest, tune

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 4], [5, 9, 3, 0, 0, 0], [7, 2, 8, 4, 0, 0]])
BATCH = {"input_ids": TOKENS, "attention_mask": (TOKENS != 0).long()}
KEYS = torch.arange(3)
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8,
         "intermediate_size": 24, "vocab_size": 30, "max_position_embeddings": 20,
         "num_key_value_heads": 1, "pad_token_id": 0}  # fmt: skip
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": 30,
          "pad_token_id": 0}  # fmt: skip
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 30, "n_positions": 20,
        "pad_token_id": 0}  # fmt: skip
FAMILIES = {
    "bert": ("BertForSequenceClassification", SMALL),
    "roberta": ("RobertaForSequenceClassification", SMALL),
    "distilbert": ("DistilBertForSequenceClassification", DISTIL),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "llama": ("LlamaForCausalLM", SMALL),
    "qwen2": ("Qwen2ForCausalLM", SMALL),
    "qwen3": ("Qwen3ForCausalLM", SMALL),
}
"""Family -> class of a model (imported by the test that needs it) and what makes it small."""
OWN_MASKS = ("cartridge", "p_tuning", "prefix_tuning", "prompt_tuning")
OPTIONS = {"miss": {"r": 4}, "psoft": {"r": 4}, "road": {"group_size": 16},
           "vblora": {"vector_length": 16, "num_vectors": 8}}  # fmt: skip
UNFIT = {
    "trainable_tokens",
    "c3a",
    "fourierft",
    "waveft",
}  # their options do not fit so small a net
MODELS = ("tiny-bert", "tiny-llama")
CLAIMED = [(model, name) for model in MODELS for name, method in METHODS.items()
           if method.vmaps and model[5:] not in method.refused and name not in UNFIT
           and (model, name) not in {("tiny-llama", "road"), ("tiny-llama", "vblora")}]  # fmt: skip


def spread(tuned):
    """Move the delta away from its initial zeros, which hide faults."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in tuned.parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return tuned


def sharpen(tuned):
    """Enlarge the weights, because the attention of an untrained model is nearly uniform."""
    with torch.no_grad():
        for parameter in tuned.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return tuned


def texts(tuned):
    language = tuned.loaded.task.name == "causal-lm"
    labels = TOKENS.masked_fill(TOKENS == 0, -100) if language else torch.tensor([0, 1, 0])
    return {**BATCH, "labels": labels}


def tuned_preset(model, method):
    options = dict(OPTIONS.get(method, {}))
    if method == "bias" and model == "tiny-llama":
        options["add_missing"] = True
    loaded = load_model(ModelRequest(name=f"preset:{model}"))
    return spread(tune(loaded, TuningRequest(method, options, seed=1)))


def tuned_family(name, folder, method):
    class_name, settings = FAMILIES[name]
    kind = getattr(hf, class_name)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        kind(kind.config_class(**settings)).save_pretrained(folder)
    options = {"add_missing": True} if method == "bias" and name in ("llama", "qwen3") else {}
    if name == "gpt2" and method == "lora":
        options = {"fan_in_fan_out": True}
    task = "causal-lm" if "LM" in class_name else None
    labels = None if task else 2
    loaded = load_model(ModelRequest(name=str(folder), task=task, num_labels=labels))
    return spread(tune(loaded, TuningRequest(method, options, seed=1)))


def assert_batched_is_one_by_one(tuned, monkeypatch):
    batch = texts(tuned)
    expected, _ = one_by_one(tuned, batch, KEYS)
    gradients = row_gradients(tuned)
    with monkeypatch.context() as patch:  # a fallback would be equal for nothing
        patch.setattr(private, "one_by_one", None)
        found = gradients(batch, KEYS)
    scale = float(expected.abs().max())
    assert scale > 0 and torch.allclose(found, expected, atol=1e-4 * scale)
    assert not torch.allclose(found[0], found[1], atol=1e-2 * scale)
    check_rows(tuned, gradients, batch, KEYS)


BATCHED = [pair for pair in CLAIMED if pair[1] not in OWN_MASKS]
QUICK = [  # methods take turns between the models that they have
    own[turn % len(own)]
    for turn, method in enumerate(sorted({method for _, method in BATCHED}))
    if (own := [pair for pair in BATCHED if pair[1] == method])
]


@pytest.mark.parametrize(
    ("model", "method"),
    [pytest.param(*p, marks=[] if p in QUICK else [pytest.mark.slow]) for p in BATCHED],
)
def test_batched_equals_one_by_one_for_every_method(model, method, monkeypatch):
    assert_batched_is_one_by_one(tuned_preset(model, method), monkeypatch)


@pytest.mark.parametrize("method", ["bias", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_equals_one_by_one_for_every_family(family, method, tmp_path, monkeypatch):
    tuned = tuned_family(family, tmp_path, method)
    assert tuned.loaded.family.name == family and can_batch_text(tuned)
    assert_batched_is_one_by_one(sharpen(tuned), monkeypatch)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_batched_equals_one_by_one_for_pooled_models(method, pooling, monkeypatch):
    request = ModelRequest(name="preset:tiny-bert", num_labels=2, pooling=pooling)
    tuned = spread(tune(load_model(request), TuningRequest(method, {}, seed=1)))
    assert_batched_is_one_by_one(sharpen(tuned), monkeypatch)


@pytest.mark.parametrize("method", OWN_MASKS)
def test_methods_that_lengthen_masks_go_one_by_one(method):
    tuned = tuned_preset("tiny-llama", method)
    batch = texts(tuned)
    assert not can_batch_text(tuned)
    expected, _ = one_by_one(tuned, batch, KEYS)
    assert torch.equal(row_gradients(tuned)(batch, KEYS), expected)


def test_sliding_windows_and_unknown_families_go_one_by_one(tmp_path):
    config = hf.MistralConfig(**SMALL, sliding_window=2)
    hf.MistralForCausalLM(config).save_pretrained(tmp_path)
    loaded = load_model(ModelRequest(name=str(tmp_path)))
    tuned = tune(loaded, TuningRequest("lora", {}, seed=1))
    assert not can_batch_text(tuned)
    llama = tuned_preset("tiny-llama", "head")
    module = copy.deepcopy(llama.loaded.module)
    module.config.sliding_window = 4
    loaded = dataclasses.replace(llama.loaded, module=module)
    assert can_batch_text(llama)
    assert not can_batch_text(dataclasses.replace(llama, loaded=loaded))


def test_a_mask_that_shows_the_future_is_caught(monkeypatch):
    tuned = tuned_preset("tiny-llama", "lora")
    batch = texts(tuned)
    wrong = lambda tuned, batch: {  # noqa: E731
        **batch, "attention_mask": spread_mask(batch["attention_mask"], torch.float32, causal=False)
    }  # fmt: skip
    monkeypatch.setattr(private, "with_spread_mask", wrong)
    with pytest.raises(PrivacyError, match=r"differ from one-by-one.*bounds nothing"):
        check_rows(tuned, row_gradients(tuned), batch, KEYS)


def test_another_examples_mask_is_caught(monkeypatch):
    tuned = sharpen(tuned_preset("tiny-bert", "bias"))
    batch = texts(tuned)  # of the two that are compared, the first is not padded, the second is
    original = private.with_spread_mask

    def swapped(tuned, rows):
        return original(tuned, {**rows, "attention_mask": rows["attention_mask"].flip(0)})

    monkeypatch.setattr(private, "with_spread_mask", swapped)
    with pytest.raises(PrivacyError, match="differ from one-by-one"):
        check_rows(tuned, row_gradients(tuned), batch, KEYS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["head", "bias"])
def test_rows_equal_opacus(method):
    opacus = pytest.importorskip("opacus")
    tuned = tuned_preset("tiny-bert", method)
    batch = texts(tuned)
    rows = row_gradients(tuned)(batch, KEYS)
    wrapped = opacus.GradSampleModule(tuned.model, loss_reduction="sum", strict=False).train()
    logits = wrapped(**BATCH).logits
    torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="sum").backward()
    parts = [parameter.grad_sample.flatten(1) for parameter in tuned.parameters.values()]
    expected = torch.cat(parts, 1)
    assert torch.allclose(rows, expected, atol=1e-5 * float(expected.abs().max()))


def test_the_mask_hides_padding_and_the_future():
    mask = spread_mask(torch.tensor([[1, 1, 0]]), torch.float32, causal=True)[0, 0]
    assert (mask == 0).tolist() == [[True, False, False], [True, True, False], [True, True, False]]
    open_ = spread_mask(torch.tensor([[1, 1, 0]]), torch.float32, causal=False)[0, 0]
    assert (open_ == 0).tolist() == [[True, True, False]] * 3


def test_rows_of_packed_examples_have_their_own_gradients(tmp_path):
    tuned = sharpen(tuned_family("qwen2", tmp_path, "lora"))
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9, 4], [5, 9, 3, 7, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]]),
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 0, 0]]),
        "labels": torch.tensor([[-100, 6, 7, -100, 9, 4], [-100, 9, -100, 7, -100, -100]]),
    }
    expected, _ = one_by_one(tuned, batch, KEYS[:2])
    near = 1e-4 * float(expected.abs().max())
    assert torch.allclose(row_gradients(tuned)(batch, KEYS[:2]), expected, atol=near)
    crossed = {name: value for name, value in batch.items() if name != "position_ids"}
    assert not torch.allclose(one_by_one(tuned, crossed, KEYS[:2])[0], expected, atol=100 * near)


@pytest.mark.parametrize(
    ("labels", "shape"),
    [
        (torch.tensor([3, 1]), (2,)),  # a class
        (torch.rand(2), (2,)),  # a number
        (torch.rand(2, 6), (2, 6)),  # as many yes or no as there are tokens, by chance
        (torch.full((2, 6), 4), (2, 8)),  # a class of each token
    ],
)
def test_made_up_targets_have_the_shape_of_true_ones_and_the_first_class(labels, shape):
    batch = {"input_ids": TOKENS[:2], "attention_mask": (TOKENS[:2] != 0).long(), "labels": labels}
    made = stand_in(batch)
    assert made["input_ids"].shape == (2, 8) and made["labels"].shape == shape
    assert made["labels"].dtype == labels.dtype
    assert labels.is_floating_point() or not made["labels"].any()
