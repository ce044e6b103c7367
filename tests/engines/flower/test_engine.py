"""Laws of the Flower engine: the local engine's results, and every fault a failure."""

from __future__ import annotations

import functools

import fake_grid
import httpx
import pytest
import support
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from fedpeft.core.errors import EngineError, RoundError
from fedpeft.rounds.round import run_round
from fedpeft.tuning.tuned import read_buffers, read_delta

BAD = "client-2"


def start(plan):
    model = support.tuned()
    return plan.algorithm.init(read_delta(model), read_buffers(model))


def rounds(engine, plan, count=3):
    state, records = start(plan), []
    for _ in range(count):
        state, record = run_round(state, plan, engine)
        records.append(record)
    return state, records


def facts(record):
    return {**vars(record), "seconds": 0}


QUICK = dict(zip(support.STAGES, (0, 1, 3, 1, 0), strict=True))
"""A window for each chain of stages; the slow tier has every pair."""


@pytest.mark.parametrize(("up", "window"), [
    pytest.param(up, window, marks=[] if QUICK[up] == window else [pytest.mark.slow])
    for up in support.STAGES for window in (0, 1, 3)
])  # fmt: skip
def test_the_flower_engine_equals_the_local_one(up, window):
    data, plan = support.federated(), support.plan(up=support.STAGES[up])
    expected, ours = rounds(support.engine(data, up=support.STAGES[up]), plan)
    engine = fake_grid.engine(fake_grid.FakeGrid(data, up=up), window=window)
    found, theirs = rounds(engine, plan)
    assert torch.equal(found.delta, expected.delta)
    assert [facts(record) for record in theirs] == [facts(record) for record in ours]


def test_another_seed_gives_another_result():
    """The negative control."""
    data, plan = support.federated(), support.plan()
    found, _ = rounds(fake_grid.engine(fake_grid.FakeGrid(data)), plan)
    other, _ = rounds(fake_grid.engine(fake_grid.FakeGrid(data)), support.plan(seed=2))
    assert not torch.equal(found.delta, other.delta)


def test_no_more_turns_are_under_way_than_the_window_holds():
    grid = fake_grid.FakeGrid(support.federated())
    rounds(fake_grid.engine(grid, window=2), support.plan(cohort=6), count=1)
    assert grid.most_under_way == 2


FAULTS = {
    "raises": (fake_grid.error(2, "ValueError: no"), "the client raised an error: ValueError: no"),
    "killed": (fake_grid.error(5, "Node Unavailable"), "the site is gone: Node Unavailable"),
    "crashed": (fake_grid.error(8, ""), "process ended before it answered"),
    "unknown error": (fake_grid.error(99, "?"), "Flower's error 99"),
    "hangs": (fake_grid.silent, "no answer within 0.05 s"),
    "refuses": (fake_grid.words(refused="my backbone is another"), "my backbone is another"),
    "nan": (fake_grid.payload(lambda delta: delta / 0), "not finite"),
    "shape": (fake_grid.payload(lambda delta: delta[:-1]), "reply refused"),
    "dtype": (fake_grid.payload(lambda delta: delta.double()), "reply refused"),
    "truncated": (fake_grid.blob(lambda data: data[:-9]), "cannot be decoded"),
    "empty": (fake_grid.blob(lambda data: b""), "it is empty"),
    "huge": (fake_grid.blob(lambda data: data + bytes(2**21)), "allowed are at most"),
    "lies about its length": (fake_grid.blob(bytes, shape=(3,)), "buffer blob claims"),
    "another encoding": (fake_grid.blob(bytes, stype="numpy.ndarray"), "buffer blob claims"),
    "old round": (fake_grid.words(round=1), "it is for turn 1, the request was for turn 2"),
    "another client": (fake_grid.words(client="client-0"), "it is from client 'client-0'"),
    "wrong words": (fake_grid.words(round="2"), "round is '2'"),
    "no number": (fake_grid.words(seconds=float("nan")), "seconds is nan"),
    "bad facts": (fake_grid.words(facts="{"), "facts cannot be read"),
    "facts of a list": (fake_grid.words(facts="[]"), "facts are"),
    "long words": (fake_grid.words(refused="x" * 10**6), "more than 65536 characters"),
    "nothing": (fake_grid.content(RecordDict()), "not of this package's form"),
    "other records": (
        fake_grid.content(RecordDict({"arrays": ConfigRecord()})),
        "its content is not of this package's form",
    ),
    "unreadable": (lambda *_: [ValueError("broken protobuf")], "ValueError: broken protobuf"),
}


@functools.cache
def delta_without_the_bad_one():
    """The delta after a round of all clients and one from which the bad one is away."""
    data, plan = support.federated(), support.plan(cohort=6)
    whole = fake_grid.engine(fake_grid.FakeGrid(data), window=1)
    state, _ = rounds(whole, plan, count=1)
    without = fake_grid.engine(fake_grid.FakeGrid(data), away=[BAD])
    return run_round(state, plan, without)[0].delta


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_a_failure_with_its_reason_and_moves_nothing(fault):
    """The round goes on as if the client had not been asked at all."""
    does, reason = FAULTS[fault]
    data, plan = support.federated(), support.plan(cohort=6)
    grid = fake_grid.FakeGrid(data, faults={BAD: does}, since=2)
    limits = {"deadline": 0.05} if fault == "hangs" else {}
    found, records = rounds(fake_grid.engine(grid, **limits), plan, count=2)
    assert torch.equal(found.delta, delta_without_the_bad_one())
    assert set(records[1].failures) == {BAD} and reason in records[1].failures[BAD]
    assert found.committed[BAD] == 1, "the client goes on from the memory of round 1"


def test_a_client_that_answers_twice_counts_once():
    data, plan = support.federated(), support.plan(cohort=6)
    told = []
    grid = fake_grid.FakeGrid(data, faults={BAD: fake_grid.twice})
    engine = fake_grid.engine(grid, watch=lambda event, facts: told.append((event, facts)))
    found, records = rounds(engine, plan)
    expected, _ = rounds(support.engine(data), plan)
    assert torch.equal(found.delta, expected.delta) and not records[0].failures
    assert [event for event, _ in told].count("dropped") == 3


def test_a_late_reply_is_not_waited_for_nor_used_later():
    """It comes after its deadline, in the next round: nobody asks for it any more."""
    data, plan = support.federated(), support.plan(cohort=6)
    late = []

    def hold(message, honest):
        late.append((message, honest))
        return []

    grid = fake_grid.FakeGrid(data, faults={BAD: hold})
    engine = fake_grid.engine(grid, deadline=0.05)
    state, _ = run_round(start(plan), plan, engine)
    message, honest = late[0]
    grid.inbox[message.metadata.message_id] = [Message(honest, reply_to=message)]
    grid.faults = {}
    state, _ = run_round(state, plan, engine)
    expected, _ = run_round(
        start(plan), plan, fake_grid.engine(fake_grid.FakeGrid(data), away=[BAD])
    )
    expected, _ = run_round(expected, plan, fake_grid.engine(fake_grid.FakeGrid(data)))
    assert torch.equal(state.delta, expected.delta)


def test_a_client_that_is_away_is_a_failure():
    grid = fake_grid.FakeGrid(support.federated())
    _, (record,) = rounds(fake_grid.engine(grid, away=[BAD]), support.plan(cohort=6), count=1)
    assert record.failures == {BAD: "the site is not connected"}


def test_a_reply_of_a_node_that_is_not_the_client_by_its_key_is_refused():
    grid = fake_grid.FakeGrid(support.federated(), faults={BAD: fake_grid.of_another_node})
    _, (record,) = rounds(fake_grid.engine(grid), support.plan(cohort=6), count=1)
    assert "it came from node 666, the request went to node" in record.failures[BAD]
    grid = fake_grid.FakeGrid(support.federated())
    foreign = lambda client, node: "another key" if client == BAD else ""  # noqa: E731
    engine = fake_grid.engine(grid, complaint=foreign)
    _, (record,) = rounds(engine, support.plan(cohort=6), count=1)
    assert record.failures == {BAD: "reply refused: another key"}


def test_what_the_superlink_says_in_a_sites_place_is_named():
    """Its errors come from node 1, itself: that a site is gone is no reply of a foreign node."""

    def gone(message, honest):
        (reply,) = fake_grid.error(5, "heartbeats stopped")(message, honest)
        reply.metadata.__dict__["_src_node_id"] = 1
        return [reply]

    grid = fake_grid.FakeGrid(support.federated(), faults={BAD: gone})
    _, (record,) = rounds(fake_grid.engine(grid), support.plan(cohort=6), count=1)
    assert record.failures == {BAD: "the site is gone: heartbeats stopped"}


def test_too_few_replies_end_the_run():
    faults = {f"client-{i}": fake_grid.error(2, "no") for i in range(6)}
    grid = fake_grid.FakeGrid(support.federated(), faults=faults)
    with pytest.raises(RoundError, match="0 of 4 clients gave a usable update"):
        rounds(fake_grid.engine(grid), support.plan(), count=1)


def test_a_superlink_that_is_gone_is_an_engine_error():
    grid = fake_grid.FakeGrid(support.federated())
    grid.push_messages = raises(httpx.ConnectError("refused"))
    with pytest.raises(EngineError, match="SuperLink cannot be reached to send a message"):
        rounds(fake_grid.engine(grid), support.plan(), count=1)
    grid = fake_grid.FakeGrid(support.federated())
    grid.pull_messages = raises(ConnectionResetError("reset"))
    with pytest.raises(EngineError, match="SuperLink cannot be reached to ask for replies"):
        rounds(fake_grid.engine(grid), support.plan(), count=1)


def raises(error):
    def fail(_):
        raise error

    return fail


def test_a_message_that_is_not_taken_is_a_failure():
    grid = fake_grid.FakeGrid(support.federated())
    grid.push_messages = lambda _: [None]
    with pytest.raises(RoundError, match="the message could not be sent"):
        rounds(fake_grid.engine(grid), support.plan(), count=1)


def test_a_round_that_was_not_committed_can_be_repeated():
    """Kill between reply and commit, then resume: same delta, same memories."""
    up, data = "top_k", support.federated()
    plan = support.plan(up=support.STAGES[up])
    straight = fake_grid.engine(fake_grid.FakeGrid(data, up=up))
    expected, _ = rounds(straight, plan, count=4)
    engine = fake_grid.engine(fake_grid.FakeGrid(data, up=up))
    state, _ = rounds(engine, plan, count=2)
    saved = engine.memories(state.committed)
    run_round(state, plan, engine)  # replies came, the server never committed
    again = fake_grid.engine(fake_grid.FakeGrid(data, up=up))
    again.restore(saved, state.committed)
    for _ in range(2):
        state, _ = run_round(state, plan, again)
    assert torch.equal(state.delta, expected.delta)
    kept, wanted = again.memories(state.committed), straight.memories(expected.committed)
    assert kept.keys() == wanted.keys() and len(kept) > 4
    assert all(torch.equal(kept[name], wanted[name]) for name in kept)


def test_losing_memories_changes_the_run():
    """The negative control: memories matter."""
    up, data = "top_k", support.federated()
    plan = support.plan(up=support.STAGES[up], cohort=6)
    engine = fake_grid.engine(fake_grid.FakeGrid(data, up=up))
    state, _ = rounds(engine, plan, count=1)
    kept, _ = run_round(state, plan, engine)
    fresh = fake_grid.engine(fake_grid.FakeGrid(data, up=up))
    lost, _ = run_round(state, plan, fresh)
    assert not torch.equal(kept.delta, lost.delta)


def test_a_request_carries_what_the_client_needs():
    grid = fake_grid.FakeGrid(support.federated())
    rounds(fake_grid.engine(grid), support.plan(cohort=6), count=2)
    request = grid.pushed[6]
    assert (request.run_id, request.round, request.committed) == ("run-1", 2, 1)
    assert request.client in grid.data.clients and request.version == 1
