"""The benchmark at a small size: that its rows work and their checks can fail. Nothing is timed."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from bench import __main__ as command
from bench import against_pfl, page, rows
from bench.assignment import distance, write_work
from bench.children import ContestantError, Session, run_program
from bench.contestants import loop, ours
from bench.contestants.work import accuracy, delta_of, make_model, read_work, set_delta
from bench.environments import EnvironmentMissing
from bench.figures import check, figure, holds, pairwise, unavailable
from bench.gpu import run as run_gpu
from bench.gpu import train_flops
from bench.passes import Cell, settings_of
from bench.plain import report_of
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft

QUICK = ["7", "8", "gpu"]


def row_report(name: str, *, ratios=(2.0, 4.0, 3.0), ok=True) -> dict:
    found = figure("a thing", ratios, target=3.0, sides={"ours": {"seconds": [1.0, 2.5]}})
    return {
        "row": name,
        "available": True,
        "date": "2026-01-02",
        "seconds": 3.0,
        "hardware": {"processor": "P", "cores": 2, "memory_gib": 8.0},
        "versions": {"torch": "2"},
        "figures": [found],
        "checks": [check("same result", ok, "accuracy 0.9 and 0.9")],
        "notes": ["a note"],
        "busy": [0.0, 0.1],
    }


def test_figure_holds_its_middle_ratio_against_the_target():
    found = figure("x", pairwise([6.0, 9.0, 2.0], [2.0, 3.0, 2.0]), target=3.0)
    assert (found["min"], found["median"], found["max"], found["met"]) == (1.0, 3.0, 3.0, True)
    assert figure("x", [1.2], target=1.3, at_most=True)["met"]
    assert not figure("x", [1.4], target=1.3, at_most=True)["met"]
    assert figure("x", [1.4])["met"] is None


def test_plain_numbers_of_a_row_become_figures_and_checks():
    found = {
        "ratio": 17.0,
        "target": 15.0,
        "same_result": True,
        "accuracy_on": 0.9,
        "memory": {"name": "peak", "ratios": [1.1, 1.4, 1.2], "target": 1.3, "at_most": True},
    }
    report = report_of("cached or not", found)
    assert [(f["name"], f["met"]) for f in report["figures"]] == [
        ("cached or not", True),
        ("peak", True),
    ]
    assert report["checks"][0]["detail"] == "accuracy on 0.9" and holds(report)
    assert not holds(report_of("x", found | {"same_result": False}))
    assert report_of("x", {"figures": [1]})["figures"] == [1]


@pytest.mark.parametrize(
    "method", ["lora", *(pytest.param(m, marks=pytest.mark.slow) for m in ("bias", "adapter"))]
)
def test_bare_loop_and_rounds_of_ours_give_one_delta(tmp_path, method):
    settings = settings_of(Cell(method, 2, 3, 2), 2, cohort=3, workers=1)
    folder = write_work(tmp_path / "work", settings)
    theirs, own = loop.open_session(str(folder)), ours.open_session(settings)
    for number in (1, 2):
        theirs["round"](number, threads=1)
        own["round"]()
    one, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert theirs["finish"](str(one)) == own["finish"](str(other))
    assert distance(one, other) < 1e-5
    start = distance(one, folder / "start.safetensors")
    assert start > 1e-3, "nothing was trained"


def test_loop_with_another_batch_order_gives_another_delta(tmp_path):
    settings = settings_of(Cell("bias", 1, 3, 1), 1, cohort=2, workers=1)
    folder = write_work(tmp_path / "work", settings)
    session = loop.open_session(str(folder))
    session["round"](1, threads=1)
    session["finish"](str(tmp_path / "right.safetensors"))
    plan = json.loads((folder / "work.json").read_text("utf-8"))
    plan["turns"] = {name: [epoch[::-1] for epoch in turn] for name, turn in plan["turns"].items()}
    (folder / "work.json").write_text(json.dumps(plan), "utf-8")
    session = loop.open_session(str(folder))
    session["round"](1, threads=1)
    session["finish"](str(tmp_path / "wrong.safetensors"))
    assert distance(tmp_path / "right.safetensors", tmp_path / "wrong.safetensors") > 1e-5


def test_fused_batch_trains_every_client_of_a_group(tmp_path):
    settings = settings_of(Cell("lora", 4, 4, 2), 1, cohort=4, workers=1)
    session = loop.open_session(str(write_work(tmp_path / "work", settings)))
    found = session["fused"](1, group=2, threads=1)
    assert found["last_loss"] < found["first_loss"]


def test_work_refuses_a_delta_of_other_names(tmp_path):
    folder = write_work(tmp_path / "work", settings_of(Cell("bias", 2, 2, 1), 1, cohort=2))
    work = read_work(folder)
    model = make_model(work)
    assert 0 <= accuracy(work, model) <= 1
    with pytest.raises(ValueError, match="trained parameters differ"):
        set_delta(model, {"classifier.bias": delta_of(model)["classifier.bias"]})
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="does not hold the parameters"):
        distance(folder / "start.safetensors", tmp_path / "foreign.safetensors")
    assert load_file(folder / "start.safetensors").keys() == work.start.keys()


def test_page_shows_what_was_measured_and_what_was_not():
    missed = row_report("4", ratios=(1.0, 2.0, 1.5)) | {"why_missed": "too slow"}
    results = {"3": row_report("3"), "4": missed, "8": unavailable("no such thing")}
    results["8"] |= {key: results["3"][key] for key in ("date", "seconds", "hardware", "versions")}
    text = page.page_of(results)
    assert "| 3 | a thing | ≥ 3 | 2 | 3 | 4 | met |" in text
    assert "| 4 | a thing | ≥ 3 | 1 | 1.5 | 2 | **missed** |" in text
    assert "too slow" in text and "not measured: no such thing" in text
    assert text.count("not measured yet") == len(rows.ROWS) - 3


def test_page_voids_a_row_whose_check_failed():
    report = row_report("3", ok=False)
    assert not holds(report)
    assert "void: a check failed" in page.page_of({"3": report})


def test_page_in_the_documentation_is_the_one_of_its_files():
    assert page.PAGE.read_text("utf-8") == page.page_of(page.read_results())


def test_row_is_measured_again_when_its_code_changes(tmp_path):
    row = rows.row_named("2")
    file = tmp_path / "row.json"
    assert not command._is_current(row, file)
    file.write_text(json.dumps({"digest": rows.digest_of(row)}), "utf-8")
    assert command._is_current(row, file)
    assert not command._is_current(dataclasses.replace(row, files=("page.py",)), file)


def test_unknown_row_is_refused(capsys):
    assert command.main(["99"]) == 2
    assert "there are 1, 2, 3" in capsys.readouterr().err


def test_row_that_breaks_is_reported_without_figures(monkeypatch, tmp_path):
    def broken(row: rows.Row, *, small: bool) -> dict:
        raise RuntimeError("no memory")

    monkeypatch.setattr(command, "measure", broken)
    assert command.main(["7", "--inside", "--out", str(tmp_path / "7.json")]) == 1
    report = json.loads((tmp_path / "7.json").read_text("utf-8"))
    assert report["figures"] == [] and "no memory" in report["reason"]


def test_contestant_that_raises_or_ends_is_reported(tmp_path):
    with Session("json", threads=1, log=tmp_path / "log") as session:
        with pytest.raises(ContestantError, match="no attribute 'open_session'"):
            session.call("open")
    with Session("no_such_module", threads=1, log=tmp_path / "log") as session:
        with pytest.raises(ContestantError, match="its process ended"):
            session.call("open")


def test_program_leaves_no_process_behind(tmp_path):
    start = "import subprocess as s; p = s.Popen(['sleep', '61.5'], start_new_session=True); "
    command = [sys.executable, "-S", "-c", start + "print(p.pid)"]
    with pytest.raises(ContestantError, match="no end after"):  # the daemon holds the output open
        run_program(command, dict(os.environ), timeout=1, log=tmp_path / "log")
    left = [entry for entry in Path("/proc").glob("[0-9]*") if command_of(entry) == "sleep 61.5"]
    assert not left
    with pytest.raises(ContestantError, match="exit code 3"):
        quit = [sys.executable, "-S", "-c", "raise SystemExit(3)"]
        run_program(quit, dict(os.environ), timeout=30, log=tmp_path / "log")


def command_of(entry: Path) -> str:
    try:
        return " ".join((entry / "cmdline").read_bytes().decode().split("\0")).strip()
    except OSError:
        return ""


def test_contestant_that_cannot_be_installed_is_reported(monkeypatch):
    def missing(name: str) -> Path:
        raise EnvironmentMissing(f"{name}: cannot be installed here: no network")

    monkeypatch.setattr(against_pfl, "python_of", missing)
    report = against_pfl.run(small=True)
    assert report["available"] is False and report["figures"] == []
    assert "no network" in report["reason"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_row_says_that_there_is_none():
    assert run_gpu(small=True)["reason"] == "no GPU at hand"


def test_flops_of_vit_b_are_the_published_ones():
    """17.6 GFLOP (multiply and add apart: 35.1) a forward pass at 224 pixels."""

    class ViTB:
        hidden_size, intermediate_size, num_hidden_layers = 768, 3072, 12

    assert train_flops(ViTB(), 1, 197) / 3 == pytest.approx(35.1e9, rel=0.02)


def run_small(name: str) -> dict:
    report = rows.measure(rows.row_named(name), small=True)
    if not report.get("available", True):
        assert any(word in report["reason"] for word in ("no GPU", "cannot be installed"))
    return report


@pytest.mark.parametrize("name", QUICK)
def test_quick_row_runs_small(name):
    assert holds(run_small(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [row.name for row in rows.ROWS if row.name not in QUICK])
def test_row_runs_small(name):
    assert holds(run_small(name))
