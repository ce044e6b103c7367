"""Laws of evaluation side by side: as by one, whoever dies; workers then train as before."""

from __future__ import annotations

import os
import signal

import pytest
import support
import torch

from fedpeft.client.evaluate import Evaluation, evaluate
from fedpeft.client.local import local_trainer
from fedpeft.core.errors import EngineError
from fedpeft.engines.local import LocalEngine
from fedpeft.engines.scoring import make_scorer
from fedpeft.rounds.client_half import ClientHalf
from fedpeft.rounds.round import run_round
from fedpeft.tuning.tuned import read_buffers, read_delta, write_buffers, write_delta

DATA = support.federated(12)  # 300 points: five spans


def engine_of(model, num_workers, *, data=DATA):
    def half():
        return ClientHalf(local_trainer(model, support.settings()), (), (), model.spec)

    scorer = make_scorer(model, data.test, support.settings())
    return LocalEngine(half, data, num_workers=num_workers, scorer=scorer)


def after_rounds(num_workers, *, norm):
    """Three rounds, each followed by an evaluation: the last state, and all evaluations."""
    model, plan = support.tuned(norm=norm), support.plan(norm=norm)
    engine = engine_of(model, num_workers)
    state = plan.algorithm.init(read_delta(model), read_buffers(model))
    found = []
    for _ in range(3):
        state, record = run_round(state, plan, engine)
        assert not record.failures
        found.append(engine.evaluate(state.delta, state.buffers))
    engine.close()
    return state, found


def same(one: Evaluation, other: Evaluation) -> bool:
    fields = ("loss_N", "count_N", "correct_N", "label_N")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in fields)


@pytest.mark.parametrize("norm", [False, True])
def test_workers_change_no_bit_of_an_evaluation(norm):
    alone, by_one = after_rounds(1, norm=norm)
    for num_workers in (2, 3):
        state, found = after_rounds(num_workers, norm=norm)
        assert torch.equal(state.delta, alone.delta)
        assert all(same(a, b) for a, b in zip(found, by_one, strict=True))
    assert not same(by_one[0], by_one[1])  # the negative control: rounds change scores


def test_an_evaluation_is_that_of_the_whole_set():
    state, found = after_rounds(2, norm=True)
    model = support.tuned(norm=True)
    write_delta(model, state.delta)
    write_buffers(model, state.buffers)
    whole = evaluate(model, DATA.test, support.settings(), batch_size=1000)
    assert len(whole.loss_N) == len(DATA.test) == len(found[-1].loss_N)
    assert torch.equal(found[-1].label_N, whole.label_N)
    assert torch.equal(found[-1].correct_N, whole.correct_N)
    assert torch.allclose(found[-1].loss_N, whole.loss_N, rtol=1e-5)


def test_a_worker_that_dies_costs_nothing_of_an_evaluation():
    model = support.tuned()
    engine = engine_of(model, 2)
    delta, buffers = read_delta(model), read_buffers(model)
    expected = engine.evaluate(delta, buffers)
    for worker in engine._pool._workers:
        os.kill(worker.process.pid, signal.SIGKILL)
    again, after = engine.evaluate(delta, buffers), engine.evaluate(delta, buffers)
    engine.close()
    assert same(expected, again) and same(expected, after)


def test_an_empty_set_and_no_set():
    empty = support.Points(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    scorer = make_scorer(support.tuned(), empty, support.settings())
    assert scorer.spans() == []
    model = support.tuned()
    with pytest.raises(EngineError, match="without a test set"):
        support.engine(DATA).evaluate(read_delta(model), read_buffers(model))
