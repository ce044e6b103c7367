from __future__ import annotations

import json
from pathlib import Path

import measured
import pytest

import write_evidence
import write_methods
from fedpeft.results.evidence import read_evidence

A = {"full": 0.8, "bias": 0.7, "adapter": 0.69, "head": 0.5}
B = {"full": 0.6, "bias": 0.5, "adapter": 0.55, "head": 0.3}
CENTRAL = {"privacy__mode": "central", "privacy__epsilon": 5.0}


@pytest.fixture
def lines() -> list[dict[str, object]]:
    found = measured.lines(A) + measured.lines(B, data__source="characters-hard")
    found += measured.lines({"full": 0.1, "bias": 0.4}, **CENTRAL)
    for line in found[:-6]:
        line["environment"] = {
            "task": "image-classification", "data": {"clients": 64, "examples": 2244}
        }  # fmt: skip
    return found


def page_of(folder: Path, lines: list[dict[str, object]]) -> str:
    file = measured.write(folder / "bed.jsonl", lines)
    write_methods.main([str(file), "--docs", str(folder)])
    return (folder / "methods-compared.md").read_text("utf-8")


def test_the_page_has_a_sentence_and_a_figure_for_each_measured_regime(
    tmp_path: Path, lines: list[dict[str, object]]
) -> None:
    page = page_of(tmp_path, lines)
    flat = " ".join(page.split())
    assert "**After the same rounds.** Use full: 70.2 %" in flat
    assert "**After the same upload as bias.** Use adapter: 62.2 %" in flat
    assert "**After the same rounds.** Use bias: 40.2 % (characters; 3 seeds); 30.0 ±" in flat
    assert "| texts | Skewed labels | not measured yet | not measured yet |" in page
    pictures = {file.name for file in (tmp_path / "methods-compared").glob("*.png")}
    assert pictures == {
        "skewed-pictures.png", "central-pictures.png", "curve-1.png", "curve-2.png"
    }  # fmt: skip
    assert all(f"methods-compared/{name})" in page for name in pictures)


def test_a_changed_line_changes_the_page(tmp_path: Path) -> None:
    usual, changed = (page_of(tmp_path, measured.lines({**A, "head": x})) for x in (0.5, 0.9))
    assert "Use full: 80.2 %" in usual and "Use head" not in usual
    assert "Use head: 90.2 %" in changed and "Use full" not in changed


def test_a_method_without_a_curve_is_not_compared_at_the_same_upload(tmp_path: Path) -> None:
    """Its message is larger than that of bias tuning, and it was evaluated after the last round."""
    lines = measured.lines({**A, "lora": 0.95})
    for line in lines[-3:]:
        line["rounds"]["metric"][:-1] = [None] * 9
    page = page_of(tmp_path, lines)
    assert "Use lora: 95.2 %" in page and "Use bias: 70.2 %" in page
    assert "| lora | 77.4 kB | 0.02 | 95.2 ± 0.1 | – | 3 |" in page
    picture = (tmp_path / "methods-compared" / "skewed-pictures.svg").read_text()
    assert "not evaluated so early" in picture and "cannot be sent once" in picture


def test_without_lines_the_page_says_so(tmp_path: Path) -> None:
    page = page_of(tmp_path, [])
    assert "at present 0 runs in 0 settings of the beds none" in " ".join(page.split())
    assert page.count("| not measured yet | not measured yet |") == 12
    assert not list((tmp_path / "methods-compared").iterdir())


def test_evidence_is_written_from_lines_alone(
    tmp_path: Path, lines: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The private lines tell no counts; those of their bed do."""
    file = measured.write(tmp_path / "bed.jsonl", lines)
    write_evidence.main([str(file), "--out", str(tmp_path / "e.json")])
    found = read_evidence(tmp_path / "e.json")
    assert [cell.setting.examples for cell in found.cells] == [2244 / 64] * 3
    assert "30 runs in 3 settings" in capsys.readouterr().out
    assert json.loads((tmp_path / "e.json").read_text())["runs"] == 30


def test_bundled_data_are_opened_where_no_line_tells_and_others_are_named(tmp_path: Path) -> None:
    file = measured.write(tmp_path / "bed.jsonl", measured.lines(A))
    write_evidence.main([str(file), "--out", str(tmp_path / "e.json")])
    (cell,) = read_evidence(tmp_path / "e.json").cells
    assert (cell.setting.kind, cell.setting.examples) == ("image-classification", 2244 / 64)
    measured.write(file, measured.lines(A, data__source="clothes@1f0a22c4"))
    with pytest.raises(SystemExit, match=r"bed\.jsonl#1: neither this line nor one with the same"):
        write_evidence.main([str(file), "--out", str(tmp_path / "e.json")])
