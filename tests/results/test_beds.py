"""Claims on several beds: each with its own verdicts and sizes, and a series of measured gaps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedpeft.cli import main
from fedpeft.core.errors import RunFolderError
from fedpeft.core.items import pack_items
from fedpeft.results.beds import Gaps, beds_of, read_gaps, series_of
from fedpeft.results.claims import ABSENT, Verdict, by_bed, check_claims
from fedpeft.results.claims_grid import SMALL, make_grid
from fedpeft.results.contents import content_digest
from fedpeft.results.runs import Run

SCORES = {"full": 0.8, "head": 0.7, "bias": 0.9, "adapter": 0.9, "prompt": 0.9}
SENT = {"full": 1000, "bias": 1}
ITEMS = 1000


def run(method: str, score: float, seed: int, **settings: object) -> Run:
    """Make a finished run whose last model got the first items right, as many as its score says."""
    chosen = {
        "tuning.method": method,
        "seed": seed,
        "model.name": "vit",
        "data.source": "letters",
        "data.partition.clients": 32,
        "data.partition.scheme": "dirichlet",
        "federation.clients_per_round": 4,
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    sent = SENT.get(method, 2)
    rounds = tuple(
        {"round": i, "bytes_up": sent, "bytes_down": sent, "metrics": {"accuracy": score * i / 2}}
        for i in (1, 2)
    )
    right = np.arange(ITEMS) < round(score * ITEMS)
    summary = {"accuracy": float(right.mean()), "items": pack_items(right)}
    return Run(Path("x"), chosen, rounds, summary, {})


def table1(scores: dict[str, float] = SCORES, **settings: object) -> list[Run]:
    """Rows of a communication table at 32 clients, 4 a round."""
    found = []
    for seed in (1, 2, 3, 4):
        jitter = 0.001 * seed
        found += [run(m, s + jitter, seed, **settings) for m, s in scores.items()]
        for m in (2, 1):
            few = {**settings, "federation__clients_per_round": m}
            found.append(run("full", 0.5 + jitter, seed, **few))
        everybody = {**settings, "federation__clients_per_round": 32}
        found.append(run("head", 0.7 + jitter, seed, **everybody))
    return found


def of(runs: list[Run], *gaps: Gaps) -> dict[str, dict[int, Verdict]]:
    found = by_bed(check_claims(runs, gaps))
    return {bed: {each.number: each for each in each_bed} for bed, each_bed in found.items()}


def test_each_bed_has_its_own_verdict() -> None:
    good = table1(data__source="letters")
    bad = table1({**SCORES, "prompt": 0.4}, data__source="clothes")
    beds = of(good + bad)
    assert {bed: found[1].verdict for bed, found in beds.items()} == {
        "letters, vit": "pass",
        "clothes, vit": "fail",
    }
    assert of(good)["letters, vit"] == beds["letters, vit"], "another bed changes nothing"


def test_two_backbones_on_one_data_set_are_two_beds() -> None:
    runs = table1() + table1({**SCORES, "bias": 0.3}, model__name="mobilenet")
    beds = of(runs)
    assert beds["letters, vit"][1].verdict == "pass"
    assert beds["letters, mobilenet"][1].verdict == "fail"


def test_any_model_that_is_only_trained_whole_is_the_small_network() -> None:
    small = [run("full", 0.95, seed, model__name="preset:tiny-cnn") for seed in (1, 2, 3, 4)]
    (bed,) = beds_of(make_grid(table1() + small))
    assert [cell.model for cell in bed.grid if cell.role == SMALL] == ["preset:tiny-cnn"]
    claim = of(table1() + small)["letters, vit"][1]
    assert claim.verdict == "fail" and any(SMALL in each.what for each in claim.comparisons)
    assert len(claim.comparisons) == len(of(table1())["letters, vit"][1].comparisons) + 3

    alone = [replace(each, settings={**each.settings, "data.source": "x"}) for each in small]
    assert [bed.model for bed in beds_of(make_grid(alone))] == ["preset:tiny-cnn"]


def test_sizes_of_the_table_are_those_of_the_bed() -> None:
    found = of(table1())["letters, vit"]
    assert [found[number].verdict for number in (1, 2, 3)] == ["pass"] * 3
    assert len(found[1].comparisons) == 3 * 4  # full with 2 and 1 clients; head with 4 and 32
    everybody = {"federation__clients_per_round": 32}
    both = table1() + [
        run(method, 0.9 if method == "full" else 0.1, seed, **everybody)
        for seed in (1, 2, 3, 4)
        for method in ("full", "bias", "adapter", "prompt")
    ]
    assert len(of(both)["letters, vit"][1].comparisons) == 12, "no rows of all clients"
    assert of(both)["letters, vit"][6].verdict == "fail"
    no_single = [each for each in table1() if each.settings["federation.clients_per_round"] != 1]
    assert not no_single or "letters, vit" not in of(no_single)


def test_a_bed_with_a_budget_calls_it_all_examples_unless_only_methods_vary() -> None:
    whole = of(table1(data__budget=4000))["letters, vit"]
    assert whole[1].verdict == "pass" and whole[8].verdict == ABSENT
    few = [run(m, s, seed, data__budget=400) for seed in (1, 2, 3) for m, s in SCORES.items()]
    both = of(table1(data__budget=4000) + few)["letters, vit"]
    assert both[1].comparisons == whole[1].comparisons and both[8].comparisons
    alone = of(few)["letters, vit"]
    assert alone[8].comparisons and alone[1].verdict == ABSENT


def test_usual_options_count_and_those_of_an_ablation_do_not() -> None:
    usual = table1(tuning__options__num_tokens=10)
    other = [run("prompt", 0.1, seed, tuning__options__num_tokens=1) for seed in (1, 2, 3)]
    assert of(usual + other)["letters, vit"] == of(usual)["letters, vit"]
    worse = table1({**SCORES, "prompt": 0.1}, tuning__options__num_tokens=10)
    assert of(worse)["letters, vit"][1].verdict == "fail"


def test_methods_stand_in_for_a_variant_that_a_bed_lacks() -> None:
    scores = {"full": 0.8, "head": 0.7, "bias": 0.9, "lora": 0.9}
    (bed,) = beds_of(make_grid(table1(scores)))
    assert bed.variants == ("bias", "lora")
    (text,) = beds_of(make_grid(table1({**scores, "adapter": 0.9, "prefix_tuning": 0.9})))
    assert text.variants == ("bias", "adapter", "prefix_tuning"), (
        "LoRA beside adapters is no variant"
    )
    assert of(table1({**scores, "lora": 0.1}))["letters, vit"][1].verdict == "fail"


def test_validation_data_are_a_bed_of_their_own() -> None:
    worse = table1({**SCORES, "bias": 0.1}, data__evaluate_on="validation")
    beds = of(table1() + worse)
    assert beds["letters, vit"] == of(table1())["letters, vit"]
    assert beds["letters, vit, validation data"][1].verdict == "fail"
    near, far = gap_runs({"near": 0.0}), gap_runs({"far": 0.1}, data__evaluate_on="validation")
    assert list(of(near + far, GAPS)) == [""]


def gap_runs(leads: dict[str, float], **settings: object) -> list[Run]:
    return [
        run(method, 0.5 + extra + 0.001 * (seed * place % 3), seed, data__source=source, **settings)
        for source, lead in leads.items()
        for seed in (1, 2, 3, 4)
        for place, (method, extra) in enumerate(
            (("full", 0.0), ("head", -0.1), ("bias", lead), ("adapter", lead), ("prompt", 2 * lead))
        )
    ]


GAPS = Gaps("vit", {"near": 1.0, "middle": 2.0, "farther": 5.0, "far": 8.0, "unused": 9.0})


def test_measured_gaps_order_the_sets_and_give_a_slope() -> None:
    runs = gap_runs({"far": 0.2, "near": 0.0, "farther": 0.1, "middle": 0.05})
    beds = of(runs, GAPS)
    assert list(beds) == ["domain gap, vit"] and set(beds["domain gap, vit"]) == {4, 5}
    claim = beds["domain gap, vit"][4]
    assert claim.verdict == "pass" and len(claim.comparisons) == 2 * 3
    growth = next(each for each in claim.comparisons if each.what.startswith("lead of bias"))
    assert "far (gap 8) less near (gap 1)" in growth.what
    assert growth.margin == pytest.approx(0.2, abs=0.002)
    slope = next(each for each in claim.comparisons if "slope of the lead of bias" in each.what)
    gaps, leads = [1, 2, 5, 8], [0.0, 0.05, 0.1, 0.2]
    assert slope.margin == pytest.approx(7 * np.polyfit(gaps, leads, 1)[0], abs=0.002)
    assert slope.num_items == 4 * ITEMS and slope.item_interval is not None
    assert slope.item_interval[0] < slope.margin < slope.item_interval[1]


def test_a_slope_down_fails_though_near_and_far_alone_pass() -> None:
    runs = gap_runs({"near": 0.0, "middle": 0.3, "farther": 0.02, "far": 0.01})
    claim = of(runs, GAPS)["domain gap, vit"][4]
    words = {each.what.split(" ")[0]: each.verdict for each in claim.comparisons}
    assert words == {"lead": "pass", "slope": "fail"} and claim.verdict == "fail"


def test_two_sets_have_no_slope_and_other_backbones_no_series() -> None:
    two = gap_runs({"near": 0.0, "far": 0.1})
    assert len(of(two, GAPS)["domain gap, vit"][4].comparisons) == 3
    assert list(of(two, Gaps("another", GAPS.distances))) == [""]
    assert not series_of(beds_of(make_grid(two)), []), "no pair of these names is fixed"


def test_sets_with_other_budgets_share_a_series() -> None:
    runs = gap_runs({"near": 0.0, "middle": 0.1}) + gap_runs({"far": 0.2}, data__budget=4000)
    runs += gap_runs({"far": -0.2}, data__budget=200)
    claim = of(runs, GAPS)["domain gap, vit"][4]
    assert claim.verdict == "pass" and len(claim.comparisons) == 6


def test_item_intervals_stand_beside_accuracies_and_not_beside_bytes() -> None:
    found = of(table1())["letters, vit"]
    assert all(each.item_interval for each in found[1].comparisons)
    assert not any(each.item_interval for each in found[2].comparisons)
    unknown = [replace(each, summary={"accuracy": 0.5}) for each in table1()[:1]]
    some = of([*table1()[1:], *unknown])["letters, vit"][1]
    gone = [each.item_interval is None for each in some.comparisons]
    assert any(gone) or all(not each for each in gone)
    full = next(
        e for e in found[1].comparisons if e.what.startswith("bias") and "full with M = 2" in e.what
    )
    assert full.num_items == ITEMS
    # the first 900 items are right against the first 500: nested, so that 400 of 1000 differ
    low, high = full.item_interval or (0, 0)
    assert high - low == pytest.approx(2 * 1.645 * np.sqrt(0.4 * 0.6 / ITEMS), rel=0.05)


def write_gap(file: Path, **changes: object) -> Path:
    distances = {"a": 1.5, "b": 2.5, "c": 0.0}
    found = {
        "model": "vit",
        "sources": {"a": "near", "b": "far", "c": "glyphs"},
        "balanced": {"distances": {"lda2": distances}},
        **changes,
    }
    file.write_text(json.dumps(found))
    return file


def test_gaps_are_read_from_a_file_or_its_folder(tmp_path: Path) -> None:
    file = write_gap(tmp_path / "gap.json")
    assert read_gaps(file) == read_gaps(tmp_path)
    assert read_gaps(file) == Gaps("vit", {"near": 1.5, "far": 2.5, "glyphs": 0.0})


def test_gaps_of_local_files_are_known_by_name_where_the_files_are_gone(tmp_path: Path) -> None:
    sources = {"a": "/gone/near.npz", "b": str(tmp_path / "far.npz"), "c": "glyphs"}
    (tmp_path / "far.npz").write_bytes(b"pictures")
    gaps = read_gaps(write_gap(tmp_path / "gap.json", sources=sources))
    far = f"far.npz@{content_digest(tmp_path / 'far.npz')[:8]}"
    assert set(gaps.distances) == {"near.npz", far, "glyphs"}
    runs = gap_runs({"near.npz@01234567": 0.0, str(tmp_path / "far.npz"): 0.1})
    assert len(of(runs, gaps)["domain gap, vit"][4].comparisons) == 3
    other = gap_runs({"near.npz@01234567": 0.0, "far.npz@76543210": 0.1})
    assert list(of(other, gaps)) == [""], "files that are here count by their content"


@pytest.mark.parametrize(
    "changes", [{"sources": None}, {"balanced": {}}, {"model": None, "sources": 3}]
)
def test_what_holds_no_gaps_of_data_sets_is_refused(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    file = write_gap(tmp_path / "gap.json", **changes)
    with pytest.raises(RunFolderError, match=r"gap\.json: holds no measured gaps of data sets"):
        read_gaps(file)
    with pytest.raises(RunFolderError, match="holds no measured gaps"):
        read_gaps(tmp_path / "missing.json")


def test_command_prints_a_block_for_each_bed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = table1() + table1(data__source="near") + gap_runs({"near": 0.0, "far": 0.1})
    monkeypatch.setattr("fedpeft.cli.claiming.read_runs", lambda folders: runs)
    file = write_gap(tmp_path / "gap.json")
    with pytest.raises(SystemExit) as end:
        main(["claims", str(tmp_path), "--gap", str(file)])
    assert not end.value.code
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if line.startswith("bed: ")]
    assert heads == ["bed: letters, vit", "bed: near, vit", "bed: domain gap, vit"]
    assert "over draws of the 1,000 test items" in lines[2]
    with pytest.raises(SystemExit):
        main(["claims", str(tmp_path), "--gap", str(file), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [each["number"] for each in found] == [1, 2, 3, 6, 7, 8] * 2 + [4, 5]
    first = found[0]["comparisons"][0]
    assert first["items"] == ITEMS and len(first["item_interval"]) == 2
