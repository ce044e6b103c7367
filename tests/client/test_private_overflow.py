"""Under privacy, being finite is data: an example that overflows leaves no trace but in the noise.

Kinds of overflow: a picture that is not a number, one whose activations overflow, and a broadcast
that makes one client's logits overflow and no other's.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch

from fedpeft.build.prefix import with_prefix
from fedpeft.client.optimizers import OptimizerSettings
from fedpeft.client.passes.many import many_trainer
from fedpeft.client.private import GradientPrivacy, check_rows, row_gradients
from fedpeft.client.settings import LocalSettings
from fedpeft.client.turns import DELTA, ClientTurn
from fedpeft.core.errors import DeltaMismatchError, PrivacyError
from fedpeft.core.noise import bounded, clip_rows
from fedpeft.data.examples import ClientData, Federated
from fedpeft.experiment.read import DIGITS, read_experiment
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.rounds.client_half import PRIVATE_NOTES, ClientHalf, run_turns
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.tuned import read_delta
from fedpeft.wire import messages
from fedpeft.wire.private_stages import Guard, central, local

GUARD = Guard(1.0, 0.5)
EXAMPLE = GradientPrivacy(1.0, 0.5, by_example=True, secret=True)
MODES = {"central": central(GUARD), "local": local(GUARD), "example": None}
BAD = 7  # an example of client "b"


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures of a tiny ViT; one of them may be spoilt."""

    spoilt: float | None = None

    def __len__(self):
        return 16

    def batch(self, indices, *, seed):
        index = torch.as_tensor(list(indices))
        pixels = torch.randn(16, *shape(), generator=torch.Generator().manual_seed(2))
        if self.spoilt is not None:
            pixels[BAD] = self.spoilt
        return {"pixel_values": pixels[index], "labels": index % 3}


@functools.cache
def shape():
    config = tuned("head").loaded.module.config
    return config.num_channels, config.image_size, config.image_size


def tuned(method):
    loaded = load_model(ModelRequest(name="preset:tiny-vit", num_labels=3))
    return tune(loaded, TuningRequest(method, {}, seed=1))


def replies(mode, method, table, *, together, frozen=False, scale=1.0, turns="abc"):
    """The replies and memories of three clients, from one broadcast."""
    model, stage = tuned(method), MODES[mode]
    chosen = EXAMPLE if mode == "example" else None
    optimizer = OptimizerSettings(lr=0.1, weight_decay=0.0)
    settings = LocalSettings(epochs=2, batch_size=4, optimizer=optimizer, privacy=chosen)
    start = scale * read_delta(model)
    if frozen:
        rows = {"a": np.arange(5), "b": np.arange(5, 11), "c": np.arange(11, 16)}
        data = Federated(table, table, rows, 3, None, None, "pictures", {})
        sets = (f"privacy.mode={mode}", "privacy.noise_multiplier=1.0")
        cut = with_prefix(read_experiment(DIGITS, sets), model, data, settings)
        assert "once for each of" in cut.note.words
        model, table = cut.tuned, cut.data.train
    trainer = many_trainer(model, settings, clients_per_pass=together)
    half = ClientHalf(trainer, (stage,) if stage else (), (), model.spec, private=True)
    parts = dict(zip("abc", np.split(np.arange(16), [5, 11]), strict=True))
    asked = [ClientTurn(1, n, ClientData(table, parts[n]), {}, 3, 0) for n in turns]
    return run_turns(half, messages.encode({DELTA: start}), asked)


PATHS = [("bias", 1, False), ("bias", 3, False), ("head", 1, True), ("head", 3, True)]
IDS = ["plain", "plain-in-a-pass", "frozen", "frozen-in-a-pass"]


@pytest.mark.parametrize(("method", "together", "frozen"), PATHS, ids=IDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("spoilt", [math.nan, 3e38])
def test_a_reply_looks_the_same_whatever_overflows(mode, method, together, frozen, spoilt):
    good = replies(mode, method, Pictures(), together=together, frozen=frozen)
    bad = replies(mode, method, Pictures(spoilt), together=together, frozen=frozen)
    for (blob, memory), (other, kept) in zip(good, bad, strict=True):
        (tensors, notes), (theirs, words) = messages.decode(blob), messages.decode(other)
        assert notes == words == dict(PRIVATE_NOTES)
        assert torch.isfinite(theirs[DELTA]).all()
        assert len(blob) == len(other)
        assert (tensors.keys(), memory.keys()) == (theirs.keys(), kept.keys())
        norms = [float(t[DELTA].norm()) for t in (tensors, theirs)]
        assert mode == "central" or 0.3 < norms[0] / norms[1] < 3  # noise hides the zeros


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("together", [1, 3])
def test_the_largest_broadcast_gets_a_reply(mode, together):
    scale = 0.99e15 / float(read_delta(tuned("bias")).abs().max())
    for blob, _ in replies(mode, "bias", Pictures(), together=together, scale=scale):
        assert torch.isfinite(messages.decode(blob)[0][DELTA]).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_larger_broadcast_is_refused_whatever_the_data(mode):
    for table in (Pictures(), Pictures(math.nan)):
        with pytest.raises(DeltaMismatchError, match=r"broadcast refused: delta has numbers up to"):
            replies(mode, "bias", table, together=1, scale=1e38)


def test_without_privacy_it_is_seen():
    """The negative control: the same picture spoils the update of its client."""
    model = tuned("bias")
    settings = LocalSettings(epochs=1, batch_size=4, optimizer=OptimizerSettings(lr=0.1))
    half = ClientHalf(many_trainer(model, settings, clients_per_pass=1), (), (), model.spec)
    turn = ClientTurn(1, "b", ClientData(Pictures(math.nan), np.arange(5, 11)), {}, 3, 0)
    ((blob, _),) = run_turns(half, messages.encode({DELTA: read_delta(model)}), [turn])
    assert not torch.isfinite(messages.decode(blob)[0][DELTA]).all()


@pytest.mark.parametrize("bound", [1.0, math.inf])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_counts_as_zeros_and_moves_no_other(bound, bad):
    rows = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    clean = clip_rows(rows, bound)
    spoilt = rows.clone()
    spoilt[2, 5] = bad
    found = clip_rows(spoilt, bound)
    assert not found[2].any()
    assert torch.equal(found[[0, 1, 3]], clean[[0, 1, 3]]) and clean[2].any()
    assert not bounded(spoilt[2], bound).any()


@pytest.mark.parametrize("length", [1e29, 1e35, 3e38])
def test_the_bound_holds_up_to_the_largest_float(length):
    row = torch.full((1000,), length / math.sqrt(1000))
    found = bounded(row, 1.0)
    assert float(found.double().norm()) <= 1.0
    assert bool(found.any()) == (length < 1e30)  # beyond, the factor is too small a float


def test_the_self_check_reads_no_number_of_the_data():
    model = tuned("bias")
    keys = torch.arange(2)
    plain = Pictures().batch([0, 1], seed=None)
    spoilt = Pictures(math.nan).batch([BAD, 1], seed=None)
    masks = [check_rows(model, row_gradients(model), batch, keys) for batch in (plain, spoilt)]
    assert torch.equal(*masks)
    errors = []
    for batch in (plain, spoilt):
        with pytest.raises(PrivacyError, match="differ from one-by-one") as caught:
            check_rows(model, lambda b, k: 0.8 * row_gradients(model)(b, k), batch, keys)
        errors.append(str(caught.value))
    assert errors[0] == errors[1] and "0.2" not in errors[0]


def test_the_decision_on_a_frozen_prefix_reads_no_number_of_the_data():
    notes = []
    for table in (Pictures(), Pictures(math.nan)):
        rows = {"b": np.array([BAD, 8])}
        data = Federated(table, table, rows, 3, None, None, "pictures", {})
        sets = ("privacy.mode=example", "privacy.noise_multiplier=1.0")
        notes.append(
            with_prefix(read_experiment(DIGITS, sets), tuned("head"), data, LocalSettings())
        )
    assert notes[0].note == notes[1].note and "once for each of" in notes[0].note.words
