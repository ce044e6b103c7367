from __future__ import annotations

import dataclasses
from pathlib import Path

import measured
import pytest
from measured import evidence

from fedpeft.results.advice import (
    advice_sentence,
    cheapest,
    nearest_cells,
    nearest_miss,
    rank,
    regret_words,
    regrets,
    whole_run,
)
from fedpeft.results.evidence import Evidence
from fedpeft.results.settings import Setting, distance, obstacles

SIZES = {"full": 100.0, "bias": 2.0, "adapter": 1.5, "head": 1.0}
A = {"full": 0.8, "bias": 0.7, "adapter": 0.69, "head": 0.5}
B = {"full": 0.6, "bias": 0.5, "adapter": 0.55, "head": 0.3}


@pytest.fixture
def setting() -> Setting:
    return Setting(
        kind="image-classification", parameters=800_000, rounds=10, epochs=3, clients=64, cohort=8,
        examples=35.0, skew="dirichlet", alpha=0.1, privacy="none", epsilon=None,
    )  # fmt: skip


def two_beds(tmp_path: Path, first: dict[str, float] = A, second: dict[str, float] = B) -> Evidence:
    hard = measured.lines(second, data__source="characters-hard")
    return evidence(tmp_path, measured.lines(first) + hard)


def test_methods_are_ranked_by_mean_accuracy_over_beds(tmp_path: Path) -> None:
    cells = two_beds(tmp_path).cells
    ranked = rank(cells, whole_run)
    assert [row.label for row in ranked] == ["full", "adapter", "bias", "head"]
    assert ranked[0].accuracy == pytest.approx(0.702) and ranked[0].lead is None
    lead = ranked[1].lead
    assert lead is not None and lead.mean == pytest.approx(0.08) and lead.is_clear


def test_a_changed_line_changes_the_ranking(tmp_path: Path) -> None:
    before = rank(two_beds(tmp_path).cells, whole_run)
    after = rank(two_beds(tmp_path, {**A, "bias": 0.95}, {**B, "bias": 0.95}).cells, whole_run)
    assert (before[0].label, after[0].label) == ("full", "bias")


def test_differences_are_paired_over_seeds(tmp_path: Path) -> None:
    """Seeds that differ by ten points leave a lead of one point exact; a lead of chance is none."""
    (cell,) = evidence(tmp_path, measured.lines({"bias": 0.5, "head": 0.49}, spread=0.1)).cells
    lead = rank([cell], whole_run)[1].lead
    assert lead is not None and lead.error == pytest.approx(0, abs=1e-6) and lead.is_clear
    noisy = measured.lines({"bias": 0.5}, spread=0.1) + measured.lines({"head": 0.69}, spread=0.0)
    (cell,) = evidence(tmp_path, noisy).cells
    lead = rank([cell], whole_run)[1].lead
    assert lead is not None and lead.error == pytest.approx(0.1 / 3**0.5) and not lead.is_clear


def test_one_seed_has_no_error_and_no_clear_lead(tmp_path: Path) -> None:
    (cell,) = evidence(tmp_path, measured.lines({"bias": 0.5, "head": 0.4}, seeds=1)).cells
    ranked = rank([cell], whole_run)
    assert ranked[1].lead is not None and ranked[1].lead.error is None
    words = "1 seed); 10.0 points above head, the next (not a clear lead)"
    assert words in advice_sentence(ranked, {})


def test_a_method_of_one_bed_alone_is_not_chosen(tmp_path: Path) -> None:
    ranked = rank(two_beds(tmp_path, {**A, "prompt": 0.99}).cells, whole_run)
    assert (ranked[0].label, ranked[-1].label, ranked[-1].beds) == (
        "full",
        "prompt",
        ("characters",),
    )


def test_entries_are_scored_after_the_rounds_that_they_can_afford(tmp_path: Path) -> None:
    cells = two_beds(tmp_path).cells
    ranked = rank(cells, lambda cell, entry: 0 if entry.label == "full" else 5)
    assert [row.label for row in ranked] == ["adapter", "bias", "head"]
    assert ranked[0].accuracy == pytest.approx(0.622 / 2)


def test_regret_is_known_where_the_best_methods_are(tmp_path: Path) -> None:
    """Without full, bias is best on the first bed by 0.01, adapter on the second by 0.05."""
    cells = two_beds(tmp_path).cells
    usable = {"bias", "adapter", "head"}
    found = regrets(cells, Evidence(cells), lambda cell, entry: 10 if entry.label in usable else 0)
    pairs = [(each.chosen, each.best) for each in found]
    assert pairs == [("adapter", "bias"), ("bias", "adapter")]
    assert [each.loss for each in found] == pytest.approx([0.01, 0.05])
    words = "3.0 points on average over 2 beds, at worst 5.0 (characters-hard: bias"
    assert words in regret_words(found)
    assert regrets(cells[:1], Evidence(cells[:1]), whole_run) == []
    assert "unknown" in regret_words([])


def test_the_cheapest_comparable_method_is_named(tmp_path: Path) -> None:
    ranked = rank(two_beds(tmp_path, {**A, "bias": 0.79}, {**B, "bias": 0.59}).cells, whole_run)
    found = cheapest(ranked, SIZES)
    assert found is not None and found.label == "bias"
    sentence = advice_sentence(ranked, SIZES)
    assert sentence.startswith("Use full: 70.2 % (mean of characters, characters-hard; 3 seeds)")
    assert "cheapest within 2 points is bias, 1.0 ± 0.0 points below for 2 % of the" in sentence
    assert cheapest(rank(two_beds(tmp_path).cells, whole_run), SIZES) is None


def test_the_nearest_cell_of_each_bed_counts(tmp_path: Path, setting: Setting) -> None:
    few = measured.lines(A, data__budget=640, federation__clients_per_round=16)
    cells = evidence(tmp_path, few + measured.lines(A)).cells
    assert nearest_cells(setting, cells) == [cells[1]]
    wanted = dataclasses.replace(setting, cohort=30)
    assert nearest_cells(wanted, cells) == [cells[0]]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"kind": "causal-lm"}, "task: causal-lm, measured was image-classification"),
        ({"parameters": 86_000_000}, "parameters of the model: 86,000,000, measured was 800,000"),
        ({"skew": "even", "alpha": None}, "partition: even, measured was dirichlet"),
        ({"privacy": "central"}, "privacy mode: central, measured was none"),
        ({"clients": 300}, "clients: 300, measured was 64, and up to 4 times"),
        ({"examples": 2.0}, "examples of a client: 2, measured was 35"),
        ({"alpha": 0.5}, "Dirichlet alpha: 0.5, measured was 0.1"),
        ({"rounds": 41}, "rounds: 41, measured was 10"),
    ],
)
def test_what_lies_outside_is_named(
    setting: Setting, changed: dict[str, object], words: str
) -> None:
    (found,) = obstacles(dataclasses.replace(setting, **changed), setting)  # type: ignore[arg-type]
    assert found.startswith(words)
    assert obstacles(setting, setting) == [] and distance(setting, setting) == 0


@pytest.mark.parametrize(
    "changed",
    [{"rounds": 1}, {"examples": None}, {"clients": 256}, {"alpha": 0.4}, {"parameters": 80_000}],
)
def test_what_lies_in_range_is_compared(setting: Setting, changed: dict[str, object]) -> None:
    near = dataclasses.replace(setting, **changed)  # type: ignore[arg-type]
    assert obstacles(near, setting) == []


def test_the_nearest_miss_has_the_fewest_obstacles(tmp_path: Path, setting: Setting) -> None:
    cells = evidence(tmp_path, measured.lines(A, privacy__mode="central") + measured.lines(A)).cells
    wanted = dataclasses.replace(setting, cohort=1)
    assert nearest_miss(wanted, cells) == cells[1]
    assert nearest_miss(wanted, []) is None
