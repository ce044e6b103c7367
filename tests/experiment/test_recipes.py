"""Recipes of published setups plan without weights, data or network, to the published bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpeft.experiment.read import read_experiment
from fedpeft.plan.plan import make_plan

FOLDER = Path(__file__).parents[2] / "experiments" / "recipes"
COHORTS = {"general": 2, "finance": 5, "medical": 2, "code": 2}


@pytest.mark.slow
@pytest.mark.parametrize("name", COHORTS)
def test_a_recipe_of_the_leaderboard_sends_what_is_published(name):
    figures = make_plan(read_experiment(FOLDER / f"flowertune-{name}.toml", [])).figures
    assert figures["trainable_parameters"] == 13_631_488
    sent = 2 * figures["payload_bytes"] * figures["cohort"] * figures["rounds"]
    assert sent / 2**30 == pytest.approx(40.625 * COHORTS[name] / 2)
    assert figures["total_bytes"] == pytest.approx(sent, rel=1e-4)


def test_every_recipe_has_a_test():
    assert {file.stem for file in FOLDER.glob("*.toml")} == {f"flowertune-{n}" for n in COHORTS}
