"""When a test bed leaves room between the methods."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from characters import SETTINGS
from qualify import qualifies

GOOD = {"head": [0.60, 0.62], "full": [0.70, 0.72], "scratch": [0.50, 0.52]}


def test_a_bed_with_room_qualifies():
    assert qualifies(GOOD)


@pytest.mark.parametrize(
    ("method", "values"),
    [("head", [0.67, 0.67]), ("scratch", [0.62, 0.62]), ("full", [0.97, 0.97])],
    ids=["head too near", "scratch too near", "too easy"],
)
def test_a_bed_without_room_does_not(method, values):
    assert not qualifies({**GOOD, method: values})


@pytest.mark.parametrize("name", SETTINGS)
def test_the_settings_that_are_shipped_are_on_the_list_and_qualify(name):
    log = Path(__file__).parents[2] / "experiments" / "beds.jsonl"
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    whole = [line for line in lines if line["qualifies"] is not None]
    assert all(line["qualifies"] == qualifies(line["validation"]) for line in whole)
    (line,) = [line for line in whole if line["setting"] == asdict(SETTINGS[name])]
    assert line["qualifies"] and line["bed"] == name
    assert [len(values) for values in line["validation"].values()] == [3, 3, 3]
