"""K clients in one pass equal one by one: methods, families, optimisers, sizes, and limits.

Tolerance: the norm of the difference of two updates is at most 1e-5 of an update's norm for SGD,
and 1e-4 for AdamW with eps = 1e-6, without the keys' biases: a softmax does not see them, and AdamW
makes steps of a gradient that is nothing but rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import transformers as hf

from fedpeft.client.local import local_trainer
from fedpeft.client.optimizers import OptimizerSettings, make_step
from fedpeft.client.passes import gradients as many_gradients
from fedpeft.client.passes import joint_batches as many_batches
from fedpeft.client.passes import many
from fedpeft.client.passes.joint_batches import ClientBatch, join, split_by_size
from fedpeft.client.passes.many import MANY_METHODS, many_trainer, why_one_by_one
from fedpeft.client.private import GradientPrivacy
from fedpeft.client.schedules import Schedule
from fedpeft.client.settings import LocalSettings
from fedpeft.client.turns import DELTA, ClientTurn
from fedpeft.core.errors import DataError
from fedpeft.data.examples import ClientData
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.tuning.methods import METHODS, TuningRequest, tune
from fedpeft.tuning.tuned import read_delta

SGD = OptimizerSettings(lr=0.02)
ADAMW = OptimizerSettings("adamw", lr=1e-3, eps=1e-6)
TOLERANCE = {"sgd": 1e-5, "adamw": 1e-4, "adafactor": 1e-4}
SIZES = (5, 1, 9, 2, 7)
VIDEO = "preset:tiny-videomae"
IMAGE, TEXT, LANGUAGE = "preset:tiny-vit", "preset:tiny-bert", "preset:tiny-llama"
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8,
         "intermediate_size": 24, "vocab_size": 60, "max_position_embeddings": 20,
         "num_key_value_heads": 1, "pad_token_id": 0}  # fmt: skip
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": 60,
          "pad_token_id": 0}  # fmt: skip
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 60, "n_positions": 20,
        "pad_token_id": 0}  # fmt: skip
FAMILIES = {
    "roberta": ("RobertaForSequenceClassification", SMALL),
    "distilbert": ("DistilBertForSequenceClassification", DISTIL),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "llama": ("LlamaForSequenceClassification", SMALL),
    "qwen2": ("Qwen2ForCausalLM", SMALL),
    "qwen3": ("Qwen3ForCausalLM", SMALL),
}
"""Family -> class of a model (imported by the test that needs it) and what makes it small."""


@dataclass(frozen=True)
class Table:
    """Examples of one kind of model: pictures, clips, or texts of unequal length."""

    name: str
    pad_id: int = 0

    def __len__(self):
        return sum(SIZES)

    def batch(self, indices, *, seed):
        index = torch.as_tensor(list(indices))
        every = torch.Generator().manual_seed(4)
        labels = torch.randint(0, 3, (len(self),), generator=every)[index]
        if self.name in (IMAGE, VIDEO):
            shape = (1, 8, 8) if self.name == IMAGE else (4, 1, 8, 8)
            pixels = torch.randn(len(self), *shape, generator=every)[index]
            return {"pixel_values": pixels, "labels": labels}
        lengths = torch.randint(2, 9, (len(self),), generator=every)[index]
        tokens = torch.randint(3, 60, (len(self), 8), generator=every)[index]
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.where(mask, tokens[:, : mask.shape[1]], self.pad_id)
        if self.name == LANGUAGE:
            labels = torch.where(mask, ids, -100)
        return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


def tuned(model, method, **options):
    if method == "bias" and model == LANGUAGE:
        options["add_missing"] = True
    labels = None if model == LANGUAGE else 3
    return sharp(tune(load_model(ModelRequest(name=model, num_labels=labels)),
                      TuningRequest(method, options, seed=1)))  # fmt: skip


def sharp(model):
    """Enlarge the frozen weights, because the attention of an untrained model is nearly uniform."""
    with torch.no_grad():
        for parameter in model.model.parameters():
            if parameter.ndim > 1 and not parameter.requires_grad:
                parameter.mul_(4)
    return model


def turns(data, sizes=SIZES):
    ends = np.cumsum(sizes)
    rows = [np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return [
        ClientTurn(1, f"client-{i}", ClientData(data, row), {}, 100 + i, 0)
        for i, row in enumerate(rows)
    ]


def settings(optimizer=SGD, **changes):
    return LocalSettings(**{"epochs": 2, "batch_size": 4, "optimizer": optimizer, **changes})


def train(model, chosen, data, *, together, some=None):
    """Train from values other than the model's initial ones, whose zeros would hide faults."""
    start = read_delta(model)
    start = start + 0.1 * torch.randn(start.shape, generator=torch.Generator().manual_seed(2))
    make = many_trainer(model, chosen, clients_per_pass=together)
    return list(make({DELTA: start}, some or turns(data)))


def errors(one, many, seen=slice(None)):
    """Difference of each client's updates, over the update's norm."""
    pairs = [(a.payload[DELTA], b.payload[DELTA]) for a, b in zip(one, many, strict=True)]
    return [float((a - b)[seen].norm() / a.norm()) for a, b in pairs]


def seen_by_the_loss(spec):
    parts = zip(spec.names, spec.sizes, strict=True)
    return torch.cat([torch.full((size,), "attn.k.bias" not in name) for name, size in parts])


def compare(make, chosen, data, together=5):
    model = make()
    assert why_one_by_one(model, chosen) == ""
    one = train(make(), chosen, data, together=1)
    found = train(model, chosen, data, together=together)
    assert min(float(result.payload[DELTA].norm()) for result in one) > 1e-4
    free = chosen.optimizer.name == "sgd" or chosen.optimizer.weight_decay == 0.1
    seen = slice(None) if free else seen_by_the_loss(model.spec)
    assert max(errors(one, found, seen)) < TOLERANCE[chosen.optimizer.name]
    for a, b in zip(one, found, strict=True):
        assert a.weight == b.weight and a.metrics == pytest.approx(b.metrics, 1e-4)
    return one, found


KINDS = {IMAGE: "vit", TEXT: "bert", LANGUAGE: "llama", VIDEO: "videomae"}
QUICK = {("vit", "sgd"): MANY_METHODS, ("vit", "adamw"): ("bias", "lora"),
         ("bert", "sgd"): ("adapter", "dora", "full", "head", "ia3"), ("llama", "sgd"): ("lora",),
         ("videomae", "sgd"): ("prompt",)}  # fmt: skip
CASES = [
    pytest.param(
        model, method, optimizer, id=f"{kind}-{method}-{optimizer.name}",
        marks=[] if method in QUICK.get((kind, optimizer.name), ()) else [pytest.mark.slow],
    )
    for model, kind in KINDS.items() for method in MANY_METHODS for optimizer in (SGD, ADAMW)
    if kind not in METHODS[method].refused
    and (kind, method) not in (("videomae", "full"), ("videomae", "scratch"))
]  # fmt: skip


@pytest.mark.parametrize(("model", "method", "optimizer"), CASES)
def test_many_equals_one_by_one_for_every_method(model, method, optimizer):
    compare(lambda: tuned(model, method), settings(optimizer), Table(model))


QUICK_FAMILIES = {"roberta": "full", "distilbert": "bias", "gpt2": "full", "llama": "bias",
                  "qwen2": "lora", "qwen3": "ln_tuning"}  # fmt: skip


@pytest.mark.parametrize(("family", "method"), [
    pytest.param(family, method, marks=[] if method == quick else [pytest.mark.slow])
    for family, quick in QUICK_FAMILIES.items()
    for method in ("bias", "lora", "full", "ln_tuning")
])  # fmt: skip
def test_many_equals_one_by_one_for_every_family(family, method, tmp_path):
    name, values = FAMILIES[family]
    kind = getattr(hf, name)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        pad_id = 1 if family == "roberta" else 0
        kind(kind.config_class(**{**values, "pad_token_id": pad_id})).save_pretrained(tmp_path)
    task = "causal-lm" if "LM" in name else None
    options = {"add_missing": True} if method == "bias" and family in ("llama", "qwen3") else {}
    if (family, method) == ("gpt2", "lora"):
        options = {"fan_in_fan_out": True}

    def make():
        request = ModelRequest(name=str(tmp_path), task=task, num_labels=None if task else 3)
        return sharp(tune(load_model(request), TuningRequest(method, options, seed=1)))

    data = Table(LANGUAGE if task else TEXT, pad_id)
    assert make().loaded.family.name == family
    compare(make, settings(), data)


@pytest.mark.parametrize(
    ("method", "pooling"), [("full", "mean"), ("lora", "mean"), ("bias", "cls")]
)
def test_pooled_texts_are_padded_to_other_lengths_in_a_pass(method, pooling):
    def make():
        request = ModelRequest(TEXT, num_labels=3, pooling=pooling)
        return sharp(tune(load_model(request), TuningRequest(method, seed=1)))

    compare(make, settings(), Table(TEXT))


@pytest.mark.parametrize(("method", "options"), [
    ("prompt", {"dropout": 0.5}), ("lora", {"lora_dropout": 0.5}), ("lora", {"lora_bias": True}),
    ("lora", {"target_modules": ["projection"], "r": 2}),
    ("adapter", {"shared": False}),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("prompt", {"deep": False}), ("prompt", {"num_tokens": 0}),
        ("lora", {"bias": "lora_only"}), ("lora", {"target_modules": "all-linear", "r": 2}),
        ("dora", {"lora_dropout": 0.5}),
    )),
])  # fmt: skip
def test_options_of_the_methods(method, options):
    compare(lambda: tuned(IMAGE, method, **options), settings(), Table(IMAGE))


PRIVATE = [
    GradientPrivacy(math.inf, 0.01, divided=False),
    GradientPrivacy(0.5, 0.01),
    GradientPrivacy(0.5, 0.01, by_example=True),
]
OTHERS = [
    {"prox_mu": 0.5},
    {"optimizer": OptimizerSettings(lr=0.05, momentum=0.0)},
    {"optimizer": OptimizerSettings(lr=0.05, nesterov=False, weight_decay=0.1)},
    {"optimizer": OptimizerSettings("adamw", lr=1e-3, eps=1e-6, weight_decay=0.1), "prox_mu": 0.1},
    *({"privacy": privacy} for privacy in PRIVATE),
    {"batch_size": 1},
    {"batch_size": 64},
    {"max_steps": 3, "epochs": None, "accumulation": 2, "batch_size": 2, "gradient_clip": 0.5},
    {"schedule": Schedule("cosine", warmup=0.3), "optimizer": OptimizerSettings("adafactor", 0.01)},
    {"schedule": Schedule("linear"), "optimizer": replace(ADAMW, weight_decay=0.1)},
]


QUICK_SETTINGS = (2, 3, 5, 6, 7, 9, 10)


@pytest.mark.parametrize("changes", [
    pytest.param(changes, marks=[] if place in QUICK_SETTINGS else [pytest.mark.slow])
    for place, changes in enumerate(OTHERS)
])  # fmt: skip
def test_settings_of_training(changes):
    compare(lambda: tuned(IMAGE, "adapter"), settings(**changes), Table(IMAGE))


@pytest.mark.parametrize("together", [2, 3, 4])
def test_groups_that_do_not_divide_the_turns(together):
    compare(lambda: tuned(TEXT, "bias"), settings(), Table(TEXT), together)


def without_weights(parts, pad_id):
    return replace(join(parts, pad_id), weight_GB=None)


def mixed_up(parts, pad_id):
    return join(list(reversed(parts)), pad_id)


def one_momentum(chosen, active, shapes):
    step = make_step(chosen, active, shapes)
    return lambda value, grad, scale: step(value, grad.mean(0, keepdim=True).expand_as(grad), scale)


@pytest.mark.parametrize(("name", "value"), [
    ("join", without_weights), ("join", mixed_up), ("make_step", one_momentum),
])  # fmt: skip
def test_the_law_can_fail(name, value, monkeypatch):
    """Negative controls: missing weights, swapped clients and a shared momentum differ clearly."""
    one = train(tuned(IMAGE, "bias"), settings(), Table(IMAGE), together=1)
    monkeypatch.setattr(many, name, value)
    found = train(tuned(IMAGE, "bias"), settings(), Table(IMAGE), together=5)
    assert max(errors(one, found)) > 1e-2


@pytest.mark.parametrize(("model", "method", "options"), [
    (IMAGE, "lora", {"lora_dropout": 0.5}), (TEXT, "bias", {}),
    pytest.param(IMAGE, "prompt", {}, marks=pytest.mark.slow),
    pytest.param(LANGUAGE, "lora", {}, marks=pytest.mark.slow),
])  # fmt: skip
def test_examples_are_clipped_one_by_one(model, method, options, monkeypatch):
    chosen = settings(privacy=PRIVATE[-1], prox_mu=0.1)
    one, _ = compare(lambda: tuned(model, method, **options), chosen, Table(model))
    monkeypatch.setattr(many_gradients, "_ROW_BYTES", 1)  # row after row
    few = train(tuned(model, method, **options), chosen, Table(model), together=5)
    assert max(errors(one, few)) < 1e-5 and few[0].metrics == {}
    monkeypatch.setattr(many_gradients, "clip_rows", lambda rows, bound: rows)
    free = train(tuned(model, method, **options), chosen, Table(model), together=5)
    assert max(errors(one, free)) > 1e-2


def test_dropout_masks_follow_the_example(monkeypatch):
    """The negative control of keyed dropout: other keys, another result."""
    one = train(tuned(IMAGE, "lora", lora_dropout=0.5), settings(), Table(IMAGE), together=1)
    keys = lambda turn, rows, number: torch.zeros(len(rows), dtype=torch.int64)  # noqa: E731
    monkeypatch.setattr(many_batches, "dropout_keys", keys)
    found = train(tuned(IMAGE, "lora", lora_dropout=0.5), settings(), Table(IMAGE), together=5)
    assert max(errors(one, found)) > 1e-2


def test_not_a_number_stays_with_its_client():
    class Broken(Table):
        def batch(self, indices, *, seed):
            batch = dict(super().batch(indices, seed=seed))
            bad = torch.as_tensor([5 <= i < 6 for i in indices])  # all of client-1
            batch["pixel_values"] = torch.where(bad[:, None, None, None], torch.nan,
                                                batch["pixel_values"])  # fmt: skip
            return batch

    model = tuned(IMAGE, "lora")
    one = train(tuned(IMAGE, "lora"), settings(), Table(IMAGE), together=1)
    found = train(model, settings(), Broken(IMAGE), together=5)
    assert not torch.isfinite(found[1].payload[DELTA]).any()
    others = [place for place in range(5) if place != 1]
    assert max(errors([one[i] for i in others], [found[i] for i in others])) < 1e-5


def test_a_client_without_examples_does_not_move():
    some = turns(Table(IMAGE), (3, 0, 4))
    found = train(tuned(IMAGE, "head"), settings(), None, together=3, some=some)
    assert [bool(result.payload[DELTA].any()) for result in found] == [True, False, True]
    assert found[1].metrics == {"loss": 0.0} and found[1].weight == 0


def test_the_model_is_as_before_after_a_pass():
    model, data = tuned(IMAGE, "lora"), Table(IMAGE)
    before = model.model(data.batch([0, 1], seed=None)["pixel_values"]).logits
    start = read_delta(model)
    list(many_trainer(model, settings(), clients_per_pass=5)({DELTA: start}, turns(data)))
    assert not any("forward" in vars(part) for part in model.model.modules())
    again = model.model(data.batch([0, 1], seed=None)["pixel_values"]).logits
    assert torch.equal(before, again)


@pytest.mark.parametrize(("method", "reason"), [
    ("loha", "'loha' trains clients one by one"), ("vera", "'vera'"), ("oft", "'oft'"),
])  # fmt: skip
def test_other_methods_train_one_by_one(method, reason):
    data, chosen = Table(IMAGE), settings()
    assert reason in why_one_by_one(tuned(IMAGE, method), chosen)
    one, found = (train(tuned(IMAGE, method), chosen, data, together=k) for k in (1, 5))
    for a, b in zip(one, found, strict=True):
        assert torch.equal(a.payload[DELTA], b.payload[DELTA])


def test_what_has_no_client_axis_trains_one_by_one(tmp_path):
    hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)).save_pretrained(tmp_path)
    loaded = load_model(ModelRequest(name=str(tmp_path), task="causal-lm"))
    custom = tune(loaded, TuningRequest("bias"))
    custom.model.transformer.h[0].attn.register_parameter("gate", custom.parameters["norm.bias"])
    assert "h.0.attn (GPT2Attention) trains ['gate']" in why_one_by_one(custom, settings())
    assert "no layer with an axis" in why_one_by_one(tuned(VIDEO, "full"), settings())
    words = tuned(TEXT, "lora", target_modules=["word_embeddings"])
    assert "lora_embedding_A" in why_one_by_one(words, settings())
    assert "DoraLinearLayer" in why_one_by_one(tuned(IMAGE, "dora", bias="lora_only"), settings())


def test_every_claimed_method_is_one_of_ours_or_of_peft():
    assert set(MANY_METHODS) <= set(METHODS) and list(MANY_METHODS) == sorted(MANY_METHODS)


def test_batches_that_cannot_be_padded_are_refused():
    class Ragged(Table):
        def batch(self, indices, *, seed):
            batch = dict(super().batch(indices, seed=seed))
            return {**batch, "extra": torch.zeros(len(indices), 1 + int(indices[0] > 4))}

    with pytest.raises(DataError, match=r"batches 'extra' of shapes .*engine.clients_per_pass = 1"):
        train(tuned(IMAGE, "head"), settings(), Ragged(IMAGE), together=5)


@pytest.mark.parametrize("sizes", [[4, 4, 4], [64, 3, 2, 60, 1], [1], [7, 9, 8, 2, 2, 2, 1]])
def test_a_pass_is_divided_before_padding_dominates(sizes):
    parts = split_by_size(sizes, 1.5)
    assert sorted(place for part in parts for place in part) == list(range(len(sizes)))
    for part in parts:
        own = [sizes[place] for place in part]
        assert max(own) * len(own) <= 1.5 * sum(own)
    assert len(split_by_size(sizes, 1000.0)) == 1


def test_one_by_one_is_the_local_trainer():
    model, other, data = tuned(IMAGE, "head"), tuned(IMAGE, "head"), Table(IMAGE)
    start = read_delta(model)
    ours = list(many_trainer(model, settings(), clients_per_pass=1)({DELTA: start}, turns(data)))
    theirs = list(local_trainer(other, settings())({DELTA: start}, turns(data)))
    assert all(torch.equal(a.payload[DELTA], b.payload[DELTA])
               for a, b in zip(ours, theirs, strict=True))  # fmt: skip


def text_step(lengths, width):
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    tensors = {"input_ids": 5 * mask, "attention_mask": mask, "labels": torch.zeros(len(lengths)),
               "features": mask[..., None].float()}  # fmt: skip
    return ClientBatch(tensors, torch.arange(len(lengths)))


def test_a_pass_pads_rows_and_tokens():
    one = join([text_step([2, 1], 2), text_step([4], 4)], pad_id=9)
    assert one.tensors["input_ids"].tolist() == [[5, 5, 9, 9], [5, 0, 9, 9], [5] * 4, [5] * 4]
    assert one.tensors["attention_mask"].tolist()[:2] == [[1, 1, 0, 0], [1, 0, 0, 0]]
    assert one.tensors["features"].shape == (4, 4, 1) and one.keys.tolist() == [0, 1, 0, 0]
    assert one.weight_GB is not None and one.weight_GB.tolist() == [[1, 1], [1, 0]]
    assert join([text_step([2], 2), text_step([3], 3)], pad_id=9).weight_GB is None


@pytest.mark.parametrize(
    "method", ["bias", *(pytest.param(m, marks=pytest.mark.slow) for m in ("lora", "ln_tuning"))]
)
def test_a_deit_trains_in_passes(method, tmp_path):
    small = {**SMALL, "image_size": 8, "patch_size": 4, "num_channels": 1}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        hf.DeiTForImageClassification(hf.DeiTConfig(**small)).save_pretrained(tmp_path)

    def make():
        loaded = load_model(ModelRequest(name=str(tmp_path), num_labels=3))
        return sharp(tune(loaded, TuningRequest(method, seed=1)))

    assert make().loaded.family.name == "deit"
    compare(make, settings(), Table(IMAGE))


def test_targets_of_an_example_are_not_padded_where_there_are_as_many_as_tokens():
    def part(width: int, labels: torch.Tensor) -> ClientBatch:
        ones = torch.ones(1, width, dtype=torch.int64)
        batch = {"input_ids": ones, "attention_mask": ones, "labels": labels}
        return ClientBatch(batch, torch.zeros(1, dtype=torch.int64))

    several = [part(3, torch.rand(1, 3)), part(5, torch.rand(1, 3))]
    assert join(several, 0).tensors["labels"].shape == (2, 3)
    tokens = [part(3, torch.ones(1, 3, dtype=torch.int64)), part(5, torch.ones(1, 5).long())]
    assert join(tokens, 0).tensors["labels"].tolist() == [[1, 1, 1, -100, -100], [1] * 5]
