"""When a test bed leaves room between the methods."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from characters import SETTINGS
from fedpeft.models.loaded import ImageInput
from qualify import Files, joined, load_bed, qualifies

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


def write_files(folder):
    """Write idx files: 200 training pictures with a dark last pixel, 50 white test pictures."""
    for split, num, level in (("train", 200, 10), ("t10k", 50, 255)):
        images = np.full((num, 3, 3), level, np.uint8)
        images[:, 0, 0] = np.arange(num)
        for kind, values in (("images", images), ("labels", np.arange(num, dtype=np.uint8) % 5)):
            header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
            (folder / f"{split}-{kind}-idx{values.ndim}-ubyte").write_bytes(
                header + values.tobytes()
            )


def test_a_bed_of_files_draws_training_pictures_by_seed_and_takes_no_test_pictures(tmp_path):
    write_files(tmp_path)
    load = load_bed(Files(str(tmp_path), 60, 15), ImageInput(3, 3, 1, (0.0,), (1.0,)))
    first, again, other = (
        [
            examples.batch(range(len(examples)), seed=None)["pixel_values"]
            for examples in (data.train, data.test)
        ]
        for data in map(load, (9001, 9001, 9002))
    )
    assert [len(pixels) for pixels in (*first, *other)] == [60, 15, 60, 15]
    assert first[0].equal(again[0]) and not first[0].equal(other[0])
    assert first[1].equal(other[1]) and first[1][..., -1, -1].max() < 0.05
    ours, scored = (set(pixels[:, 0, 0, 0].tolist()) for pixels in first)
    assert not ours & scored
