"""Gradient checkpointing changes no bit, one by one and in passes, and keeps less."""

from __future__ import annotations

import numpy as np
import pytest
import support
import torch

from fedpeft.client.checkpointing import blocks_of, checkpointed
from fedpeft.client.local import local_trainer
from fedpeft.client.passes.many import many_trainer, why_one_by_one
from fedpeft.client.settings import LocalSettings
from fedpeft.client.turns import DELTA, ClientTurn
from fedpeft.core.errors import ConfigError
from fedpeft.data.examples import ClientData
from fedpeft.data.tensors import TextExamples, flat_tokens
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.models.tasks import mean_loss
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.tuned import read_delta


def tuned(name, method, **options):
    labels = None if "llama" in name else 3
    loaded = load_model(ModelRequest(name, num_labels=labels))
    return tune(loaded, TuningRequest(method, options, seed=1))


def turns(name):
    draw = np.random.default_rng(0)
    rows = [draw.integers(3, 50, size).tolist() for size in draw.integers(4, 12, 24)]
    tokens, offsets = flat_tokens(rows)
    labels = None if "llama" in name else torch.arange(24) % 3
    data = TextExamples(tokens, offsets, labels, 0)
    parts = np.split(np.arange(24), [5, 14])
    return [ClientTurn(1, str(i), ClientData(data, part), {}, i, 0) for i, part in enumerate(parts)]


def train(name, method, options, together, **changes):
    model = tuned(name, method, **options)
    chosen = LocalSettings(epochs=1, batch_size=4, **changes)
    assert together == 1 or why_one_by_one(model, chosen) == ""
    trainer = many_trainer(model, chosen, clients_per_pass=together)
    start = {DELTA: read_delta(model) + 0.1}
    return [result.payload[DELTA] for result in trainer(start, turns(name))]


CASES = [
    ("preset:tiny-llama", "lora", {"lora_dropout": 0.5}), ("preset:tiny-bert", "bias", {}),
    ("preset:tiny-bert", "adapter", {}), ("preset:tiny-llama", "dora", {}),
]  # fmt: skip


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize(("name", "method", "options"), CASES, ids=lambda value: str(value))
def test_checkpoints_change_no_bit(name, method, options, together):
    plain, found = (
        train(name, method, options, together, checkpointing=on) for on in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    assert plain[0].norm() > 0


def kept(model, batch, *, on):
    """Bytes that a forward pass keeps for the backward pass, each storage once."""
    sizes = {}

    def keep(value):
        sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    own = {p.untyped_storage().data_ptr() for p in model.model.parameters()}
    keys = torch.arange(len(batch["labels"]))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        with model.dropout.using(keys), checkpointed(model.model, on=on):
            mean_loss(model.loaded.task.score(model.model, batch))
    return sum(size for place, size in sizes.items() if place not in own)


def test_checkpoints_keep_less():
    model = tuned("preset:tiny-bert", "lora")
    batch = turns("preset:tiny-bert")[1].data.examples.batch(range(9), seed=None)
    assert kept(model, batch, on=True) < 0.5 * kept(model, batch, on=False)
    assert blocks_of(model.model) and all("forward" not in vars(b) for b in blocks_of(model.model))


def test_a_cache_is_not_written_twice():
    model = tuned("preset:tiny-llama", "prefix_tuning")
    with pytest.raises(ConfigError, match=r"prefix_tuning write to a cache, and would do so twice"):
        local_trainer(model, LocalSettings(checkpointing=True))


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ConfigError, match=r"gradient_checkpointing: _Net has no blocks"):
        local_trainer(support.tuned(), support.settings(checkpointing=True))
