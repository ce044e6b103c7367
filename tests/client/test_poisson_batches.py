"""Poisson batches: coins of the right rate, empty and large batches, parity of all passes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import support
import torch

from fedpeft.client.optimizers import OptimizerSettings
from fedpeft.client.passes.many import many_trainer
from fedpeft.client.private import GradientPrivacy, turn_batches, with_root
from fedpeft.client.settings import LocalSettings
from fedpeft.client.turns import DELTA, ClientTurn
from fedpeft.data.examples import ClientData
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.tuned import read_delta

SEEDED = GradientPrivacy(0.5, 0.01, by_example=True, rate=0.3, steps=4)
SIZES = (5, 1, 9, 2, 0)


class Pictures:
    def __len__(self):
        return sum(SIZES)

    def batch(self, indices, *, seed):
        assert len(indices), "no batch of nothing is ever collated"
        index = torch.as_tensor(list(indices))
        config = tuned("head").loaded.module.config
        shape = (len(self), config.num_channels, config.image_size, config.image_size)
        pixels = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        return {"pixel_values": pixels[index], "labels": index % 3}


def tuned(method):
    loaded = load_model(ModelRequest(name="preset:tiny-vit", num_labels=3))
    return tune(loaded, TuningRequest(method, {}, seed=1))


def turns(table, sizes=SIZES):
    parts = np.split(np.arange(len(table)), np.cumsum(sizes)[:-1])
    return [
        ClientTurn(1, f"c{i}", ClientData(table, rows), {}, 7 + i, 0)
        for i, rows in enumerate(parts)
    ]


def train(method, chosen, *, together):
    model, table = tuned(method), Pictures()
    settings = LocalSettings(
        epochs=2, batch_size=4, optimizer=OptimizerSettings(lr=0.1), privacy=chosen
    )
    trainer = many_trainer(model, settings, clients_per_pass=together)
    return [r.payload[DELTA] for r in trainer({DELTA: read_delta(model)}, turns(table))]


def wide(size=2000, chosen=SEEDED, client="c"):
    data = ClientData(support.federated().train, np.arange(size))
    return with_root(chosen, ClientTurn(3, client, data, {}, 5, 0))


def test_each_example_has_a_coin_of_its_own_at_the_rate():
    batches = [rows for epoch in range(25) for rows in turn_batches(SEEDED, wide(), 64, epoch)]
    assert len(batches) == 100  # 4 steps an epoch, whatever the client holds
    sizes = np.array([len(rows) for rows in batches])
    assert sizes.mean() == pytest.approx(600, abs=4 * np.sqrt(2000 * 0.21 / 100))
    assert sizes.std() == pytest.approx(np.sqrt(2000 * 0.21), rel=0.25)  # binomial: not cut to size
    often = np.bincount(np.concatenate(batches), minlength=2000)
    assert often.std() == pytest.approx(np.sqrt(100 * 0.21), rel=0.1)
    assert all((np.diff(rows) > 0).all() for rows in batches)


def test_the_number_of_steps_is_no_secret_of_the_client():
    for size in (0, 1, 2000):
        assert [len(turn_batches(SEEDED, wide(size), 64, e)) for e in (0, 1)] == [4, 4]
    shuffled = dataclasses.replace(SEEDED, rate=None)  # the control: there it is
    assert len(turn_batches(shuffled, wide(2000), 64, 0)) != len(
        turn_batches(shuffled, wide(1), 64, 0)
    )


def test_coins_come_from_the_secret_and_not_from_the_turn():
    secret = dataclasses.replace(SEEDED, secret=True)
    one, other = (turn_batches(secret, wide(chosen=secret), 64, 0)[0] for _ in range(2))
    assert not np.array_equal(one, other)
    same = wide(chosen=secret)
    first, again = (turn_batches(secret, same, 64, 0)[0] for _ in range(2))
    assert np.array_equal(first, again)
    public = [turn_batches(SEEDED, wide(), 64, 0)[0] for _ in range(2)]
    assert np.array_equal(*public)


def test_a_rate_of_one_takes_everything_in_every_step():
    everything = dataclasses.replace(SEEDED, rate=1.0)
    assert all(len(rows) == 50 for rows in turn_batches(everything, wide(50), 4, 0))


@pytest.mark.parametrize("method", ["bias", "head"])
@pytest.mark.parametrize("together", [2, 5])
def test_clients_in_a_pass_equal_one_by_one_with_empty_and_large_batches(method, together):
    one, many = (train(method, SEEDED, together=k) for k in (1, together))
    scale = max(float(update.norm()) for update in one)
    assert all(bool(update.any()) for update in one)  # noise, also without a single example
    assert max(float((a - b).norm()) for a, b in zip(one, many, strict=True)) < 1e-5 * scale
    other = train(method, dataclasses.replace(SEEDED, rate=0.9), together=together)
    assert max(float((a - b).norm()) for a, b in zip(one, other, strict=True)) > 1e-2 * scale


def test_the_denominator_is_the_batch_size_whatever_was_drawn():
    """Without noise and clip, a step at rate 1 is the sum of all gradients over B."""
    free = GradientPrivacy(float("inf"), 0.0, by_example=True, rate=1.0, steps=1)
    table, model = Pictures(), tuned("head")
    optimizer = OptimizerSettings(lr=1.0, momentum=0.0, nesterov=False, weight_decay=0.0)
    updates = []
    for size in (4, 8):
        settings = LocalSettings(epochs=1, batch_size=size, optimizer=optimizer, privacy=free)
        trainer = many_trainer(model, settings, clients_per_pass=1)
        start = read_delta(tuned("head"))
        (result,) = trainer({DELTA: start}, turns(table)[2:3])
        updates.append(result.payload[DELTA])
    torch.testing.assert_close(updates[0], 2 * updates[1])
