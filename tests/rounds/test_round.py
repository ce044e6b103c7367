"""Laws of a round: order, parity of workers, failures as data."""

from __future__ import annotations

import random

import pytest
import support
import torch

from fedpeft.core.deltas import digest_of
from fedpeft.core.errors import RoundError
from fedpeft.rounds.job import Failure, Reply
from fedpeft.rounds.round import run_round
from fedpeft.server import algorithms
from fedpeft.tuning.tuned import read_buffers, read_delta
from fedpeft.wire import messages

ALGORITHMS = {
    "fedavg": algorithms.fedavg(),
    "fedavgm": algorithms.fedavgm(),
    "fedadam": algorithms.fedadam(lr=0.05),
    "fedyogi": algorithms.fedyogi(lr=0.05),
    "fedadagrad": algorithms.fedadagrad(lr=0.05),
}


class Changed:
    """An engine whose answers pass through a function of the test."""

    def __init__(self, engine, change):
        self.engine, self.change = engine, change

    def clients(self):
        return self.engine.clients()

    def run(self, job):
        return iter(self.change(list(self.engine.run(job))))


def rounds(number=3, *, change=lambda answers: answers, plan=None, norm=False, **options):
    """Run some rounds and return the last state and all records."""
    plan = plan or support.plan(up=options.get("up", ()), norm=norm)
    engine = support.engine(support.federated(), norm=norm, **options)
    model = support.tuned(norm=norm)
    state = plan.algorithm.init(read_delta(model), read_buffers(model))
    records = []
    try:
        for _ in range(number):
            state, record = run_round(state, plan, Changed(engine, change))
            records.append(record)
    finally:
        engine.close()
    return state, records


def shuffled(answers):
    random.Random(len(answers)).shuffle(answers)
    return answers[::-1]


@pytest.mark.parametrize("chain", support.STAGES.values(), ids=support.STAGES)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batchnorm"])
def test_workers_blocks_and_order_do_not_change_a_run(chain, norm):
    reference, records = rounds(up=chain, norm=norm)
    for options in ({"num_workers": 2}, {"num_workers": 3, "block": 1}, {"change": shuffled}):
        state, others = rounds(up=chain, norm=norm, **options)
        assert torch.equal(state.delta, reference.delta)
        assert torch.equal(state.buffers, reference.buffers)
        for mine, theirs in zip(records, others, strict=True):
            assert (mine.cohort, mine.metrics, mine.bytes_up, mine.bytes_down) == (
                theirs.cohort, theirs.metrics, theirs.bytes_up, theirs.bytes_down,
            )  # fmt: skip


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_run_the_same_with_workers(name):
    plans = [support.plan(algorithm=ALGORITHMS[name]) for _ in range(2)]
    one, two = (rounds(plan=plan, num_workers=k)[0] for k, plan in enumerate(plans, 1))
    assert digest_of(one.delta) == digest_of(two.delta)
    assert one.round == 3


def test_another_seed_is_another_run():
    assert not torch.equal(rounds()[0].delta, rounds(plan=support.plan(seed=2))[0].delta)


def test_taking_replies_as_they_come_would_change_the_sum():
    """The negative control of the order law: the sum really depends on the order."""
    update = [torch.tensor([1e8]), torch.tensor([1.0]), torch.tensor([-1e8])]
    assert update[0] + update[1] + update[2] != update[0] + update[2] + update[1]


def test_failures_are_data():
    def fail_first(answers):
        return [Failure(answers[0].client, "out of memory"), *answers[1:]]

    state, records = rounds(change=fail_first)
    for record in records:
        (reason,) = record.failures.values()
        assert reason == "out of memory"
    assert state.round == 3


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda blob: blob[:-4], "cannot be decoded"),
        (lambda blob: b"", "cannot be decoded"),
        (lambda blob: messages.encode({"delta": torch.zeros(3)}, {"weight": "1"}), "expected"),
        (lambda blob: messages.encode({"delta": torch.zeros(3).int()}), "expected"),
        (lambda blob: messages.encode({"other": torch.zeros(3)}), "delta"),
        (lambda blob: scaled(blob, float("nan")), "not finite"),
        (lambda blob: scaled(blob, 1.0, "-3"), "weight is -3"),
        (lambda blob: scaled(blob, 1.0, "inf"), "weight is inf"),
    ],
)
def test_a_bad_reply_is_refused_and_changes_nothing(damage, words):
    def damaged(answers):
        first = answers[0]
        return [Reply(first.client, damage(first.blob), 0.0), *answers[1:]]

    def dropped(answers):
        return [Failure(answers[0].client, "dropped"), *answers[1:]]

    state, records = rounds(change=damaged)
    assert all(words in reason for r in records for reason in r.failures.values())
    assert [len(r.failures) for r in records] == [1, 1, 1]
    assert torch.equal(state.delta, rounds(change=dropped)[0].delta)


def scaled(blob, factor, weight=None):
    tensors, notes = messages.decode(blob)
    return messages.encode({"delta": tensors["delta"] * factor}, notes | {"weight": weight or "1"})


def test_too_few_replies_end_the_run_with_the_reasons():
    with pytest.raises(RoundError, match=r"0 of 4 clients.*First reasons: client-\d: no power"):
        rounds(change=lambda answers: [Failure(a.client, "no power") for a in answers])


def test_a_client_that_never_answers_is_a_failure():
    _, records = rounds(change=lambda answers: answers[1:])
    assert all(list(r.failures.values()) == ["no answer"] for r in records)


def test_bytes_are_those_of_the_messages():
    seen = []

    def count(answers):
        seen.append(sum(len(answer.blob) for answer in answers))
        return answers

    _, records = rounds(change=count)
    assert [record.bytes_up for record in records] == seen
    spec = support.tuned().spec
    assert all(spec.num_bytes * 4 < record.bytes_down < seen[0] for record in records)
