"""Laws of the simulated clock and of buffered rounds."""

from __future__ import annotations

import dataclasses
import functools
import math

import pytest
import support
import torch

from fedpeft.core.deltas import digest_of
from fedpeft.core.errors import RoundError
from fedpeft.rounds.attendance import Buffering
from fedpeft.rounds.buffered import advance
from fedpeft.rounds.inflight import Flight, Turn, pack_flight, unpack_flight, without_flight
from fedpeft.server.algorithms import fedadam
from fedpeft.server.availability import DROPPED_OUT, NOT_AVAILABLE, NOT_NEEDED, Conditions
from fedpeft.server.clock import Costs, Stragglers
from fedpeft.server.sampling import fixed
from fedpeft.server.traces import Trace
from fedpeft.tuning.tuned import read_buffers, read_delta

DATA = support.federated()
SIZES = {name: len(rows) for name, rows in DATA.clients.items()}
EQUAL = Costs(rate=math.inf, down=1000, up=1000)
UNEQUAL = Costs(rate=10, down=1000, up=1000, speed_spread=1.0, stragglers=Stragglers("pareto", 1.5))


def world(costs=UNEQUAL, **changes):
    return Conditions(1, SIZES, bytes_up=400, costs=costs, **changes)


def buffering(size=2, concurrency=4, **changes):
    return Buffering(size, concurrency, **changes)


def planned(conditions, *, buffered=None, algorithm=None, up=(), **changes):
    plan = dataclasses.replace(support.plan(algorithm=algorithm, up=up), sampler=fixed())
    return dataclasses.replace(plan, conditions=conditions, buffering=buffered, **changes)


class Counting:
    """An engine that writes down whom it was asked to train."""

    def __init__(self, engine):
        self.engine, self.jobs = engine, []

    def clients(self):
        return self.engine.clients()

    def run(self, job):
        self.jobs.append(job)
        return self.engine.run(job)


def run(plan, number=5, state=None, engine=None, **options):
    """Run some rounds; return the last state, all records and the engine's jobs."""
    engine = engine or support.engine(DATA, up=plan.up, **options)
    counting, model, records = Counting(engine), support.tuned(), []
    state = state or plan.algorithm.init(read_delta(model), read_buffers(model))
    try:
        for _ in range(number):
            state, record = advance(state, plan, counting)
            records.append(record)
    finally:
        engine.close()
    return state, records, counting.jobs


@functools.cache
def synchronous():
    """A run without a clock: the last state, all records and the engine's jobs."""
    return run(planned(None))


@functools.cache
def straight(name):
    """A run in trouble, without interruption and without workers."""
    return run(TROUBLE[name])


def facts(record):
    return dataclasses.replace(record, seconds=0.0)


@pytest.mark.parametrize("chain", support.STAGES.values(), ids=support.STAGES)
def test_equal_turns_with_buffer_and_concurrency_of_a_cohort_are_synchronous(chain):
    plain, records, _ = run(planned(None, up=chain))
    limit = planned(world(EQUAL), buffered=buffering(4, 4), up=chain)
    state, others, _ = run(limit)
    assert torch.equal(state.delta, plain.delta)
    for mine, theirs in zip(others, records, strict=True):
        assert (mine.cohort, mine.metrics, mine.bytes_up, mine.bytes_down) == (
            theirs.cohort, theirs.metrics, theirs.bytes_up, theirs.bytes_down,
        )  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        planned(world(EQUAL), buffered=buffering(3, 4)),
        planned(world(EQUAL), buffered=buffering(4, 5)),
        planned(world(UNEQUAL), buffered=buffering(4, 4)),
    ],
    ids=["smaller buffer", "more at once", "unequal speeds"],
)
def test_away_from_the_limit_it_is_not_synchronous(changed):
    assert not torch.equal(run(changed)[0].delta, synchronous()[0].delta)


def test_conditions_without_trouble_change_nothing_but_the_record():
    plain, records, _ = synchronous()
    state, others, _ = run(planned(world()))
    assert torch.equal(state.delta, plain.delta)
    assert [facts(r) for r in records] == [
        dataclasses.replace(facts(r), simulation={}) for r in others
    ]
    times = [r.simulation["simulated_time"] for r in others]
    assert times == sorted(times) and times[0] > 0


TROUBLE = {
    "synchronous": planned(world(dropout=0.3, deadline=20.0)),
    "over-selection": planned(world(dropout=0.2, enough=2)),
    "buffered": planned(world(dropout=0.2), buffered=buffering(2, 4)),
    "buffered top_k": planned(world(), buffered=buffering(3, 3), up=support.STAGES["top_k"]),
    "buffered adam": planned(
        world(), buffered=buffering(), algorithm=fedadam(lr=0.05)
    ),
}  # fmt: skip


QUICK = ("over-selection", "buffered top_k")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in TROUBLE]
)
def test_workers_and_blocks_do_not_change_a_run(name):
    reference, records, _ = straight(name)
    for options in ({"num_workers": 2}, {"num_workers": 3, "block": 1}):
        state, others, _ = run(TROUBLE[name], **options)
        assert torch.equal(state.delta, reference.delta)
        assert [facts(r) for r in others] == [facts(r) for r in records]


@pytest.mark.parametrize("name", TROUBLE)
def test_only_turns_that_count_are_computed(name):
    _, records, jobs = straight(name)
    for record, job in zip(records, jobs, strict=True):
        assert set(job.cohort) == set(record.cohort) - set(record.failures)
    assert name != "synchronous" or any(r.failures for r in records)


@pytest.mark.parametrize("name", TROUBLE)
def test_a_run_that_goes_on_from_its_state_is_the_same(name):
    plan, (whole, records, _) = TROUBLE[name], straight(name)
    engine = support.engine(DATA, up=plan.up)
    half, first, _ = run(plan, 2, engine=engine)
    again = support.engine(DATA, up=plan.up)
    again.restore(engine.memories(half.committed), half.committed)
    state, rest, _ = run(plan, 3, state=half, engine=again)
    assert digest_of(state.delta) == digest_of(whole.delta)
    assert [facts(r) for r in [*first, *rest]] == [facts(r) for r in records]


def test_forgetting_what_is_under_way_is_noticed():
    plan = TROUBLE["buffered"]
    half, _, _ = run(plan, 2)
    lost = dataclasses.replace(half, memory=without_flight(half.memory))
    assert not torch.equal(run(plan, 3, state=lost)[0].delta, run(plan)[0].delta)


def test_stale_updates_count_less():
    plans = [planned(world(), buffered=buffering(exponent=e)) for e in (0.0, 0.5)]
    (flat, records, _), (aged, _, _) = (run(plan) for plan in plans)
    assert any(age for r in records for age in r.simulation["staleness"].values())
    assert not torch.equal(flat.delta, aged.delta)


def test_a_stale_update_is_divided_by_the_root_of_its_age():
    """Two clients, one five times as slow: its first reply is four steps old."""
    data = support.federated(2)
    conditions = Conditions(1, {"client-0": 1, "client-1": 5}, 0, Costs(rate=1.0, down=1e9))
    model = support.tuned()
    norms = []
    for exponent in (0.0, 0.5):
        plan = planned(conditions, buffered=buffering(1, 2, exponent=exponent))
        state = plan.algorithm.init(read_delta(model), read_buffers(model))
        engine = support.engine(data)
        for _ in range(5):
            state, record = advance(state, plan, engine)
            if record.simulation["staleness"] == {"client-1": 4}:
                norms.append(record.update_norm)
                break
    assert norms[1] == pytest.approx(norms[0] * 5**-0.5)


def test_updates_older_than_allowed_are_not_computed():
    plan = planned(world(), buffered=buffering(2, 5, max_staleness=1))
    _, records, jobs = run(plan, 8)
    reasons = [reason for r in records for reason in r.failures.values()]
    assert reasons and all(reason.startswith("too stale: ") for reason in reasons)
    assert all(age <= 1 for r in records for age in r.simulation["staleness"].values())
    assert all(job.versions[c] >= job.round - 2 for job in jobs for c in job.cohort)


def test_asynchronous_steps_do_not_wait_for_stragglers():
    slow = Costs(rate=10, stragglers=Stragglers("pareto", 1.0))
    _, waits, _ = run(planned(world(slow)), 6)
    _, goes_on, _ = run(planned(world(slow), buffered=buffering(4, 6)), 6)
    assert goes_on[-1].simulation["simulated_time"] < waits[-1].simulation["simulated_time"]


def test_over_selection_uses_the_first_that_answer():
    _, records, _ = run(planned(world(enough=3)))
    for record in records:
        assert list(record.failures.values()) == [NOT_NEEDED]


def test_too_few_replies_end_the_run_before_anything_is_computed():
    plan = planned(world(deadline=1e-9), min_replies=2)
    engine = support.engine(DATA)
    counting = Counting(engine)
    model = support.tuned()
    state = plan.algorithm.init(read_delta(model), read_buffers(model))
    with pytest.raises(RoundError, match=r"0 of 4 clients would answer.*missed the deadline"):
        advance(state, plan, counting)
    assert counting.jobs == []


def test_a_buffer_that_nobody_can_fill_ends_the_run():
    plan = planned(world(deadline=1e-9), buffered=buffering())
    with pytest.raises(RoundError, match=r"0 of 6 clients would answer.*missed the deadline"):
        run(plan)


def test_a_trace_that_is_over_ends_the_run():
    trace = Trace(dict.fromkeys(DATA.clients, ((0.0, 1e-9),)))
    with pytest.raises(RoundError, match=r"0 of 4 clients would answer.*dropped out"):
        run(planned(world(trace=trace), buffered=buffering()))
    over = Trace({"client-0": ((-2.0, -1.0),)})
    with pytest.raises(RoundError, match="no moment has 1 of the clients available"):
        run(planned(world(trace=over, from_available=True)))
    with pytest.raises(RoundError, match="no client is ever available"):
        run(planned(world(trace=over), buffered=buffering()))


def test_the_server_waits_for_a_trace_to_open():
    trace = Trace(dict.fromkeys(DATA.clients, ((500.0, 900.0),)), period=1000)
    _, (record,), _ = run(planned(world(EQUAL, trace=trace, from_available=True)), 1)
    assert record.simulation["simulated_seconds"] > 500
    _, (record,), _ = run(planned(world(EQUAL, trace=trace), buffered=buffering()), 1)
    assert record.simulation["simulated_time"] > 500 and not record.failures
    with pytest.raises(RoundError, match=NOT_AVAILABLE):
        run(planned(world(EQUAL, trace=trace)), 1)


def test_clients_that_leave_during_a_turn_have_dropped_out():
    trace = Trace(dict.fromkeys(DATA.clients, ((0.0, 1e4),)) | {"client-0": ((0.0, 0.01),)})
    _, (record,), _ = run(planned(world(EQUAL, trace=trace), buffered=buffering(4, 6)), 1)
    assert record.failures == {"client-0": DROPPED_OUT}


def test_what_is_under_way_survives_as_tensors():
    turns = (
        Turn("a", 1, 0, 0, 1 / 3, "", b"one"),
        Turn("ü", 2, 1, 1, 2.5, DROPPED_OUT, b"two"),
        Turn("c", 2, 2, 1, 7.0, "", b"two"),
    )
    packed = pack_flight(Flight(turns, 2))
    assert unpack_flight(packed) == Flight(turns, 2)
    assert len(packed) == 3, "broadcasts that are the same are kept once"
    assert unpack_flight({}) == Flight() == unpack_flight(pack_flight(Flight()))
