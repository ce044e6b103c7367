"""Traces: files, repetition, the bundled pattern."""

from __future__ import annotations

import pytest

from fedpeft.core.errors import ConfigError
from fedpeft.server.traces import (
    DAY,
    Trace,
    available_until,
    next_opening,
    phones,
    read_trace,
)

CLIENTS = ("a", "b", "c")


def test_csv_and_jsonl_say_the_same(tmp_path):
    csv, jsonl = tmp_path / "t.csv", tmp_path / "t.jsonl"
    csv.write_text("client,from,to\na,5,9\na,0,2\nb,1,3\na,9,10\n")
    jsonl.write_text(
        '{"client": "a", "from": 5, "to": 10}\n\n{"client": "a", "from": 0, "to": 2}\n'
        '{"client": "b", "from": 1, "to": 3}\n'
    )
    assert read_trace(csv, CLIENTS) == read_trace(jsonl, CLIENTS)
    assert read_trace(csv, CLIENTS).intervals["a"] == ((0, 2), (5, 10))


def test_an_interval_holds_its_beginning_and_not_its_end():
    trace = Trace({"a": ((0, 2), (5, 9))})
    assert [available_until(trace, "a", t) for t in (0, 1.5, 2, 5, 9)] == [2, 2, None, 9, None]
    assert [next_opening(trace, "a", t) for t in (1, 2, 6, 9)] == [1, 5, 6, None]
    assert available_until(trace, "b", 0) is None and next_opening(trace, "b", 0) is None


def test_a_period_repeats_and_joins_what_touches():
    trace = Trace({"a": ((0, 2), (8, 10))}, period=10)
    assert available_until(trace, "a", 8.5) == 12
    assert available_until(trace, "a", 21) == 22
    assert next_opening(trace, "a", 25) == 28


def test_without_a_period_nothing_repeats():
    assert available_until(Trace({"a": ((0, 2), (8, 10))}), "a", 21) is None


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", "client,from,to\nd,0,1\n", r"line 2: there is no client 'd'.*a, b, c"),
        ("t.csv", "client,from\na,0\n", "line 2: to missing; needed are client, from, to"),
        ("t.csv", "client,from,to\na,x,1\n", "from and to are seconds"),
        ("t.csv", "client,from,to\na,3,1\n", "found 3.0 to 1.0; allowed is 0 <= from < to"),
        ("t.csv", "client,from,to\na,0,101\n", "after stability.trace_period = 100"),
        ("t.csv", "client,from,to\n", "the trace has no interval"),
        ("t.jsonl", "nonsense\n", "line 1: not JSON"),
        ("t.jsonl", "[1]\n", "found no JSON object"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, name, text, words):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_trace(file, CLIENTS, period=100)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"stability.trace: .*gone.csv cannot be read"):
        read_trace(tmp_path / "gone.csv", CLIENTS)


def test_phones_charge_at_night():
    trace = phones([f"client-{i}" for i in range(200)], seed=1)

    def share(hour, day=2):
        time = day * DAY + hour * 3600
        return sum(available_until(trace, c, time) is not None for c in trace.intervals) / 200

    assert share(2.5) > 0.7 > 0.3 > share(14) > 0
    assert share(2.5) == share(2.5, day=9), "the week repeats"
    assert share(2.5, day=7) > 0.5, "also over its end"


def test_phones_depend_on_the_seed():
    assert phones(CLIENTS, seed=1) == phones(CLIENTS, seed=1) != phones(CLIENTS, seed=2)
