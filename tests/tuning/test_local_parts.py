"""Local parts of a delta: never sent, kept per client, updated exactly once per turn."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fedpeft.client.local import local_trainer
from fedpeft.client.passes.many import why_one_by_one
from fedpeft.client.private import GradientPrivacy
from fedpeft.core.errors import PrivacyError, TuningError
from fedpeft.engines.local import LocalEngine
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.rounds.client_half import ClientHalf
from fedpeft.rounds.round import run_round
from fedpeft.testing.world import make_data, make_plan, make_settings, make_tuned, same_state
from fedpeft.tuning.local_parts import keep_local
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.tuned import read_delta
from fedpeft.wire import messages

DATA = make_data()


def personal():
    return keep_local(make_tuned(), ["head"])


def make_half():
    tuned = personal()
    return ClientHalf(local_trainer(tuned, make_settings()), (), (), tuned.spec)


def plan_of(tuned):
    return dataclasses.replace(make_plan(cohort=6), spec=tuned.spec)


def rounds(engine, count, state=None):
    tuned = personal()
    plan = plan_of(tuned)
    state = state or plan.algorithm.init(read_delta(tuned), torch.empty(0))
    for _ in range(count):
        state, record = run_round(state, plan, engine)
        assert not record.failures
    return state


def own(engine, state):
    return {name.split("\n")[0]: value for name, value in engine.memories(state.committed).items()}


def test_what_stays_is_in_no_message():
    tuned = personal()
    assert all(not name.startswith("head.") for name in tuned.spec.names)
    assert tuned.local_spec.names == ("head.bias", "head.weight")

    class Listening(LocalEngine):
        def run(self, job):
            for answer in super().run(job):
                tensors, _ = messages.decode(answer.blob)
                assert {name: t.numel() for name, t in tensors.items()} == {
                    "delta": tuned.spec.num_params
                }
                yield answer

    rounds(Listening(make_half, DATA), 1)


def test_each_client_keeps_its_own_and_workers_change_nothing():
    one, two = LocalEngine(make_half, DATA), LocalEngine(make_half, DATA, num_workers=2)
    try:
        first, second = rounds(one, 2), rounds(two, 2)
        assert same_state(first, second)
        mine, theirs = own(one, first), own(two, second)
        assert mine.keys() == set(DATA.clients)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert len({value.sum().item() for value in mine.values()}) == len(mine)
    finally:
        two.close()


def test_a_run_that_resumes_finds_what_stayed():
    straight_engine = LocalEngine(make_half, DATA)
    straight = rounds(straight_engine, 2)
    halfway_engine = LocalEngine(make_half, DATA)
    halfway = rounds(halfway_engine, 1)
    resumed_engine = LocalEngine(make_half, DATA)
    resumed_engine.restore(halfway_engine.memories(halfway.committed), halfway.committed)
    assert same_state(rounds(resumed_engine, 1, halfway), straight)
    lost = rounds(LocalEngine(make_half, DATA), 1, halfway)  # the negative control
    assert not torch.equal(lost.delta, straight.delta)


def test_a_part_that_is_not_there_is_refused():
    with pytest.raises(TuningError, match="local part 'haed': the delta has no parameter"):
        keep_local(make_tuned(), ["haed"])
    everything = list(make_tuned().spec.names)
    with pytest.raises(TuningError, match="nothing would be left to send"):
        keep_local(make_tuned(), everything)


def test_noised_gradients_with_local_parts_are_refused():
    private = GradientPrivacy("example", 1.0, 1.0, True)
    with pytest.raises(PrivacyError, match="local parts of the delta are not supported"):
        local_trainer(personal(), make_settings(privacy=private))


def test_clients_with_local_parts_train_one_by_one():
    tuned = tune(load_model(ModelRequest("preset:tiny-vit", num_labels=4)), TuningRequest("bias"))
    assert why_one_by_one(tuned, make_settings()) == ""
    assert "parts stay at the clients" in why_one_by_one(
        keep_local(tuned, ["head"]), make_settings()
    )
