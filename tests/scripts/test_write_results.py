"""The results page: every verdict is that of the claims, and what was not run says so."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from fedpeft.core.items import pack_items
from fedpeft.results.beds import read_gaps
from fedpeft.results.claims import check_claims
from fedpeft.results.lines import read_lines
from protocol import BEDS, settings_of
from write_results import PLANNED, expected_of, holds, main, read_columns, read_why, write_pages

SCORES = {"full": 0.8, "head": 0.7, "bias": 0.9, "adapter": 0.9, "prompt": 0.9}


def line(method: str, score: float, seed: int, **settings: object) -> str:
    """Return a line of a results file, as a finished run would have it."""
    chosen = {
        "tuning.method": method,
        "seed": seed,
        "model.name": "vit-glyphs-28",
        "data.source": "letters",
        "data.partition.clients": 64,
        "data.partition.scheme": "dirichlet",
        "federation.clients_per_round": 8,
        "federation.rounds": 2,
        "client.epochs": 1,
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    sent = {"full": 1000, "bias": 1}.get(method, 2)
    right = np.arange(1000) < round(1000 * score)
    accuracy = float(right.mean())
    rounds = {
        "round": [1, 2],
        "bytes_up": [sent, sent],
        "bytes_down": [sent, sent],
        "metric": [accuracy / 2, accuracy],
    }
    summary = {
        "accuracy": accuracy,
        "metric": "accuracy",
        "trainable_parameters": sent,
        "total_parameters": 1000,
        "items": pack_items(right),
    }
    body = {"settings": chosen, "rounds": rounds, "summary": summary, "environment": {}}
    return json.dumps({"experiment": f"{method}{seed}{settings}", **body})


def table1(scores: dict[str, float], **settings: object) -> list[str]:
    found = []
    for seed in (1, 2, 3, 4):
        jitter = 0.001 * seed
        found += [line(m, s + jitter, seed, **settings) for m, s in scores.items()]
        for m in (4, 2, 1):
            few = {**settings, "federation__clients_per_round": m}
            found.append(line("full", 0.5 + jitter, seed, **few))
    return found


def write(file: Path, lines: Iterable[str]) -> None:
    file.write_text("".join(each + "\n" for each in lines))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bed on which all is well, one where prompt fails, a gap series; the others not run."""
    folder = tmp_path_factory.mktemp("results")
    write(folder / "characters.jsonl", table1(SCORES))
    write(folder / "clothes.jsonl", table1({**SCORES, "prompt": 0.4}, data__source="clothes"))
    leads = {"glyphs-new": 0.0, "characters-blurred": 0.05, "characters-permuted": 0.2}
    write(
        folder / "gap.jsonl",
        [
            line(m, 0.5 + lead * (m != "full") + 0.001 * (seed * at % 3), seed, data__source=source)
            for source, lead in leads.items()
            for seed in (1, 2, 3)
            for at, m in enumerate(("full", "bias", "adapter", "prompt"))
        ],
    )
    gap = {
        "model": "vit-glyphs-28",
        "sources": {name: name for name in leads},
        "balanced": {"distances": {"lda2": dict(zip(leads, (1.0, 3.0, 9.0), strict=True))}},
    }
    (folder / "gap.json").write_text(json.dumps(gap))
    (folder.parent / "why.toml").write_text(
        '[clothes]\n1 = "Prompts were trained for too few steps."\n'
    )
    return folder


@pytest.fixture(scope="module")
def docs(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    (folder / "results").mkdir()
    (folder / "results" / "claim-9-old.svg").write_text("of an earlier page")
    write_pages(read_columns(results), read_why(results), folder)
    return folder


def matrix(page: str) -> dict[str, list[str]]:
    """Return the cells of the matrix by its first column, `claim` or a number."""
    lines = page[page.index("| claim |") :].split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {re.sub(r"^\[(\d)\].*", r"\1", first): rest for first, *rest in cells}


def test_matrix_has_a_word_for_every_claim_and_bed(docs: Path) -> None:
    found = matrix((docs / "results.md").read_text())
    assert found["claim"] == [*PLANNED, "holds"]
    one = dict(zip(found["claim"], found["1"], strict=True))
    assert one["characters"].startswith("✓ pass") and one["clothes"].startswith("✗ fail")
    assert one["text"] == "not run yet" and one["gap"] == "–"
    assert one["holds"] == "**depends on the bed**"
    four = dict(zip(found["claim"], found["4"], strict=True))
    assert four["gap"].startswith("✓ pass") and four["characters"] == "–"
    assert four["holds"] == "**everywhere**"
    eight = dict(zip(found["claim"], found["8"], strict=True))
    assert set(eight.values()) == {"not run yet", "–", "**not run yet**"}
    assert set(map(len, found.values())) == {len(PLANNED) + 1}


def test_figures_are_those_of_the_claims(docs: Path, results: Path) -> None:
    page = (docs / "results.md").read_text()
    verdicts = check_claims(read_lines(results / "clothes.jsonl").values())
    least = verdicts[0].decisive
    assert least is not None and least.item_interval is not None
    (row,) = re.findall(r"^\| clothes \| \*\*✗ fail.*claim-1-clothes.*$", page, re.MULTILINE)
    low, high = least.interval
    assert f"| {least.margin:+.3f} | {low:+.3f} to {high:+.3f} |" in row
    a, b = least.item_interval
    assert f"| {a:+.3f} to {b:+.3f} | 4 | – |" in row and least.what in row
    assert "*Why it fails on clothes.* Prompts were trained for too few steps." in page


def test_pictures_are_those_that_the_page_names_and_no_others(docs: Path) -> None:
    named = set(re.findall(r"results/(claim-[\w-]+\.svg)", (docs / "results.md").read_text()))
    assert named == {file.name for file in (docs / "results").glob("*.svg")}
    assert {"claim-1.svg", "claim-1-clothes.svg", "claim-4-gap.svg"} <= named


def test_rows_have_their_own_page(docs: Path) -> None:
    page = (docs / "results-rows.md").read_text()
    assert "## characters" in page and "## clothes" in page and "## text" not in page
    assert re.search(r"\| bias \| 90\.\d+ ± 0\.1 % \| 4 \| 1 \| 0\.1 %", page), page


def test_nothing_run_is_a_page_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none").mkdir()
    words = ["x", "--results", str(tmp_path / "none"), "--docs", str(tmp_path / "docs")]
    monkeypatch.setattr("sys.argv", words)
    main()
    page = (tmp_path / "docs" / "results.md").read_text()
    assert {cell for row in matrix(page).values() for cell in row} >= {"not run yet", "–"}
    assert "✓" not in page and not list((tmp_path / "docs" / "results").iterdir())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pass", "equivalent", ""], "everywhere"),
        (["pass", "not run yet"], "wherever it was run"),
        (["fail", "fail"], "nowhere"),
        (["fail", "not run yet"], "nowhere that it was run"),
        (["pass", "fail", "undecided"], "depends on the bed"),
        (["pass", "undecided"], "on 1 of 2, else open"),
        (["fail", "undecided"], "fails on 1 of 2, else open"),
        (["undecided"], "open"),
        (["not run yet", ""], "not run yet"),
        (["", ""], "–"),
    ],
)
def test_where_a_claim_holds(words: list[str], said: str) -> None:
    assert holds(words) == said


def test_a_file_with_two_beds_has_two_columns(tmp_path: Path) -> None:
    both = table1(SCORES) + table1({**SCORES, "bias": 0.1}, model__name="cnn")
    write(tmp_path / "extra.jsonl", both)
    found = {each.name: each.word(1) for each in read_columns(tmp_path, {})}
    assert found == {"extra: letters, vit-glyphs-28": "pass", "extra: letters, cnn": "fail"}


COMPARISONS = {
    # 1: three variants x (full with 4, 2, 1; the small network; head with 8, 64); 6: x eight cells
    # 7: where they end and what they lose; 8: three budgets x (full, head)
    "characters": {1: 18, 2: 3, 3: 2, 6: 24, 7: 6, 8: 18},
    "characters-hard": {1: 18, 2: 3, 3: 2, 7: 6, 8: 18},
    "text": {1: 18, 2: 3, 3: 2, 7: 6, 8: 18},
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_rows_of_the_protocol_give_every_comparison_of_its_claims(name: str) -> None:
    expected = expected_of(name)
    assert {number: expected[number] for number in PLANNED[name]} == COMPARISONS[name]


def test_a_verdict_on_a_part_of_the_rows_says_so(docs: Path) -> None:
    page = (docs / "results.md").read_text()
    found = matrix(page)
    one = dict(zip(found["claim"], found["1"], strict=True))
    assert one["characters"] == "✓ pass, so far" and "4 of 10 seeds" in page
    four = dict(zip(found["claim"], found["4"], strict=True))
    assert four["gap"] == "✓ pass, so far" and "so far: 3 of 5 sets, 3 of 10 seeds" in page
    assert "so far: 12 of 18 comparisons, 4 of 10 seeds" in page  # no small network, no head of 64
    assert one["clothes"] == "✗ fail, so far", "the protocol lists no rows; seeds are missing"


def test_a_verdict_on_all_rows_says_nothing(tmp_path: Path) -> None:
    bed = BEDS["characters"]
    scores = {**SCORES, "scratch": 0.1, "lora": 0.8, "dora": 0.8, "ia3": 0.8, "ln_tuning": 0.8}
    rows = [settings_of(bed, row) for table in bed.tables.values() for row in table]
    named = [{key.replace(".", "__"): v for key, v in row.items()} for row in rows]
    lines = [
        line(str(row["tuning__method"]), scores[str(row["tuning__method"])], seed, **row)
        for row in named
        for seed in range(1, 11)
    ]
    write(tmp_path / "characters.jsonl", lines)
    (column,) = (each for each in read_columns(tmp_path) if each.name == "characters")
    assert [column.lacking(number) for number in (1, 2, 3, 6, 7, 8)] == [""] * 6


def test_a_file_that_supports_no_claim_has_rows_only(tmp_path: Path) -> None:
    write(tmp_path / "gap-far.jsonl", [line(m, 0.5, seed) for m in SCORES for seed in (1, 2)])
    write_pages(read_columns(tmp_path), {}, tmp_path / "docs")
    assert matrix((tmp_path / "docs" / "results.md").read_text())["claim"] == [*PLANNED, "holds"]
    assert "## gap-far" in (tmp_path / "docs" / "results-rows.md").read_text()


def test_the_series_is_that_of_the_protocol(results: Path, tmp_path: Path) -> None:
    """Another set whose gap was measured, and that has rows, is no part of it."""
    shutil.copytree(results, tmp_path / "more")
    gap = json.loads((results / "gap.json").read_text())
    gap["sources"]["else"], gap["balanced"]["distances"]["lda2"]["else"] = "else", 20.0
    (tmp_path / "more" / "gap.json").write_text(json.dumps(gap))
    rows = [line(m, 0.1, seed, data__source="else") for m in SCORES for seed in (1, 2, 3)]
    write(tmp_path / "more" / "else.jsonl", rows)
    before, after = (
        next(each for each in read_columns(folder) if each.name == "gap")
        for folder in (results, tmp_path / "more")
    )
    assert before.verdicts == after.verdicts
    whole = read_gaps(tmp_path / "more" / "gap.json")
    runs = [
        run for file in (tmp_path / "more").glob("*.jsonl") for run in read_lines(file).values()
    ]
    assert next(v for v in check_claims(runs, [whole]) if v.number == 4) != after.verdicts[4]


def test_searches_and_validation_data_are_no_results(tmp_path: Path) -> None:
    write(tmp_path / "characters.jsonl", table1(SCORES))
    before = read_columns(tmp_path)
    worse = table1({**SCORES, "bias": 0.1}, data__evaluate_on="validation")
    write(tmp_path / "search-characters.jsonl", worse)
    assert read_columns(tmp_path) == before
    write(tmp_path / "characters.jsonl", table1(SCORES) + worse)
    words = {each.name: each.word(1) for each in read_columns(tmp_path) if each.runs}
    assert sorted(words.values()) == ["fail", "pass"]
    (worse_bed,) = (name for name, word in words.items() if word == "fail")
    assert worse_bed.endswith("validation data")
