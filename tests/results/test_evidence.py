from __future__ import annotations

from pathlib import Path

import measured
import pytest
from measured import evidence

from fedpeft.core.errors import ConfigError
from fedpeft.results.evidence import read_evidence, write_evidence

TWO = {"bias": 0.7, "head": 0.5}


def test_a_cell_holds_accuracy_by_round_and_seed_and_bytes_a_turn(tmp_path: Path) -> None:
    (cell,) = evidence(tmp_path, measured.lines(TWO)).cells
    bias = cell.entry("bias")
    assert (cell.bed, cell.model) == ("characters", "vit-glyphs-28")
    assert cell.setting.examples == 2244 / 64
    assert bias is not None and bias.bytes_up == measured.BYTES["bias"]
    assert bias.at(10) == {1: 0.701, 2: 0.702, 3: 0.703} == bias.at(99)
    assert bias.at(4)[1] == pytest.approx(0.4 * 0.701, abs=1e-3), "between rounds that were kept"


def test_nothing_is_known_before_the_first_evaluation(tmp_path: Path) -> None:
    rare = measured.lines(TWO)
    for line in rare[:3]:  # bias is evaluated after the last of 10 rounds
        line["rounds"]["metric"][:-1] = [None] * 9
    (cell,) = evidence(tmp_path, rare).cells
    bias, head = cell.entries
    assert bias.at(10) == {1: 0.701, 2: 0.702, 3: 0.703} and bias.at(9) == {}
    assert head.at(9) != {} == head.at(0)


def test_of_two_runs_the_one_that_was_evaluated_more_often_counts(tmp_path: Path) -> None:
    rare = measured.lines(TWO, federation__eval_every=10)
    for line in rare:
        line["rounds"]["metric"][:-1] = [None] * 9
    for order in (rare + measured.lines(TWO), measured.lines(TWO) + rare):
        (cell,) = evidence(tmp_path, order).cells
        assert [len(entry.rounds) for entry in cell.entries] == [6, 6]


def test_evidence_survives_its_file(tmp_path: Path) -> None:
    made = evidence(tmp_path, measured.lines(TWO))
    write_evidence(made, tmp_path / "e.json")
    assert read_evidence(tmp_path / "e.json") == made


@pytest.mark.parametrize(
    "changed",
    [
        {"data__evaluate_on": "validation"},
        {"model__name": "preset:shufflenet-v2-x0.05-small"},
    ],
)
def test_searches_and_untrained_models_are_no_evidence(
    tmp_path: Path, changed: dict[str, object]
) -> None:
    assert evidence(tmp_path, measured.lines(TWO, **changed)).cells == ()


def test_a_setting_with_one_method_is_no_evidence(tmp_path: Path) -> None:
    alone = measured.lines({"full": 0.8}, federation__clients_per_round=1)
    found = evidence(tmp_path, measured.lines(TWO) + alone)
    assert [len(cell.entries) for cell in found.cells] == [2]


def test_settings_are_cells_of_their_own_and_searched_keys_are_not(tmp_path: Path) -> None:
    central = {"privacy__mode": "central", "privacy__epsilon": 5.0}
    found = evidence(
        tmp_path,
        measured.lines(TWO)
        + measured.lines(TWO, data__budget=224)
        + measured.lines({"bias": 0.4}, privacy__clip_norm=0.1, **central)
        + measured.lines({"head": 0.3}, privacy__clip_norm=1.0, client__lr=0.2, **central),
    )
    assert [(c.setting.privacy, len(c.entries)) for c in found.cells] == [
        ("none", 2), ("none", 2), ("central", 2)
    ]  # fmt: skip
    assert found.cells[2].entry("head").lr == 0.2  # type: ignore[union-attr]


def test_variants_of_a_method_are_told_apart_and_a_lone_one_is_not(tmp_path: Path) -> None:
    width = "tuning.options.reduction"
    found = evidence(
        tmp_path,
        measured.lines({"head": 0.5, "adapter": 0.6}, **{width: 8})
        + measured.lines({"adapter": 0.7}, **{width: 4})
        + measured.lines({"adapter": 0.7, "head": 0.5}, data__source="other", **{width: 4}),
    )
    labels = [[entry.label for entry in cell.entries] for cell in found.cells]
    assert labels == [["head", "adapter", "adapter, reduction 4"], ["adapter", "head"]]


def test_what_a_public_line_tells_holds_for_a_private_one(tmp_path: Path) -> None:
    public = measured.lines(TWO)
    for line in public:
        line["environment"] = {"task": "t", "data": {"clients": 64, "examples": 640}}
    private = measured.lines(TWO, privacy__mode="central")
    elsewhere = measured.lines(TWO, data__source="clothes@1f0a22c4")
    cells = evidence(tmp_path, public + private + elsewhere).cells
    assert [(c.bed, c.setting.kind, c.setting.examples) for c in cells] == [
        ("characters", "t", 10.0),
        ("characters", "t", 10.0),
        ("clothes", "image-classification", 2244 / 64),
    ]


@pytest.mark.parametrize("text", ["{}", "[]", "no", '{"runs": 1, "cells": [{}]}'])
def test_a_foreign_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "e.json").write_text(text)
    with pytest.raises(ConfigError, match=r"e\.json: holds no evidence .* Name a file"):
        read_evidence(tmp_path / "e.json")
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read"):
        read_evidence(tmp_path / "none.json")


def test_the_package_has_evidence_that_can_be_read() -> None:
    found = read_evidence()
    assert all(len(cell.entries) > 1 for cell in found.cells)
    assert found.runs == sum(len(e.seeds) for cell in found.cells for e in cell.entries)
