from __future__ import annotations

import json
from pathlib import Path

import measured
import pytest

from fedpeft.cli import main
from fedpeft.experiment.read import DIGITS, read_experiment
from fedpeft.plan.advice import Advice, advise
from fedpeft.results.evidence import Evidence, write_evidence

SETS = ["data.source=characters", "model.name=vit-glyphs-28", "federation.rounds=10"]
A = {"full": 0.8, "bias": 0.7, "adapter": 0.69, "head": 0.5}
B = {"full": 0.6, "bias": 0.5, "adapter": 0.55, "head": 0.3}


@pytest.fixture
def known(tmp_path: Path) -> Evidence:
    hard = measured.lines(B, data__source="characters-hard")
    return measured.evidence(tmp_path, measured.lines(A) + hard)


def advised(known: Evidence, *sets: str, limit: float | None = None) -> Advice:
    return advise(read_experiment(DIGITS, [*SETS, *sets]), known, limit)


def test_the_best_method_of_the_setting_is_advised(known: Evidence) -> None:
    found = advised(known, "client.epochs=3")
    assert found.sentence.startswith("Use full: 70.2 %") and found.notes == ()
    assert [cell.bed for cell in found.cells] == ["characters", "characters-hard"]
    assert [each.loss for each in found.regrets] == pytest.approx([0, 0])
    costs = found.costs or {}
    assert costs["full"].up == 3_260_984 and costs["bias"].trained == 19_046
    assert costs["bias"].upload == pytest.approx(10 * 8 / 64 * 76_336)


def test_the_method_of_the_file_plays_no_part(known: Evidence) -> None:
    found = advised(known, "tuning.method=lora", "tuning.options.r=64")
    assert found.as_json() == advised(known).as_json()


def test_a_limit_on_upload_changes_the_advice(known: Evidence) -> None:
    found = advised(known, limit=100_000)
    assert found.ranked[0].label == "adapter" and found.costs is not None
    assert found.costs["adapter"].rounds == 10 and found.costs["full"].rounds == 0
    assert "below one round of it (3.26 MB a turn)" in (found.left_out or {})["full"]
    half = advised(known, limit=50_000)
    assert half.costs is not None and half.costs["adapter"].rounds == 5
    none = advised(known, limit=100)
    assert none.ranked == () and none.sentence.startswith("No evidence: no measured method can be")


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["data.partition.scheme=iid"], "partition: even, measured was dirichlet"),
        (["federation.rounds=50"], "rounds: 50, measured was 10"),
        (["privacy.mode=central", "privacy.epsilon=5.0"], "privacy mode: central"),
        (["data.budget=448"], "examples of a client: 7, measured was 35.1"),
        (["model.name=preset:tiny-vit"], "is not pretrained"),
        (["model.name=preset:tiny-llama"], "task: causal-lm"),
    ],
)
def test_outside_of_what_was_measured_there_is_no_evidence(
    known: Evidence, sets: list[str], words: str
) -> None:
    found = advised(known, *sets)
    assert found.sentence.startswith("No evidence: ") and words in found.sentence
    assert found.ranked == () and found.nearest is not None
    assert found.as_json()["evidence"] is False


def test_a_shorter_run_is_compared_where_all_methods_were_evaluated(tmp_path: Path) -> None:
    """All after the same round: full has a curve, the others were evaluated after the last."""
    lines = measured.lines(A)
    for line in lines[3:]:
        line["rounds"]["metric"][:-1] = [None] * 9
    known = measured.evidence(tmp_path, lines)
    found = advised(known, "federation.rounds=4")
    assert [row.label for row in found.ranked] == ["full", "bias", "adapter", "head"]
    assert found.ranked[0].accuracy == pytest.approx(0.802)
    assert "characters: accuracy is that after 10 rounds, not 4" in found.notes
    short = advised(known, "federation.rounds=2")
    assert [row.label for row in short.ranked] == ["full"]
    assert (short.left_out or {})["bias"] == "not evaluated after so few rounds (2)"
    limited = advised(known, limit=50_000)
    assert limited.sentence.startswith("No evidence: no measured method")


def test_nothing_measured_is_no_evidence() -> None:
    found = advised(Evidence(()))
    assert found.sentence == "No evidence: nothing has been measured yet."


def test_what_is_not_compared_is_told(known: Evidence) -> None:
    found = advised(known, "federation.algorithm=fedadam", "federation.rounds=20")
    assert any("fedavg, not fedadam" in note for note in found.notes)
    assert any("measured for 10 rounds" in note for note in found.notes)


def test_a_method_that_the_model_does_not_take_is_left_out(tmp_path: Path) -> None:
    """Texts have no image prompts; the others are ranked."""
    finals = {"bias": 0.7, "head": 0.6, "prompt": 0.8}
    lines = measured.lines(finals, model__name="tiny", data__source="questions")
    for line in lines:
        line["environment"] = {
            "task": "text-classification", "data": {"clients": 64, "examples": 2000}
        }  # fmt: skip
        line["summary"]["total_parameters"] = 10_000
    known = measured.evidence(tmp_path, lines)
    sets = ["model.name=hub/tiny", "model.config=preset:tiny-bert", "model.num_labels=6"]
    sets += ["data.source=hub/questions", "data.num_examples=2000", "federation.rounds=10"]
    found = advise(read_experiment(DIGITS, sets), known)
    assert [row.label for row in found.ranked] == ["bias", "head"]
    assert "prompt" in (found.left_out or {})


def test_the_command_prints_advice_or_one_json_object(
    known: Evidence, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_evidence(known, tmp_path / "e.json")
    words = ["advise", *(part for each in SETS for part in ("--set", each))]
    words += ["--evidence", str(tmp_path / "e.json")]
    with pytest.raises(SystemExit) as end:
        main([*words, "--upload", "100kB"])
    out = capsys.readouterr().out
    assert not end.value.code and out.startswith("Use adapter: 62.2 %")
    assert "at worst 5.0 (characters-hard: bias instead of adapter)" in out
    with pytest.raises(SystemExit) as end:
        main([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert not end.value.code and found["method"] == "full" and found["regret"]["worst"] == 0
    with pytest.raises(SystemExit) as end:
        main([*words, "--set", "data.partition.scheme=iid"])
    out = capsys.readouterr().out
    assert not end.value.code and out.startswith("No evidence: partition") and "nearest" in out


@pytest.mark.parametrize("text", ["5x", "0", "-1MB", "nan", "1e400", ""])
def test_a_limit_that_is_no_number_of_bytes_is_refused(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["advise", f"--upload={text}"])
    assert end.value.code == 2 and "--upload: found" in capsys.readouterr().err
