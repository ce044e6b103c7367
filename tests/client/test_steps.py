from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import support
import torch

from fedpeft.client.batches import batches
from fedpeft.client.local import local_trainer
from fedpeft.client.optimizers import OptimizerSettings
from fedpeft.client.private import GradientPrivacy, with_root
from fedpeft.client.schedules import Schedule
from fedpeft.client.steps import clipped, num_steps, turn_steps
from fedpeft.client.turns import DELTA, ClientTurn
from fedpeft.core.errors import PrivacyError
from fedpeft.data.examples import NO_DATA, ClientData
from fedpeft.data.tensors import TextExamples, flat_tokens
from fedpeft.tuning.tuned import read_delta


def turn(client="client-5", version=0):
    """A turn; `client-i` holds 3 + 4 i examples."""
    data = support.federated()
    return ClientTurn(1, client, ClientData(data.train, data.clients[client]), {}, 5, version)


def train(one=None, **changes):
    tuned = support.tuned()
    trainer = local_trainer(tuned, support.settings(**changes))
    (result,) = trainer({DELTA: read_delta(tuned).clone()}, [one or turn()])
    return result


def shape(**changes):
    """(number of batches, epoch, last) of each step."""
    steps = turn_steps(turn(), support.settings(**changes))
    return [(len(step.batches), step.epoch, step.last) for step in steps]


def test_steps_of_epochs():
    assert shape(epochs=2, batch_size=10) == [(1, 0, False)] * 3 + [(1, 1, True)] * 3


def test_batches_are_added_up_within_an_epoch():
    found = shape(epochs=2, batch_size=10, accumulation=2)
    assert found == [(2, 0, False), (1, 0, False), (2, 1, True), (1, 1, True)]


def test_a_turn_ends_with_what_comes_first():
    assert shape(epochs=None, max_steps=7, batch_size=10)[-1] == (1, 2, True)
    assert len(shape(epochs=9, max_steps=7, batch_size=10)) == 7
    assert len(shape(epochs=2, max_steps=7, batch_size=10)) == 6


def test_a_client_without_examples_takes_no_step():
    none = ClientTurn(1, "empty", NO_DATA, {}, 5, 0)
    chosen = support.settings(epochs=None, max_steps=7)
    assert num_steps(none, chosen) == 0 and list(turn_steps(none, chosen)) == []


@pytest.mark.parametrize("size", [1, 2, 11, 22, 30])
def test_number_of_steps_is_known_beforehand(size):
    for whole in (False, True):
        chosen = support.settings(batch_size=size)
        steps = list(turn_steps(turn(), chosen, whole))
        assert len(steps) == num_steps(turn(), chosen, whole)
        assert sum(len(rows) for step in steps for rows in step.batches) == 2 * 23


def test_poisson_batches_are_counted():
    privacy = GradientPrivacy(1.0, 1.0, by_example=True, rate=0.2, steps=5)
    chosen = support.settings(privacy=privacy, epochs=None, max_steps=12)
    steps = list(turn_steps(with_root(privacy, turn(), chosen), chosen))
    assert [step.epoch for step in steps] == [0] * 5 + [1] * 5 + [2] * 2


def test_added_up_batches_equal_a_large_one():
    """Law: a batch of 8 is two of 4, with dropout; not so for batches of 4 alone."""
    chosen = {"optimizer": OptimizerSettings("adamw", lr=0.1), "gradient_clip": 0.3}
    large = train(batch_size=8, **chosen)
    added = train(batch_size=4, accumulation=2, **chosen)
    torch.testing.assert_close(added.payload[DELTA], large.payload[DELTA], rtol=1e-4, atol=1e-5)
    assert added.metrics == pytest.approx(large.metrics)
    small = train(batch_size=4, **chosen)
    assert (small.payload[DELTA] - large.payload[DELTA]).norm() > 0.1


def test_clip_is_that_of_torch():
    rows = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    for row in (rows[0], rows[1] * 1e-3):
        value = torch.nn.Parameter(torch.zeros(50))
        value.grad = row.clone()
        torch.nn.utils.clip_grad_norm_([value], 0.5)
        torch.testing.assert_close(clipped(row, 0.5), value.grad)
    torch.testing.assert_close(clipped(rows, 0.5)[1], clipped(rows[1], 0.5))
    assert torch.equal(clipped(rows, 1e9), rows)


def test_a_clip_bounds_the_update_of_plain_sgd():
    plain = OptimizerSettings(lr=1.0, momentum=0.0, nesterov=False, weight_decay=0.0)
    free, held = (
        train(max_steps=1, optimizer=plain, gradient_clip=bound).payload[DELTA].norm()
        for bound in (None, 0.01)
    )
    assert held == pytest.approx(0.01, rel=1e-3) and free > 0.05


def test_rates_follow_both_schedules():
    chosen = support.settings(
        epochs=None, max_steps=4, schedule=Schedule("linear"),
        round_schedule=Schedule("linear", final=0.2), rounds=4,
    )  # fmt: skip
    for version, factor in ((0, 0.8), (3, 0.2)):
        scales = [step.scale for step in turn_steps(turn(version=version), chosen)]
        assert scales == pytest.approx([factor * share for share in (1, 0.75, 0.5, 0.25)])


def test_the_round_of_a_schedule_is_that_of_the_servers_state():
    """Turns of buffered training have numbers of their own."""
    chosen = support.settings(round_schedule=Schedule("cosine", final=0.1), rounds=10)
    late = replace(turn(version=2), round=40)
    assert next(turn_steps(late, chosen)).scale == next(turn_steps(turn(version=2), chosen)).scale


@pytest.mark.parametrize("changes", [{"gradient_clip": 1.0}, {"accumulation": 2}])
def test_noised_gradients_are_not_clipped_or_added_up_again(changes):
    chosen = support.settings(privacy=GradientPrivacy(1.0, 1.0, by_example=True), **changes)
    with pytest.raises(PrivacyError, match=r"client.gradient_clip or client.accumulation are not"):
        local_trainer(support.tuned(), chosen)


def texts(count=40):
    lengths = 1 + np.random.default_rng(0).permutation(count)
    tokens, offsets = flat_tokens([[1] * length for length in lengths])
    examples = TextExamples(tokens, offsets, torch.zeros(count, dtype=torch.int64), 0)
    return ClientTurn(1, "texts", ClientData(examples, np.arange(count)), {}, 5, 0)


def padding(one, rows):
    lengths = one.data.examples.lengths(one.data.indices)
    return sum(len(part) * lengths[part].max() - lengths[part].sum() for part in rows)


def test_batches_by_length_pad_less_and_hold_everything():
    one = texts()
    shuffled, sorted_ = batches(one, 6, 0), batches(one, 6, 0, by_length=True)
    assert sorted(np.concatenate(sorted_).tolist()) == list(range(40))
    assert [len(rows) for rows in sorted_] == [len(rows) for rows in shuffled]
    assert padding(one, sorted_) < padding(one, shuffled) / 3
    other = batches(one, 6, 1, by_length=True)
    assert [rows.tolist() for rows in other] != [rows.tolist() for rows in sorted_]


def test_examples_without_lengths_are_only_shuffled():
    plain, sorted_ = (batches(turn(), 4, 0, by_length=value) for value in (False, True))
    assert all(np.array_equal(a, b) for a, b in zip(plain, sorted_, strict=True))
