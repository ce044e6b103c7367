"""Laws of the local engine with several clients a pass: grouping, workers, failures, memories."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal

import pytest
import support
import torch

from fedpeft.build.run import build_run
from fedpeft.client.turns import DELTA, LocalResult
from fedpeft.engines.local import LocalEngine, passes_of
from fedpeft.experiment.read import DIGITS, read_experiment
from fedpeft.experiment.resolve import resolve
from fedpeft.rounds.buffered import advance
from fedpeft.rounds.client_half import ClientHalf
from fedpeft.rounds.job import Failure, Job, Reply
from fedpeft.rounds.round import run_round
from fedpeft.tuning.tuned import read_buffers, read_delta

QUICK = [
    "model.name=preset:tiny-vit", "client.epochs=1", "client.batch_size=4", "client.lr=0.05",
    "data.partition.clients=12", "data.budget=200", "data.partition.alpha=1.0",
    "federation.clients_per_round=7",
]  # fmt: skip
TOP_K = support.STAGES["top_k"]


def states(*overrides, rounds=2, method="adapter"):
    """Run a few rounds and return the states; the engine is closed."""
    run = build_run(
        resolve(read_experiment(DIGITS, [*QUICK, f"tuning.method={method}", *overrides]))
    )
    found = [run.start]
    try:
        for _ in range(rounds):
            state, record = advance(found[-1], run.plan, run.engine)
            assert set(record.failures.values()) <= {"dropped out"}
            found.append(state)
    finally:
        run.engine.close()
    return found


def off(one, other):
    """Difference of the last deltas over the distance from the start."""
    return float((one[-1].delta - other[-1].delta).norm() / (one[-1].delta - one[0].delta).norm())


def job(cohort, broadcast=b"x", seed=1):
    blobs = broadcast if isinstance(broadcast, dict) else dict.fromkeys(cohort, broadcast)
    return Job(1, tuple(cohort), blobs, dict.fromkeys(cohort, 0), seed)


def test_neighbours_with_one_broadcast_share_a_pass():
    names = "abcdefg"
    assert passes_of(job(names), 3) == [("a", "b", "c"), ("d", "e", "f"), ("g",)]
    assert passes_of(job(names), 1) == [(name,) for name in names]
    mixed = {name: b"new" if name in "cd" else b"old" for name in names}
    assert passes_of(job(names, mixed), 3) == [("a", "b"), ("c", "d"), ("e", "f", "g")]


def test_workers_and_blocks_do_not_change_a_bit(monkeypatch):
    chosen = ["engine.clients_per_pass=3"]
    alone = states("engine.workers=1", *chosen)
    two = states("engine.workers=2", *chosen)
    monkeypatch.setattr("fedpeft.build.engine.block_size", lambda size, workers: 3)
    blocks = states("engine.workers=1", *chosen)
    assert torch.equal(alone[-1].delta, two[-1].delta)
    assert torch.equal(alone[-1].delta, blocks[-1].delta)
    other = states("engine.workers=1", "engine.clients_per_pass=2")
    assert not torch.equal(alone[-1].delta, other[-1].delta) and off(alone, other) < 1e-4


@pytest.mark.parametrize("changes", [
    [], ["federation.algorithm=fedprox", "federation.options.mu=0.1"],
    ['wire.up=[{name="float16"}]', 'wire.down=[{name="float16"}]'],
    ["privacy.mode=central", "privacy.noise_multiplier=0.1", "privacy.reproducible_noise=true",
     "federation.sampling=poisson"],
    ["privacy.mode=paper", "privacy.epsilon=500.0"],
    ['federation.mode="buffered"', "stability.speed_spread=1.0", "stability.dropout=0.1"],
], ids=["plain", "prox", "float16", "central", "paper", "buffered"])  # fmt: skip
def test_a_run_of_passes_is_a_run_one_by_one(changes):
    if "buffered" in changes[:1]:
        changes = [*changes, "federation.buffered.size=3"]
    one = states("engine.workers=1", "engine.clients_per_pass=1", *changes)
    many = states("engine.workers=1", "engine.clients_per_pass=4", *changes)
    assert off(one, many) < (1e-2 if "float16" in str(changes) else 1e-4)


def passing(up="top_k", *, workers=1, together=3):
    half = functools.partial(support.make_half, up, support.settings(), False)
    data = support.federated()
    return LocalEngine(half, data, num_workers=workers, clients_per_pass=together)


def start(plan):
    model = support.tuned()
    return plan.algorithm.init(read_delta(model), read_buffers(model))


@pytest.mark.parametrize("workers", [1, 2])
def test_models_that_train_one_by_one_do_so_in_a_pass(workers):
    """Bit-equal, memories of stages included."""
    plan, engine = support.plan(up=TOP_K), support.engine(support.federated(), up=TOP_K)
    grouped, one, many = passing(workers=workers), start(plan), start(plan)
    for _ in range(3):
        one, _ = run_round(one, plan, engine)
        many, _ = run_round(many, plan, grouped)
    kept = [e.memories(s.committed) for e, s in ((engine, one), (grouped, many))]
    grouped.close()
    assert torch.equal(one.delta, many.delta) and kept[0].keys() == kept[1].keys()
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_a_round_of_passes_that_was_not_committed_can_be_repeated():
    plan, engine = support.plan(up=TOP_K), passing()
    state, _ = run_round(start(plan), plan, engine)
    first, _ = run_round(state, plan, engine)
    second, _ = run_round(state, plan, engine)
    assert torch.equal(first.delta, second.delta)


def test_bad_data_of_one_client_is_its_own_failure():
    settings = ["engine.workers=1", "engine.clients_per_pass=4", "tuning.method=adapter"]
    run = build_run(resolve(read_experiment(DIGITS, [*QUICK, *settings])))
    _, good = run_round(run.start, run.plan, run.engine)
    bad = good.cohort[1]
    labels = run.data.train.labels.clone()
    labels[run.data.clients[bad]] = 99
    broken = dataclasses.replace(run.data, train=dataclasses.replace(run.data.train, labels=labels))
    run.engine._work = dataclasses.replace(run.engine._work, data=broken)
    _, record = run_round(run.start, run.plan, run.engine)
    assert set(record.failures) == {bad} and "out of bounds" in record.failures[bad]


def fatal_half(victim):
    def train(broadcast, turns):
        for turn in turns:
            if turn.client == victim:
                os.kill(os.getpid(), signal.SIGKILL)
            yield LocalResult({DELTA: broadcast[DELTA] * 0}, 1.0, {})

    return ClientHalf(train, (), (), support.tuned().spec)


def test_a_dead_worker_costs_its_pass_only():
    plan, data = support.plan(cohort=6), support.federated()
    half = functools.partial(fatal_half, "client-4")
    engine = LocalEngine(half, data, num_workers=2, clients_per_pass=2)
    names = [f"client-{i}" for i in range(6)]
    broadcast = next(iter(engine_job(plan).broadcast.values()))
    answers = list(engine.run(job(names, broadcast)))
    engine.close()
    lost = {answer.client for answer in answers if isinstance(answer, Failure)}
    assert lost == {"client-4", "client-5"} and len(answers) == 6
    assert {answer.client for answer in answers if isinstance(answer, Reply)} == set(names) - lost


def engine_job(plan):
    from fedpeft.rounds.round import write_job
    from fedpeft.server.state import RoundContext

    return write_job(start(plan), plan, RoundContext(1, ("client-0",), 6.0, 1))


@pytest.mark.parametrize("changes", [
    ["tuning.method=head"], ["tuning.method=lora", "tuning.blocks=[1, 1]"],
    ["tuning.method=adapter", "tuning.blocks=[1, 1]"],
])  # fmt: skip
def test_passes_start_from_the_frozen_prefix(changes):
    """What is kept of the prefix is computed by the model as it is, bit for bit."""
    method = changes[0].partition("=")[2]
    one = states("engine.workers=1", "engine.clients_per_pass=1", *changes, method=method)
    many = states("engine.workers=1", "engine.clients_per_pass=4", *changes, method=method)
    whole = states(
        "engine.workers=1", "engine.clients_per_pass=4", "client.prefix_cache=off", *changes,
        method=method,
    )  # fmt: skip
    assert off(one, many) < 1e-4 and off(one, whole) < 1e-4
