"""Per-example gradients against one-by-one gradients and opacus; private steps in the limit."""

from __future__ import annotations

import dataclasses
import math

import pytest
import support
import torch

from fedpeft.client.local import local_trainer
from fedpeft.client.private import (
    GradientPrivacy,
    check_rows,
    kept_root,
    noised,
    one_by_one,
    row_gradients,
    with_root,
)
from fedpeft.client.turns import DELTA, ClientTurn
from fedpeft.core.errors import PrivacyError
from fedpeft.core.noise import clip_rows, gaussian, seeded_root
from fedpeft.data.examples import ClientData
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.tuning.methods import METHODS, TuningRequest, tune
from fedpeft.tuning.tuned import read_delta

VIT = "vit"
CLAIMED = [name for name, m in METHODS.items() if m.vmaps and VIT not in m.refused]
SMALL = {
    "miss": {"r": 4},
    "psoft": {"r": 4},
    "road": {"group_size": 16},
    "vblora": {"vector_length": 16, "num_vectors": 8},
}
EXAMPLE = GradientPrivacy(1.0, 0.0, by_example=True, secret=True)


def points(number=6):
    batch = support.federated().train.batch(range(number), seed=None)
    return batch, torch.arange(number)


def turn(client="client-2", memory=None):
    data = support.federated()
    kept = secret(1) if memory is None else memory
    return ClientTurn(1, client, ClientData(data.train, data.clients[client]), kept, 7, 0)


def secret(number):
    """The memory of a client whose secret root is known to the test."""
    return {"gradient.root": seeded_root(number)}


def tuned_vit(method, name="preset:tiny-vit"):
    request = ModelRequest(name=name, task=None, num_labels=4, config=None, revision=None)
    return tune(load_model(request), TuningRequest(method, SMALL.get(method, {}), seed=1))


def images(number=3):
    generator = torch.Generator().manual_seed(1)
    config = tuned_vit("head").loaded.module.config
    shape = (number, config.num_channels, config.image_size, config.image_size)
    pixels = torch.randn(shape, generator=generator)
    return {"pixel_values": pixels, "labels": torch.arange(number) % 4}, torch.arange(number)


def spread(model):
    """Move the delta away from its initial zeros, which hide faults."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_clipped_rows_and_noise_are_divided_by_the_batch_size_of_the_experiment():
    """Rows of lengths 5 and 0.5 under a bound of 1, in a batch that was to have four."""
    rows, noise = torch.tensor([[3.0, 4.0], [0.0, 0.5]]), torch.tensor([8.0, -2.0])
    found = noised(EXAMPLE, clip_rows(rows, 1.0).sum(0), 4, noise)
    torch.testing.assert_close(found, torch.tensor([0.6 + 8, 0.8 + 0.5 - 2]) / 4)


@pytest.mark.parametrize("method", CLAIMED)
def test_rows_equal_one_by_one_for_every_method_that_is_claimed(method):
    model = tuned_vit(method)
    spread(model)
    batch, keys = images()
    expected, _ = one_by_one(model, batch, keys)
    found = row_gradients(model)(batch, keys)
    assert float(expected.abs().max()) > 0
    assert torch.allclose(found, expected, atol=1e-3 * float(expected.abs().max()))
    check_rows(model, row_gradients(model), batch, keys)


def test_the_mean_of_the_rows_is_the_batch_gradient_with_dropout():
    model = support.tuned(dropout=0.5)
    batch, keys = points()
    rows, active = one_by_one(model, batch, keys)
    assert torch.allclose(row_gradients(model)(batch, keys), rows, atol=1e-6)
    with model.dropout.using(keys):
        loss = model.loaded.task.score(model.model, batch).loss_B.mean()
    loss.backward()
    zeros = {n: torch.zeros_like(p) for n, p in model.parameters.items()}
    grads = {n: p.grad if p.grad is not None else zeros[n] for n, p in model.parameters.items()}
    assert torch.allclose(rows.mean(0), model.spec.flatten(grads), atol=1e-6)
    assert 0 < float(active.mean()) < 1  # a layer that takes no part is known


@pytest.mark.filterwarnings("ignore")
def test_rows_equal_opacus():
    opacus = pytest.importorskip("opacus")
    model = support.tuned(dropout=0.0)
    batch, keys = points()
    rows = row_gradients(model)(batch, keys)
    wrapped = opacus.GradSampleModule(model.model, loss_reduction="sum")
    logits = wrapped(batch["x"])
    torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="sum").backward()
    parts = [
        (p.grad_sample if getattr(p, "grad_sample", None) is not None else p.new_zeros(6, *p.shape))
        for p in model.parameters.values()
    ]
    assert torch.allclose(rows, torch.cat([part.flatten(1) for part in parts], 1), atol=1e-6)


def test_gradients_that_mix_examples_are_refused():
    model = support.tuned()
    batch, keys = points()

    def mixed(rows, keys_B):
        found, _ = one_by_one(model, rows, keys_B)
        return found.mean(0).expand_as(found)

    with pytest.raises(PrivacyError, match=r"differ from one-by-one.*bounds nothing"):
        check_rows(model, mixed, batch, keys)


def update(privacy, *, batch_size=1, memory=None):
    settings = support.settings(batch_size=batch_size, privacy=privacy)
    model = support.tuned()
    start = read_delta(model)
    (result,) = local_trainer(model, settings)({DELTA: start}, [turn(memory=memory)])
    return result.payload[DELTA]


def test_without_noise_and_clip_it_is_plain_training():
    plain = update(None)
    limit = update(dataclasses.replace(EXAMPLE, clip_norm=math.inf))
    assert torch.allclose(limit, plain, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(update(dataclasses.replace(EXAMPLE, clip_norm=0.1)), plain, rtol=0.1)


def test_noise_follows_the_clients_secret_and_not_the_turn():
    noisy = dataclasses.replace(EXAMPLE, deviation=1.0)
    one, again = update(noisy), update(noisy)
    other = update(noisy, memory=secret(2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    seeded = dataclasses.replace(noisy, secret=False)
    assert torch.equal(update(seeded, memory={}), update(seeded))
    assert with_root(seeded, turn()).memory["gradient.root"].equal(seeded_root(turn().seed))


def test_a_client_draws_its_secret_once_and_keeps_it():
    first, other = (with_root(EXAMPLE, turn(memory={})) for _ in range(2))
    kept = kept_root(EXAMPLE, first)
    assert kept["gradient.root"].shape == (32,)
    assert not kept["gradient.root"].equal(kept_root(EXAMPLE, other)["gradient.root"])
    again = kept_root(EXAMPLE, with_root(EXAMPLE, turn(memory=kept)))
    assert again["gradient.root"].equal(kept["gradient.root"])
    model = support.tuned()
    trainer = local_trainer(model, support.settings(privacy=EXAMPLE))
    (result,) = trainer({DELTA: read_delta(model)}, [turn(memory=kept)])
    assert result.memory["gradient.root"].equal(kept["gradient.root"])
    seeded = dataclasses.replace(EXAMPLE, secret=False)
    for public in (
        None,
        seeded,
        GradientPrivacy(1.0, 1.0),
    ):  # noise from the seed leaves nothing behind
        assert kept_root(public, with_root(public, turn(memory={}))) == {}


def private_gradient(chosen, rows, noise):
    return noised(chosen, clip_rows(rows, chosen.clip_norm).sum(0), 8, noise)


def test_one_example_moves_a_step_by_at_most_the_bound():
    rows = 50 * torch.randn(8, 40, generator=torch.Generator().manual_seed(3))
    none = torch.zeros(40)
    whole = private_gradient(EXAMPLE, rows, none)
    without = private_gradient(EXAMPLE, rows[1:], none)
    assert float((whole - without).norm()) <= 1.0 / 8 + 1e-6
    loose = dataclasses.replace(EXAMPLE, clip_norm=math.inf)
    far = private_gradient(loose, rows, none) - private_gradient(loose, rows[1:], none)
    assert float(far.norm()) > 1.0


def test_the_papers_mechanism_in_both_variants():
    long, size = torch.full((100_000,), 1.0), 100_000  # norm 316
    noise = gaussian(seeded_root(1), size, 3.378, "x")
    as_coded = noised(GradientPrivacy(math.inf, 3.378, divided=False), long, 64, noise)
    assert float(as_coded.mean()) == pytest.approx(1.0, abs=0.05)  # the clip is a no-op
    assert float(as_coded.std()) == pytest.approx(3.378, rel=0.01)
    noise = gaussian(seeded_root(1), size, 1.511, "x")
    as_written = noised(GradientPrivacy(1.0, 1.511), long, 64, noise)
    assert float(as_written.std()) == pytest.approx(1.511 / 64, rel=0.01)
    clipped = noised(GradientPrivacy(1.0, 0.0), long, 64, torch.zeros(size))
    assert float(clipped.double().norm()) <= 1.0


def release_of(table, *, origin="a", seeded=False):
    """The update of a turn, nearly all noise: its gradients are clipped to almost nothing."""
    model = support.tuned()
    chosen = dataclasses.replace(EXAMPLE, clip_norm=1e-9, deviation=1.0, secret=not seeded)
    settings = support.settings(privacy=chosen)
    data = ClientData(table, support.federated().clients["client-2"])
    asked = ClientTurn(1, "client-2", data, secret(1), 7, 0, origin=origin)
    (result,) = local_trainer(model, settings)({DELTA: read_delta(model)}, [asked])
    return result.payload[DELTA]


def test_noise_of_a_step_covers_what_was_noised():
    """One checkpoint back: the same data repeats the release, other data draws new noise."""
    table = support.federated().train
    other = dataclasses.replace(table, x=table.x + 0.01)
    first = release_of(table)
    assert torch.equal(first, release_of(table))
    for found in (release_of(other), release_of(table, origin="b")):
        assert float((first - found).norm() / first.norm()) > 0.5
    pair = release_of(table, seeded=True), release_of(other, seeded=True)
    torch.testing.assert_close(*pair, atol=1e-6, rtol=0)  # the control: noise from the seed
