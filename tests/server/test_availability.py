"""How turns and rounds end."""

from __future__ import annotations

import pytest

from fedpeft.server.availability import (
    DROPPED_OUT,
    MISSED_DEADLINE,
    NOT_AVAILABLE,
    NOT_NEEDED,
    Conditions,
    Outcome,
    available,
    close_round,
    opening,
    outcome,
)
from fedpeft.server.clock import Costs
from fedpeft.server.traces import Trace

CLIENTS = tuple(f"client-{i}" for i in range(2000))
COSTS = Costs(rate=1.0, down=1.0, up=1.0)


def world(**changes):
    return Conditions(1, dict.fromkeys(CLIENTS, 5), bytes_up=3, costs=COSTS, **changes)


def ends(conditions, start=100.0):
    return [outcome(conditions, c, 1, start=start, bytes_down=2) for c in CLIENTS]


def test_without_conditions_every_turn_takes_its_cost():
    assert {(each.end, each.reason) for each in ends(world())} == {(110.0, "")}


def test_dropout_has_its_probability_and_breaks_off_during_the_turn():
    gone = [each for each in ends(world(dropout=0.3)) if each.reason]
    assert len(gone) / 2000 == pytest.approx(0.3, abs=0.03)
    assert {each.reason for each in gone} == {DROPPED_OUT}
    assert all(100 < each.end < 110 for each in gone)
    assert sum(each.end for each in gone) / len(gone) == pytest.approx(105, abs=0.5)


def test_a_deadline_ends_turns_that_are_longer():
    assert {(e.end, e.reason) for e in ends(world(deadline=9))} == {(109.0, MISSED_DEADLINE)}
    assert {(e.end, e.reason) for e in ends(world(deadline=10))} == {(110.0, "")}


def test_a_client_that_is_away_or_leaves_does_not_answer():
    trace = Trace({"client-0": ((0, 200),), "client-1": ((0, 105),), "client-2": ((101, 200),)})
    found = ends(world(trace=trace))[:4]
    assert [(each.end, each.reason) for each in found] == [
        (110, ""), (105, DROPPED_OUT), (100, NOT_AVAILABLE), (100, NOT_AVAILABLE),
    ]  # fmt: skip


ANSWERS = (Outcome("a", 5.0), Outcome("b", 3.0), Outcome("c", 2.0, DROPPED_OUT), Outcome("d", 3.0))


def test_a_round_ends_with_the_last_turn():
    assert close_round(ANSWERS, None, start=0) == (ANSWERS, 5.0)
    assert close_round((), None, start=7) == ((), 7)


def test_over_selection_takes_the_first_answers_and_ties_go_by_cohort_order():
    closed, end = close_round(ANSWERS, 1, start=0)
    assert end == 3.0
    assert [each.reason for each in closed] == [NOT_NEEDED, "", DROPPED_OUT, NOT_NEEDED]


def test_too_few_answers_wait_for_everybody():
    assert close_round(ANSWERS, 4, start=0) == (ANSWERS, 5.0)


def test_the_server_waits_until_enough_are_there():
    trace = Trace({"a": ((0, 10),), "b": ((4, 6), (20, 30)), "c": ((25, 40),)})
    conditions = Conditions(1, {}, 0, trace=trace)
    assert available(conditions, "abc", 5) == ("a", "b")
    assert opening(conditions, "abc", 2, 0) == 4
    assert opening(conditions, "abc", 2, 6) == 25
    assert opening(conditions, "abc", 1, 12) == 20
    assert opening(conditions, "abc", 3, 0) is None


def test_a_repeating_trace_that_never_has_enough_is_noticed():
    trace = Trace({"a": ((0, 10),), "b": ((10, 20),)}, period=50)
    conditions = Conditions(1, {}, 0, trace=trace)
    assert opening(conditions, "ab", 2, 0) is None
    assert opening(conditions, "ab", 1, 30) == 50
