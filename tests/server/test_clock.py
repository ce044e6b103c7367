"""The cost of a turn: closed forms, distributions, and what a draw depends on."""

from __future__ import annotations

import math
import statistics

import pytest

from fedpeft.server.clock import (
    Costs,
    Stragglers,
    Work,
    clock_memory,
    read_clock,
    slowdown,
    turn_seconds,
    uniform,
)

WORK = Work(examples=300, bytes_down=1000, bytes_up=500)


def test_equal_clients_cost_download_compute_and_upload():
    costs = Costs(rate=100, down=500, up=250)
    assert turn_seconds(costs, WORK, "a", 1, seed=1) == 1000 / 500 + 300 / 100 + 500 / 250


def test_speeds_belong_to_clients_and_not_to_turns():
    costs = Costs(speed_spread=1.0, link_spread=1.0)
    first = [turn_seconds(costs, WORK, name, 1, seed=1) for name in "abcdef"]
    assert first == [turn_seconds(costs, WORK, name, 2, seed=1) for name in "abcdef"]
    assert len(set(first)) == 6


def test_speeds_are_log_normal():
    costs = Costs(rate=1.0, speed_spread=0.5)
    compute = Work(1, 0, 0)
    logs = [math.log(turn_seconds(costs, compute, f"{i}", 1, seed=1)) for i in range(4000)]
    assert statistics.mean(logs) == pytest.approx(0, abs=0.03)
    assert statistics.stdev(logs) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    ("stragglers", "tail"),
    [
        (Stragglers("pareto", 1.5), 3**-1.5),
        (Stragglers("lognormal", 1.0), 1 - statistics.NormalDist().cdf(math.log(3))),
        (Stragglers("none"), 0.0),
    ],
)
def test_slowdowns_have_the_stated_tail(stragglers, tail):
    draws = [slowdown(stragglers, "a", turn, seed=1) for turn in range(8000)]
    assert sum(draw > 3 for draw in draws) / 8000 == pytest.approx(tail, abs=0.015)


def test_draws_depend_on_seed_and_path():
    assert uniform(1, "x", 1) == uniform(1, "x", 1)
    assert (
        len({uniform(1, "x", 1), uniform(2, "x", 1), uniform(1, "x", 2), uniform(1, "y", 1)}) == 4
    )
    assert all(0 < uniform(1, i) < 1 for i in range(1000))


def test_the_clock_survives_in_memory():
    assert read_clock({}) == 0
    assert read_clock(clock_memory(1 / 3)) == 1 / 3
