from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedpeft.cli.planning import check_command, plan_command
from fedpeft.experiment import epsilon
from fedpeft.experiment.sweep_rows import read_rows
from fedpeft.plan.plan import make_plan, plan_rows

FOLDER = Path(__file__).parents[2] / "experiments"
FILES = sorted(FOLDER.glob("*/*.toml"))
TRAINED = {
    "cifar100": (85_875_556, 444_292, 76_900, 179_812, 225_220, 169_060),
    "resisc45": (85_833_261, 387_917, 34_605, 137_517, 182_925, 126_765),
    "pcam": (85_800_194, 343_842, 1_538, 104_450, 149_858, 93_698),
}
ORDER = [(0, 8), (0, 4), (0, 2), (0, 1), (1, 8), (2, 8), (2, 64), (3, 8), (4, 8), (4, 8), (5, 8)]
STATISTICS = 7_952
"""Running means and variances of ShuffleNetV2 x0.5, which travel too."""


def name_of(file: Path) -> str:
    return f"{file.parent.name}-{file.stem}"


@pytest.fixture
def no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every private row some noise: to find the right one takes seconds a file."""
    monkeypatch.setattr(epsilon, "calibrate", lambda mechanism, uses, delta, epsilon: 1.0)


@pytest.mark.usefixtures("no_calibration")
@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_file_passes_check(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expect_no_problems(file, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_file_passes_check_with_its_noise_calibrated(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expect_no_problems(file, capsys)


def expect_no_problems(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_command(file, [])
    told = capsys.readouterr().out
    assert "no problems found" in told and "note:" not in told
    assert ("sweep rows" in told) == (
        "sweep = [" in file.read_text() or "[[sweep]]" in file.read_text()
    )


@pytest.mark.parametrize("data", TRAINED)
def test_plan_of_table_1_has_the_papers_bytes(data: str) -> None:
    rows = plan_rows(read_rows(FOLDER / "paper" / f"table1-{data}.toml"))
    assert len(rows) == len(ORDER)
    for plan, (column, cohort) in zip(rows.values(), ORDER, strict=True):
        found = plan.as_json()
        extra = 4 * STATISTICS if column == 1 else 0
        assert found["trainable_parameters"] == TRAINED[data][column]
        assert found["trainable_payload_bytes"] == 4 * TRAINED[data][column]
        assert found["payload_bytes"] == 4 * TRAINED[data][column] + extra
        assert (found["cohort"], found["rounds"]) == (cohort, 50)


def test_plan_prints_rows_as_json_and_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    file = FOLDER / "paper" / "prompt-count.toml"
    plan_command(file, [], as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [row["row"] for row in found["rows"]][:2] == [
        "method=prompt,head_init=paper,num_tokens=5",
        "method=prompt,head_init=paper,num_tokens=10",
    ]
    assert set(found["rows"][0]) == set(found) - {"rows"} | {"row"}
    plan_command(file, [], as_json=False)
    assert "5 sweep rows" in capsys.readouterr().out


def test_plan_of_a_file_without_rows_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.toml").write_text('[model]\nname = "preset:tiny-vit"\n')
    plan_command(tmp_path / "one.toml", [], as_json=True)
    assert "rows" not in json.loads(capsys.readouterr().out)


def test_narrow_shufflenet_is_as_large_as_bias_tuning() -> None:
    rows = read_rows(FOLDER / "small" / "table1.toml")
    small = next(r for r in rows if "shufflenet" in r.experiment.model.name)
    bias = next(r for r in rows if r.experiment.tuning.method == "bias")
    sizes = [int(str(make_plan(r.experiment).figures["payload_bytes"])) for r in (small, bias)]
    assert sizes == [28_460, 28_712]


@pytest.mark.parametrize("data", ["cifar100", "pcam"])
def test_table_3_has_every_method_in_every_mode(data: str) -> None:
    rows = [row.experiment for row in read_rows(FOLDER / "paper" / f"table3-{data}.toml")]
    methods = ["full", "head", "bias", "adapter", "prompt"]
    assert [row.tuning.method for row in rows] == 5 * methods
    modes = ["none", "paper", "paper", "central", "example"]
    assert [row.privacy.mode for row in rows[::5]] == modes
    assert [row.privacy.variant for row in rows[5:15:5]] == ["author", "corrected"]
    for row in rows[5:]:
        asked = (row.privacy.epsilon, row.privacy.delta, row.privacy.clip_norm)
        assert asked == (5.0, 1e-3, 1.0)
        assert (row.federation.sampling == "poisson") == (row.privacy.mode == "central")


def test_table_3_at_small_scale_differs_from_the_papers_in_rates_and_clips_only() -> None:
    small, paper = (
        [
            (row.experiment.tuning.method, row.experiment.privacy.mode)
            for row in read_rows(FOLDER / name)
        ]
        for name in ("small/table3.toml", "paper/table3-cifar100.toml")
    )
    assert small == paper


@pytest.mark.slow
def test_private_rows_are_calibrated_to_their_target() -> None:
    row = read_rows(FOLDER / "paper" / "table3-cifar100.toml")[-1]
    figures = make_plan(row.experiment).figures
    assert 4.98 < float(str(figures["epsilon"])) <= 5.0
