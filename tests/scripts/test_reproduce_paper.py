"""The paper's scale: every table, what is missing in words, hours from a step, cheapest first."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from finished_runs import experiment, write_finished

import reproduce_paper
from fedpeft.data.load import load_data
from fedpeft.data.request import Columns, DataRequest, PartitionRequest
from fedpeft.models.loaded import ImageInput
from fedpeft.results.lines import append_line, read_lines
from fedpeft.runs.folder import RunFolder
from paper_pictures import PAPER_SETS, draw_pictures
from reproduce_paper import TABLES, best_rates, main, missing, on_device, paper_rows, rehearsed
from row_costs import Cost, kind_of, seconds_of

COST = Cost(step=0.5, score=0.01, bytes_up=3, bytes_down=4, memory=5)
CIFAR = PAPER_SETS["uoft-cs/cifar100"]


@pytest.fixture(scope="module")
def rows():
    return paper_rows(TABLES, [1, 42, 3407])


def test_all_tables_have_their_rows_and_a_search_one_seed_on_validation_data(rows):
    counts = Counter(row.name.split("/")[0] for row in rows)
    assert counts == {
        **{f"table1-{data}": 33 for data in ("cifar100", "resisc45", "pcam")},
        **{f"table2-{data}": 126 for data in ("cifar100", "resisc45", "pcam")},
        **{f"table3-{data}": 75 for data in ("cifar100", "pcam")},
        **{f"table4-{data}": 45 for data in ("cifar100", "resisc45")},
        **dict.fromkeys(("backbone-mae", "backbone-moco"), 15),
        **dict.fromkeys(("backbone-mae-lr", "backbone-moco-lr"), 20),
    }
    for row in rows:
        search = "-lr/" in row.name
        assert (row.experiment.data.evaluate_on == "validation") == search
        assert row.experiment.seed == 1 or not search
    assert len({row.name for row in rows}) == len(rows)


def test_a_machine_without_a_gpu_is_told_in_one_sentence(capsys, tmp_path):
    assert main(["--only", "table4-cifar100", "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cannot start: this needs a GPU") and "rehearse-paper" in line
    assert not list(tmp_path.iterdir())


def test_weights_that_no_hub_has_are_named_with_the_command_that_makes_them(rows):
    said = missing(on_device(rows, "cpu"))
    assert "GPU" not in said and said.count("the weights models/") == 3
    assert "fedpeft convert mae_pretrain_vit_base.pth --as mae --to models/vit-base-mae" in said


def test_a_hub_out_of_reach_is_told_in_one_sentence():
    said = missing(on_device(paper_rows(["table4-cifar100"], [1]), "cpu"))
    assert "google/vit-base-patch16-224-in21k" in said and "\n" not in said


def test_hours_need_a_device_only(rows):
    assert missing(on_device(rows, "cpu"), only_device=True) == ""


def test_the_seconds_of_a_run_follow_the_formula():
    (row,) = (r for r in paper_rows(["table1-cifar100"], [1]) if "=64" in r.name)
    steps = 64 * 10 * (50_000 / 64 / 64 + 0.5)
    wanted = 50 * (steps * 0.5 + 10_000 * 0.01)
    assert seconds_of(row.experiment, COST, CIFAR) == pytest.approx(wanted)
    fewer = row.experiment.changed(data={"budget": 640}, federation={"eval_every": 25})
    steps = 64 * 10 * (10 / 64 + 0.5)
    wanted = 50 * steps * 0.5 + 2 * 10_000 * 0.01
    assert seconds_of(fewer, COST, CIFAR) == pytest.approx(wanted)


def test_a_step_is_measured_once_for_rows_that_take_equally_long(rows):
    kinds = {kind_of(row.experiment) for row in rows}
    methods = 3 * 8  # five, scratch, ShuffleNet and the adapter of zeros, on three data sets
    assert len(kinds) == methods + 2 * 2 * 5  # Table 3 has two modes with steps of their own
    one = rows[0].experiment
    same = one.changed(seed=7, federation={"clients_per_round": 3}, data={"budget": 5})
    assert kind_of(same) == kind_of(one)
    assert kind_of(one.changed(privacy={"mode": "central"})) == kind_of(one)
    for other in (
        one.changed(tuning={"method": "head"}),
        one.changed(client={"batch_size": 8}),
        one.changed(privacy={"mode": "example"}),
        one.changed(data={"source": "elsewhere"}),
        one.changed(model={"config": "preset:tiny-vit"}),
    ):
        assert kind_of(other) != kind_of(one)


@pytest.mark.parametrize("source", PAPER_SETS)
def test_drawn_pictures_have_the_format_of_the_hubs(source, tmp_path):
    kind = PAPER_SETS[source]
    drawn = draw_pictures(tmp_path, kind, 250)
    columns = Columns(label="fine_label") if "cifar" in source else Columns()
    request = DataRequest(str(tmp_path), columns=columns, partition=PartitionRequest(clients=2))
    data = load_data(request, ImageInput(16, 16, 3, (0.5,) * 3, (0.5,) * 3))
    assert (len(data.train), len(data.test)) == (drawn.sizes["train"], drawn.sizes["test"])
    assert data.num_labels == kind.classes
    assert set(drawn.sizes) == set(kind.sizes)


def test_a_rehearsal_has_each_kind_of_each_table_once(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce_paper, "draw_pictures", lambda folder, kind: kind)
    rows = paper_rows(["table1-pcam", "table3-pcam"], [1, 2])
    found, _ = rehearsed(rows, tmp_path, tiny=True)
    assert len(found) == 7 + 15
    assert {row.name for row in found} <= {row.name for row in rows}
    assert {row.experiment.model.name for row in found} == {
        "preset:tiny-vit", "preset:tiny-shufflenet",
    }  # fmt: skip
    large, _ = rehearsed(rows, tmp_path, tiny=False)
    assert {row.experiment.model.name for row in large} == {
        "preset:vit-base-patch16-224", "preset:shufflenet-v2-x0.5",
    }  # fmt: skip
    assert {row.experiment.client.epochs for row in large} == {10}


def with_accuracy(folder: Path, scores):
    """A finished run whose rounds have these accuracies."""
    write_finished(folder, experiment("preset:tiny-vit", "vit", "bias"))
    lines = [
        f'{{"round": {i}, "cohort": ["a"], "failures": {{}}, "metrics": {{"accuracy": {s}}}, '
        '"bytes_up": 1, "bytes_down": 1, "seconds": 0.1}\n'
        for i, s in enumerate(scores, start=1)
    ]
    RunFolder(folder).rounds.write_text("".join(lines))
    return folder


def test_the_rate_that_ended_highest_is_the_best(tmp_path):
    rows = paper_rows(["backbone-mae-lr"], [1])
    bias = [row for row in rows if row.experiment.tuning.method == "bias"]
    ends = [(0.9, 0.1, 0.1, 0.1), (0.1, 0.3, 0.3, 0.3), (0.1, 0.9, 0.0, 0.0)]
    for number, (row, scores) in enumerate(zip(bias, ends, strict=False)):
        folder = with_accuracy(tmp_path / str(number), scores)
        append_line(tmp_path / "results.jsonl", reproduce_paper._digest(row), folder)
    rates = best_rates(tmp_path / "results.jsonl", rows)
    assert rates == {"bias": bias[1].overrides["client.lr"]}
    tuned = paper_rows(["backbone-mae"], [1])
    changed = [
        reproduce_paper._with_searched_rate(row, [*rows, *tuned], tmp_path / "results.jsonl")
        for row in tuned
    ]
    assert [row.experiment.client.lr == rates["bias"] for row in changed] == [
        row.experiment.tuning.method == "bias" for row in tuned
    ]


def test_the_cheapest_rows_are_begun_first_and_a_backbone_waits_for_its_search(
    tmp_path, monkeypatch, capsys
):
    begun, steps = [], {"full": 3.0, "head": 1.0, "bias": 2.0, "adapter": 0.5, "prompt": 9.0}

    def measured(experiment, folder):
        return dataclasses.replace(COST, step=steps[experiment.tuning.method])

    def swept(rows, out, watch, results):
        begun.append([row.name.split(",")[0] for row in rows])
        return {}

    monkeypatch.setattr(reproduce_paper, "draw_pictures", lambda folder, kind: kind)
    monkeypatch.setattr(reproduce_paper, "missing", lambda rows, only_device: "")
    monkeypatch.setattr(reproduce_paper, "measure", measured)
    monkeypatch.setattr(reproduce_paper, "sweep", swept)
    args = ["--rehearse", "--only", "backbone-mae", "--out", str(tmp_path / "out")]
    assert main(args) == 0
    order = ("adapter", "head", "bias", "full", "prompt")
    assert begun == [[f"backbone-mae-lr/method={method}" for method in order]]
    told = capsys.readouterr()
    assert "backbone-mae: waits until its search has finished" in told.err
    assert "still to run" in told.out and "10 runs" in told.out
    assert main([*args, "--hours"]) == 0 and len(begun) == 1


@pytest.mark.slow
def test_the_rehearsal_runs_and_its_second_time_repeats_nothing(tmp_path, monkeypatch, capsys):
    tables = ["table1-resisc45", "table3-pcam", "table4-cifar100"]
    args = ["--rehearse", "--only", *tables, "backbone-moco", "--out", str(tmp_path / "out")]
    assert main(args) == 0
    first = capsys.readouterr()
    lines = read_lines(tmp_path / "out.jsonl")
    assert len(lines) == 7 + 15 + 5 + 5 + 5
    assert all(run.summary["rounds"] == 1 for run in lines.values())
    assert "ms a step" in first.out and "error" not in first.err
    before = (tmp_path / "out.jsonl").read_bytes()

    def never(*args):
        raise AssertionError("nothing is left to be measured")

    monkeypatch.setattr(reproduce_paper, "measure", never)
    assert main(args) == 0
    again = capsys.readouterr()
    assert again.err.count("was finished before") == len(lines)
    assert (tmp_path / "out.jsonl").read_bytes() == before
