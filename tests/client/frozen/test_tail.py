"""The last block for one token = the stock block: outputs, gradients, training, evaluation."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
import transformers as hf

from fedpeft.client import evaluate as evaluation
from fedpeft.client import local
from fedpeft.client.evaluate import evaluate
from fedpeft.client.frozen.tail import last_block, short_tail
from fedpeft.client.local import local_trainer
from fedpeft.client.optimizers import OptimizerSettings
from fedpeft.client.private import GradientPrivacy
from fedpeft.client.settings import LocalSettings
from fedpeft.client.turns import DELTA, ClientTurn
from fedpeft.data.examples import ClientData
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.tuned import read_delta

IMAGE, TEXT = "preset:tiny-vit", "preset:tiny-bert"
METHODS = ("full", "bias", "adapter", "lora", "ia3", "ln_tuning", "scratch")


class Examples:
    """Nine pictures, or texts of unequal length."""

    def __init__(self, name):
        every = torch.Generator().manual_seed(4)
        self._pixels = torch.randn(9, 1, 8, 8, generator=every)
        self._tokens = torch.randint(3, 60, (9, 8), generator=every)
        self._lengths = torch.randint(2, 9, (9,), generator=every)
        self._labels = torch.randint(0, 3, (9,), generator=every)
        self._name = name

    def __len__(self):
        return 9

    def batch(self, indices, *, seed):
        index = torch.as_tensor(list(indices))
        labels = self._labels[index]
        if self._name == IMAGE:
            return {"pixel_values": self._pixels[index], "labels": labels}
        lengths = self._lengths[index]
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.where(mask, self._tokens[index][:, : mask.shape[1]], 0)
        return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


def tuned(name, method, attention="sdpa", **options):
    loaded = load_model(ModelRequest(name=name, num_labels=3))
    loaded.module.set_attn_implementation(attention)
    model = tune(loaded, TuningRequest(method, options, seed=1))
    with torch.no_grad():  # an untrained model hardly attends to anything
        for parameter in model.model.parameters():
            if parameter.ndim > 1 and not parameter.requires_grad:
                parameter.mul_(4)
    return model


def gradients(model, examples, *, short):
    model.model.zero_grad()
    with short_tail(model.model) if short else contextlib.nullcontext():
        scores = model.loaded.task.score(model.model, examples.batch(range(9), seed=None))
    scores.loss_B.sum().backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters.values()]
    return scores.loss_B.detach(), torch.cat([grad.flatten() for grad in grads])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [IMAGE, TEXT])
def test_losses_and_gradients_are_those_of_the_stock_block(name, method, attention):
    model, examples = tuned(name, method, attention), Examples(name)
    assert last_block(model.model) is not None
    losses, grads = gradients(model, examples, short=False)
    short_losses, short_grads = gradients(model, examples, short=True)
    assert torch.allclose(short_losses, losses, rtol=1e-5, atol=1e-6)
    assert float((short_grads - grads).norm()) <= 1e-5 * float(grads.norm())
    assert float(grads.norm()) > 0


def test_padding_is_not_attended_to():
    """The negative control: without the mask a short text gives another loss."""
    model, examples = tuned(TEXT, "lora"), Examples(TEXT)
    losses, _ = gradients(model, examples, short=True)
    block, run = last_block(model.model)
    with short_tail(model.model):
        object.__setattr__(block, "forward", lambda x, mask=None, *a, **o: run(x))
        batch = examples.batch(range(9), seed=None)
        blind = model.loaded.task.score(model.model, batch).loss_B.detach()
    lengths = batch["attention_mask"].sum(1)
    short = lengths < lengths.max()
    assert short.any() and not torch.allclose(blind[short], losses[short], rtol=5e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_pooled_model_runs_all_tokens(pooling):
    loaded = load_model(ModelRequest(name=TEXT, num_labels=3, pooling=pooling))
    assert last_block(tune(loaded, TuningRequest("full")).model) is None


def test_only_one_token_comes_out_and_the_block_is_itself_again():
    model = tuned(IMAGE, "bias")
    block, _ = last_block(model.model)
    shapes = []

    def note(module, inputs, output):
        shapes.append(output.shape[1])

    with short_tail(model.model):
        handle = block.register_forward_hook(note)
        gradients(model, Examples(IMAGE), short=False)
        handle.remove()
    handle = block.register_forward_hook(note)
    gradients(model, Examples(IMAGE), short=False)
    assert shapes[0] == 1 < shapes[1] and "forward" not in vars(block)


def turn(examples):
    data = ClientData(examples, np.arange(9))
    return ClientTurn(1, "client", data, {}, 7, 0)


@pytest.mark.parametrize("privacy", [None, GradientPrivacy(1.0, 0.0, by_example=True)])
@pytest.mark.parametrize("name", [IMAGE, TEXT])
def test_a_turn_and_an_evaluation_are_those_of_the_stock_model(monkeypatch, name, privacy):
    settings = LocalSettings(2, 4, OptimizerSettings(lr=0.02), privacy=privacy)
    examples = Examples(name)
    found = _turn_and_scores(name, settings, examples)
    for module in (local, evaluation):
        monkeypatch.setattr(module, "short_tail", lambda model: contextlib.nullcontext())
    stock = _turn_and_scores(name, settings, examples)
    assert not torch.equal(found[0], stock[0])  # it was there, and sums in another order
    assert float((found[0] - stock[0]).norm()) <= 1e-5 * float(stock[0].norm())
    assert torch.allclose(found[1], stock[1], rtol=1e-5) and float(stock[0].norm()) > 0


def _turn_and_scores(name, settings, examples):
    model = tuned(name, "lora")
    start = read_delta(model)
    (result,) = local_trainer(model, settings)({DELTA: start}, [turn(examples)])
    return result.payload[DELTA], evaluate(model, examples, settings, 4).loss_N


def test_it_stays_where_something_is_hooked_to_it_or_the_first_block_is_frozen():
    assert last_block(tuned(IMAGE, "adapter").model) is not None
    after = ["vit.layers.0.attention.o_proj", "vit.layers.1.attention.o_proj"]
    assert last_block(tuned(IMAGE, "adapter", after=after).model) is not None
    assert last_block(tuned(IMAGE, "adapter", after=after[1:]).model) is None
    assert last_block(tuned(IMAGE, "prompt").model) is None
    for name in (IMAGE, TEXT):
        assert last_block(tuned(name, "head").model) is None


def test_what_a_decoder_or_a_cache_gives_is_left_to_the_class():
    """Keys and values of tokens before a text (`peft`'s prefix tuning) come as another argument."""
    model = tuned(TEXT, "full")
    block, run = last_block(model.model)
    x_BTD = torch.randn(2, 3, block.attention.self.all_head_size)
    with torch.no_grad():
        encoder = run(x_BTD, None, torch.zeros(2, 4, x_BTD.shape[-1]))
        assert run(x_BTD).shape[1] == 1 and encoder.shape[1] == 3


def test_other_models_have_none(tmp_path):
    assert last_block(tuned("preset:tiny-llama", "lora").model) is None
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 8, "vocab_size": 60}  # fmt: skip
    assert last_block(hf.RobertaForSequenceClassification(hf.RobertaConfig(**small))) is None
    decoder = hf.BertForSequenceClassification(hf.BertConfig(**small, is_decoder=True))
    encoder = hf.BertForSequenceClassification(hf.BertConfig(**small))
    assert last_block(decoder) is None and last_block(encoder) is not None
