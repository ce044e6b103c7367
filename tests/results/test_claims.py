from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from fedpeft.cli import main
from fedpeft.results.claims import ABSENT, CLAIMS, absent_words, check_claims
from fedpeft.results.claims_grid import shadowed
from fedpeft.results.paired import Comparison
from fedpeft.results.runs import Run

SCORES = {"full": 0.8, "head": 0.7, "bias": 0.9, "adapter": 0.9, "prompt": 0.9}


def run(method: str, score: float, seed: int, **settings: object) -> Run:
    told = {
        "tuning.method": method,
        "seed": seed,
        "model.name": "m",
        "data.source": "digits",
        "data.partition.clients": 64,
        "data.partition.scheme": "dirichlet",
        "federation.clients_per_round": 8,
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    sent = {"full": 1000, "bias": 1}.get(method, 2)
    rounds = tuple(
        {"round": i, "bytes_up": sent, "bytes_down": sent, "metrics": {"accuracy": score * i / 2}}
        for i in (1, 2)
    )
    return Run(Path("x"), told, rounds, {"accuracy": score}, {})


def table1(**scores: float) -> list[Run]:
    found = []
    for seed in (1, 2, 3):
        jitter = 0.001 * seed
        for method, score in {**SCORES, **scores}.items():
            found.append(run(method, score + jitter, seed))
        for m in (4, 2, 1):
            found.append(run("full", 0.6 + jitter, seed, federation__clients_per_round=m))
    return found


def verdicts(runs: list[Run]) -> dict[int, str]:
    return {each.number: each.verdict for each in check_claims(runs)}


def test_margin_and_error_are_those_of_paired_seeds() -> None:
    found = Comparison("a against b", (0.1, 0.2, 0.3))
    assert found.margin == pytest.approx(0.2)
    assert found.error == pytest.approx(0.1 / math.sqrt(3))
    assert found.verdict == "pass"


@pytest.mark.parametrize(
    ("margins", "word"),
    [
        ([0.2], "undecided"),
        ([0.1, -0.1], "undecided"),
        ([0.3, 0.0, 0.0], "undecided"),
        ([-0.2, -0.21], "fail"),
        ([0.0, 0.0], "undecided"),
    ],
)
def test_verdict_of_a_comparison(margins: list[float], word: str) -> None:
    assert Comparison("", tuple(margins)).verdict == word


def test_claims_of_the_first_table() -> None:
    found = verdicts(table1())
    assert [found[n] for n in (1, 2, 3)] == ["pass"] * 3
    assert {found[n] for n in (4, 5, 6, 7, 8)} == {ABSENT}


def test_a_row_that_never_gets_there_is_not_the_cheapest_that_does() -> None:
    """A full run with one client a round sends little, and stays far below the variants."""
    cheap = [
        replace(
            each, rounds=tuple({**line, "bytes_up": 4, "bytes_down": 4} for line in each.rounds)
        )
        if each.method == "full" and each.settings["federation.clients_per_round"] == 1
        else each
        for each in table1()
    ]
    assert verdicts(cheap)[2] == "pass"
    able = [
        replace(each, rounds=tuple({**line, "metrics": {"accuracy": 1.0}} for line in each.rounds))
        if each.settings["federation.clients_per_round"] == 1
        else each
        for each in cheap
    ]
    assert verdicts(able)[2] == "fail", "the negative control: it gets there"


def test_where_no_full_row_gets_there_the_longest_stands_for_it() -> None:
    """What full needs is then more than all it sent: 2,000 bytes against 2, or against 1,000."""
    assert verdicts(table1(full=0.3))[2] == "pass"
    sent = {"bytes_up": 500, "bytes_down": 500}
    dear = [
        replace(each, rounds=tuple({**line, **sent} for line in each.rounds))
        if each.method == "bias"
        else each
        for each in table1(full=0.3)
    ]
    assert verdicts(dear)[2] == "fail"


def test_one_variant_below_a_baseline_fails_the_claim() -> None:
    assert verdicts(table1(prompt=0.5))[1] == "fail"


def test_one_seed_decides_nothing() -> None:
    alone = [each for each in table1() if each.settings["seed"] == 1]
    assert verdicts(alone)[1] == "undecided"


def test_few_examples_compare_within_a_budget() -> None:
    runs = [
        run(method, score + 0.001 * seed, seed, data__budget=400)
        for seed in (1, 2, 3)
        for method, score in SCORES.items()
    ]
    assert verdicts(runs)[8] == "pass"
    assert verdicts(runs)[1] == ABSENT


def test_settings_of_clients_compare_with_a_tolerance() -> None:
    def grid(score: float) -> list[Run]:
        return [
            run(method, 0.8 if method == "full" else score + 0.001 * seed, seed,
                federation__clients_per_round=m, data__partition__clients=16)
            for seed in (1, 2, 3) for m in (16, 2) for method in ("full", "bias")
        ]  # fmt: skip

    assert verdicts(grid(0.9))[6] == "pass"
    assert verdicts(grid(0.79))[6] == "equivalent"
    assert verdicts(grid(0.7))[6] == "fail"


def test_gap_compares_the_lead_on_near_and_far_data() -> None:
    def grid(lead: float) -> list[Run]:
        return [
            run(m, s + 0.001 * seed, seed, data__source=source)
            for seed in (1, 2, 3)
            for source, far in (("timm/resisc45", 0.0), ("1aurent/PatchCamelyon", lead))
            for m, s in (("full", 0.8), ("bias", 0.8 + far), ("prompt", 0.8 + 2 * far))
        ]

    assert verdicts(grid(0.1))[4] != "fail" and verdicts(grid(0.1))[5] != "fail"
    assert verdicts([])[4] == ABSENT


def small_gap(lead: float, **settings: object) -> list[Run]:
    return [
        run(m, s + 0.001 * seed * (1 + at), seed, data__source=source, **settings)
        for seed in (1, 2, 3)
        for at, (source, far) in enumerate((("digits", 0.0), ("digits-permuted", lead)))
        for m, s in (("full", 0.5), ("bias", 0.5 + far), ("prompt", 0.5 + 2 * far))
    ]


def test_gap_at_small_scale_says_which_data_it_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    four = {each.number: each for each in check_claims(small_gap(0.1))}[4]
    assert four.sources == ("digits", "digits-permuted")
    assert len(four.comparisons) == 2 and four.decisive is not None
    assert four.decisive.margin == pytest.approx(0.1)
    monkeypatch.setattr("fedpeft.cli.claiming.read_runs", lambda folders: small_gap(0.1))
    main_of("claims", str(tmp_path))
    told = capsys.readouterr().out
    assert "data: digits, digits-permuted (a small-scale analogue of the paper's Resisc45" in told


def test_private_runs_are_no_rows_of_the_gap() -> None:
    def of_digits(runs: list[Run]) -> list[str]:
        return [each.verdict for each in check_claims(runs) if each.number in (4, 5)][:2]

    private_rows = small_gap(-0.3, privacy__mode="central")
    assert of_digits(small_gap(0.1) + private_rows) == of_digits(small_gap(0.1)) != [ABSENT] * 2
    assert of_digits(private_rows) == [ABSENT] * 2


def test_gap_never_mixes_runs_of_different_length() -> None:
    long, short = {"federation__rounds": 20}, {"federation__rounds": 10}
    near = [r for r in small_gap(0.1, **long) if r.settings["data.source"] == "digits"]
    far = [r for r in small_gap(0.1, **short) if r.settings["data.source"] != "digits"]
    assert verdicts(near + far)[4] == ABSENT


def private(mode: str, **scores: float) -> list[Run]:
    told = {"privacy__mode": mode, "privacy__epsilon": 5.0, "privacy__delta": 1e-3}
    return [
        run(m, s + 0.001 * seed * i, seed, **told)
        for seed in (1, 2, 3)
        for i, (m, s) in enumerate(scores.items())
    ]


def test_privacy_is_judged_by_where_runs_end_and_by_what_they_lose() -> None:
    sound = private("central", full=0.2, bias=0.6, adapter=0.6, prompt=0.6)
    claim = {each.number: each for each in check_claims(table1() + sound)}[7]
    assert claim.verdict == "pass" and len(claim.comparisons) == 6
    assert claim.blocks == {"central, epsilon 5.0, delta 0.001": "pass"}
    (drop,) = (each for each in claim.comparisons if "less that of bias" in each.what)
    assert drop.margin == pytest.approx((0.8 - 0.2) - (0.9 - 0.6), abs=0.01)
    above = private("example", full=0.79, bias=0.6)
    both = {each.number: each for each in check_claims(table1() + sound + above)}[7]
    assert both.verdict == "fail"
    assert sorted(both.blocks.values()) == ["fail", "pass"]


def test_a_mode_without_a_guarantee_is_shown_and_decides_nothing() -> None:
    sound = private("central", full=0.2, bias=0.6)
    worse = private("paper", full=0.79, bias=0.1)
    alone, both = (
        {each.number: each for each in check_claims(table1() + runs)}[7]
        for runs in (sound, sound + worse)
    )
    assert alone.verdict == both.verdict == "pass" and both.decisive == alone.decisive
    assert sorted(both.blocks.values()) == ["fail", "pass"]
    assert len(both.comparisons) == 2 * len(alone.comparisons)
    assert verdicts(table1() + private("central", full=0.79, bias=0.1))[7] == "fail"


def test_privacy_needs_full_fine_tuning_in_the_same_mode() -> None:
    apart = private("central", full=0.2) + private("example", bias=0.6)
    assert verdicts(table1() + apart)[7] == ABSENT
    ends = {each.number: each for each in check_claims(private("central", full=0.2, bias=0.6))}[7]
    assert len(ends.comparisons) == 1  # no run without privacy: nothing to drop from


def test_authors_adapter_is_no_variant() -> None:
    worse = [run("adapter", 0.1, seed, tuning__options__init="zeros") for seed in (1, 2, 3)]
    assert verdicts(table1() + worse)[1] == "pass"


def test_private_runs_are_left_out() -> None:
    private_settings = {"privacy__mode": "central", "data__budget": 400}
    few = [run(m, s, seed, **private_settings) for seed in (1, 2) for m, s in SCORES.items()]
    assert verdicts(table1() + few)[8] == ABSENT
    worse = [run("bias", 0.1, seed, privacy__mode="central") for seed in (1, 2, 3)]
    assert verdicts(table1() + worse)[1] == "pass"


def main_of(*words: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    assert not end.value.code


def test_command_lists_all_claims(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "experiment.toml").write_text("seed = 1\n")
    main_of("claims", str(tmp_path), "--json")
    found = json.loads(capsys.readouterr().out)
    assert [each["number"] for each in found] == list(CLAIMS)


def test_claims_whose_rows_are_missing_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedpeft.cli.claiming.read_runs", lambda folders: table1())
    main_of("claims", str(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    last = "Claims 4, 5, 6, 7 and 8 of the paper need rows that are not in this grid."
    assert lines[-1] == last
    assert [line[0] for line in lines[:-1] if not line.startswith(" ")] == ["1", "2", "3"]
    some = check_claims(table1())
    assert absent_words(some[:3]) == "" and absent_words(some[:4]).startswith("Claim 4 of the")


def test_run_whose_place_another_takes_is_named() -> None:
    first, second = run("bias", 0.8, 1), run("bias", 0.9, 1)
    found = [replace(each, folder=Path(name)) for each, name in ((first, "a"), (second, "b"))]
    ((left_out, taken),) = shadowed(found)
    assert (left_out.folder.name, taken.folder.name) == ("a", "b")
    same = {"accuracy": 0.8, "delta_digest": "d"}
    assert not shadowed([replace(each, summary=same) for each in found])
    assert not shadowed([first, run("bias", 0.9, 2), run("head", 0.9, 1)])
