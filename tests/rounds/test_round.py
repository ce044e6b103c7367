"""Laws of a round: order, parity of workers, failures as data."""

from __future__ import annotations

import dataclasses
import functools
import random

import pytest
import support
import torch

from fedpeft.client.turns import DELTA
from fedpeft.core.deltas import DeltaSpec, digest_of
from fedpeft.core.errors import DeltaMismatchError, RoundError
from fedpeft.rounds.job import Failure, Reply
from fedpeft.rounds.round import run_round, write_job
from fedpeft.rounds.round_plan import RoundPlan, turn_seed
from fedpeft.server import algorithms
from fedpeft.server.sampling import sampler_of
from fedpeft.server.state import RoundContext, Update
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


@pytest.mark.parametrize(("chain", "norm"), [
    pytest.param(chain, norm, id=f"{name}-{'batchnorm' if norm else 'plain'}",
                 marks=[] if norm == (name in ("float16", "top_k+int8")) else [pytest.mark.slow])
    for name, chain in support.STAGES.items() for norm in (False, True)
])  # fmt: skip
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


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name in ("fedavgm", "fedyogi") else [pytest.mark.slow])
    for name in ALGORITHMS
])  # fmt: skip
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


@pytest.mark.parametrize("reached", [True, False])
def test_only_broadcasts_that_were_sent_are_counted(reached):
    def fail_first(answers):
        return [Failure(answers[0].client, "is gone", reached), *answers[1:]]

    (whole, *_), (lacking, *_) = rounds()[1], rounds(change=fail_first)[1]
    cohort = len(whole.cohort)
    assert (whole.messages_down, whole.messages_up) == (cohort, cohort)
    assert (lacking.messages_down, lacking.messages_up) == (cohort - (not reached), cohort - 1)
    assert lacking.bytes_down / lacking.messages_down == whole.bytes_down / cohort


@functools.cache
def delta_without_the_first():
    """The delta after rounds whose first client does not answer."""

    def dropped(answers):
        return [Failure(answers[0].client, "dropped"), *answers[1:]]

    return rounds(change=dropped)[0].delta


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

    state, records = rounds(change=damaged)
    assert all(words in reason for r in records for reason in r.failures.values())
    assert [len(r.failures) for r in records] == [1, 1, 1]
    assert torch.equal(state.delta, delta_without_the_first())


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
    sent = len(messages.encode({DELTA: torch.zeros(spec.num_params)}))
    assert [record.bytes_down for record in records] == [4 * sent] * 3


def messages_of(broadcast, count=8, size=7178):
    """The first number that each client reads of its message, five times over."""
    clients = tuple(str(number) for number in range(count))
    algorithm = dataclasses.replace(algorithms.fedavg(), broadcast=broadcast)
    plan = dataclasses.replace(
        support.plan(algorithm=algorithm),
        spec=DeltaSpec(("w",), ((size,),)), expected_cohort=float(count),
    )  # fmt: skip
    start = algorithm.init(torch.zeros(size), torch.empty(0))
    for _ in range(5):
        job = write_job(start, plan, RoundContext(1, clients, float(count), 1))
        read = {c: messages.decode(blob)[0][DELTA] for c, blob in job.broadcast.items()}
        yield {client: float(delta[0]) for client, delta in read.items()}, job


def test_each_client_gets_its_own_message():
    """Freed tensors give their addresses to the next: an address tells nothing apart."""

    def personal(state, client):
        return {DELTA: state.delta + float(client)}

    for read, _ in messages_of(personal):
        assert read == {client: float(client) for client in read}


def test_a_tensor_that_is_changed_in_place_is_another_message():
    kept = torch.zeros(7178)

    def reused(state, client):
        return {DELTA: kept.fill_(float(client))}

    for read, _ in messages_of(reused):
        assert read == {client: float(client) for client in read}


def test_clients_that_get_one_tensor_share_one_message():
    for _, job in messages_of(lambda state, client: {DELTA: state.delta}):
        assert len({id(blob) for blob in job.broadcast.values()}) == 1


SHORT = DeltaSpec(("w",), ((2,),))
LONG = DeltaSpec(("w",), ((4,),))


class Echo:
    """Every client sends ones of the length that it was sent."""

    def clients(self):
        return ("a", "b")

    def run(self, job):
        for client in job.cohort:
            size = messages.decode(job.broadcast[client])[0][DELTA].numel()
            notes = {"weight": "1"}
            yield Reply(client, messages.encode({DELTA: torch.ones(size)}, notes), 0.0)


def mixed(broadcast):
    def combine(updates, context):
        total = torch.zeros(4)
        for update in updates:
            assert update.spec == (SHORT if update.client == "b" else LONG)
            total[: update.spec.num_params] += update.payload[DELTA]
        return Update(total / 2, torch.empty(0), 2.0)

    algorithm = dataclasses.replace(algorithms.fedavg(), broadcast=broadcast, combine=combine)
    plan = RoundPlan(
        algorithm, sampler_of(lambda clients, number: clients), LONG, DeltaSpec((), ()), 1, 2.0,
        client_specs={"b": SHORT},
    )  # fmt: skip
    return run_round(algorithm.init(torch.zeros(4), torch.empty(0)), plan, Echo())


def test_clients_of_different_shapes_are_combined_by_their_specs():
    def cut(state, client):
        return {DELTA: state.delta[:2] if client == "b" else state.delta}

    state, record = mixed(cut)
    assert state.delta.tolist() == [1.0, 1.0, 0.5, 0.5] and not record.failures


def test_a_broadcast_of_another_shape_than_the_client_has_is_refused():
    with pytest.raises(DeltaMismatchError, match=r"found float32\[4\], expected float32\[2\]"):
        mixed(lambda state, client: {DELTA: state.delta})


def test_the_server_remembers_the_last_turn_of_those_who_answered():
    silent, cohorts = "client-0", []

    def without(answers):
        cohorts.append({answer.client for answer in answers} - {silent})
        return [answer for answer in answers if answer.client != silent]

    state, _ = rounds(change=without)
    last = {client: number for number, cohort in enumerate(cohorts, 1) for client in cohort}
    assert state.committed == last and silent not in last


def test_a_turns_seed_depends_on_root_round_and_client():
    turns = [(1, 2, "a"), (2, 2, "a"), (1, 3, "a"), (1, 2, "b")]
    assert len({turn_seed(*turn) for turn in turns}) == len(turns)
    assert turn_seed(1, 2, "a") == turn_seed(1, 2, "a")
