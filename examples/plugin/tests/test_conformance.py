"""The suites of `fedpeft.testing` over the names of this package, and one run with all of them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from fedpeft_example.by_loss import by_loss
from fedpeft_example.median import coordinate_median
from fedpeft_example.sign import sign

import fedpeft
from fedpeft import testing
from fedpeft.core.errors import ConfigError


def test_the_median_conforms():
    testing.check_algorithm(coordinate_median())


def test_the_signs_conform():
    testing.check_stage(sign(), feeds_back=True)


def test_the_sampler_conforms():
    testing.check_sampler(by_loss())


def test_a_negative_power_is_refused():
    with pytest.raises(ConfigError, match="power: found -1"):
        by_loss(power=-1.0)


def test_an_experiment_uses_all_four_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = Path(__file__).parents[1] / "experiment.toml"
    settings = {
        "federation.rounds": 2,
        "model.name": "preset:tiny-vit",
        "client.lr": 0.05,
        "client.epochs": 1,
    }
    summary = fedpeft.run(file, settings, out=tmp_path / "run")
    assert summary["rounds"] == 2
    with open("rounds.csv", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["round"] for row in rows] == ["1", "2"] and "accuracy" in rows[0]
    text = (tmp_path / "run" / "experiment.toml").read_text()
    assert "fedpeft-example" in text and "fedpeft_example.median:coordinate_median" in text
    assert isinstance(fedpeft.load(summary["run_dir"]), torch.nn.Module)
