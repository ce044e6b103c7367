"""When a test bed leaves room between the methods."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from characters import SETTINGS
from qualify import joined, qualifies

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


def line(validation, **changes):
    same = {"bed": "b", "model": "m", "epochs": 2, "seeds": [1, 2], "setting": {"train": 9}}
    rates = dict.fromkeys(validation, 0.1)
    return {**same, "validation": validation, "rates": rates, "qualifies": None, **changes}


def test_methods_that_were_examined_one_by_one_decide_together():
    earlier = [line({"full": GOOD["full"]}), line({"scratch": GOOD["scratch"]})]
    whole = joined(line({"head": GOOD["head"]}), earlier)
    assert whole["validation"] == GOOD and whole["qualifies"] is True
    assert set(whole["rates"]) == set(GOOD)


def test_the_latest_figures_count():
    earlier = [line({"full": [0.1, 0.1], "scratch": [0.1, 0.1]}), line({"full": GOOD["full"]})]
    whole = joined(line({"head": GOOD["head"]}), earlier)
    assert whole["validation"]["full"] == GOOD["full"]


@pytest.mark.parametrize("change", [{"epochs": 3}, {"setting": {"train": 8}}, {"seeds": [1, 3]}])
def test_figures_of_another_budget_decide_nothing(change):
    earlier = [line({"full": GOOD["full"], "scratch": GOOD["scratch"]}, **change)]
    whole = joined(line({"head": GOOD["head"]}), earlier)
    assert whole["qualifies"] is None and set(whole["validation"]) == {"head"}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_settings_that_are_shipped_are_on_the_list_and_qualify(name):
    log = Path(__file__).parents[2] / "experiments" / "beds.jsonl"
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    whole = [line for line in lines if line["qualifies"] is not None]
    assert all(line["qualifies"] == qualifies(line["validation"]) for line in whole)
    (line,) = [line for line in whole if line["setting"] == asdict(SETTINGS[name])]
    assert line["qualifies"] and line["bed"] == name
    assert [len(values) for values in line["validation"].values()] == [3, 3, 3]
