"""The command line: exit codes, what goes to which stream, and the options that others rely on."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import typer
from support import TINY

from fedpeft.cli import main
from fedpeft.cli.app import app, warnings_once
from fedpeft.cli.listing import LISTS
from fedpeft.experiment.plugins import Plugins

OPTIONS = {
    "run": {"--set", "--out", "--resume", "--json"},
    "sweep": {"--set", "--over", "--out", "--json"},
    "plan": {"--set", "--json"},
    "check": {"--set"},
    "show": {"--set", "--examples", "--json"},
    "list": {"--json"},
    "report": {"--out", "--target", "--title", "--diagnostics"},
    "export": {"--to"},
    "convert": {"--as", "--to", "--size"},
    "doctor": {"--json"},
    "theorem": {"--sample", "--every", "--points", "--json"},
    "gap": {"--data", "--reference", "--model", "--out", "--json"},
}

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path / "tiny.toml"


@pytest.mark.parametrize("command", OPTIONS)
def test_help_has_the_options_and_examples(call: Call, command: str) -> None:
    code, out, _ = call(command, "--help")
    assert code == 0 and f"fedpeft {command}" in out.split("Examples:")[1]
    assert {word.rstrip(",") for word in out.split() if word.startswith("--")} >= OPTIONS[command]


def test_help_takes_under_half_a_second_of_cpu() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "fedpeft", "--help"], capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert done.returncode == 0 and used < 0.5


def test_version(call: Call) -> None:
    code, out, _ = call("--version")
    assert code == 0 and out.startswith("fedpeft ")


def test_run_json_is_one_object_and_progress_goes_elsewhere(
    call: Call, file: Path, tmp_path: Path
) -> None:
    code, out, err = call("run", file, "--out", tmp_path / "out", "--json")
    summary = json.loads(out)
    assert code == 0 and summary["rounds"] == 2
    assert summary["run_dir"] == str(tmp_path / "out")
    assert "round 1/2, accuracy" in err and "left" in err


def test_run_without_json_says_what_came_out_and_what_next(
    call: Call, file: Path, tmp_path: Path
) -> None:
    _, out, _ = call("run", file, "--out", tmp_path / "out")
    assert out.startswith("accuracy 0.") and f"next: fedpeft report {tmp_path / 'out'}" in out


def test_default_folder_is_named_by_the_run(
    call: Call, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("run", file, "--set", "name=mine", "--json")
    assert code == 0 and json.loads(out)["run_dir"].startswith("runs/mine-2")


def test_resume_needs_no_file(call: Call, file: Path, tmp_path: Path) -> None:
    first = call("run", file, "--out", tmp_path / "out", "--json")
    again = call("run", "--out", tmp_path / "out", "--resume", "--json")
    assert again[0] == 0 and json.loads(again[1]) == json.loads(first[1])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--set", "federation.round=3"], "did you mean 'rounds'"),
        (["--set", "client.lr=-1", "--set", "seed=x"], "2 problems"),
        (["--set", "model.name=vit-glyph-8"], "the nearest names are vit-glyphs-8"),
        (["--set", "data.source=./nothing"], "there is no file or folder"),
        (["--set", "rounds"], "found no KEY=VALUE"),
        (["--resume"], "--resume: there is no --out"),
    ],
)
def test_bad_input_is_exit_2_with_a_message_and_no_folder(
    call: Call, file: Path, tmp_path: Path, args: list[str], message: str
) -> None:
    out_args = [] if "--resume" in args else ["--out", tmp_path / "out"]
    code, out, err = call("run", file, *args, *out_args)
    assert (code, out) == (2, "") and message in err and "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == [file]


def test_missing_file_is_exit_2(call: Call, tmp_path: Path) -> None:
    code, _, err = call("check", tmp_path / "none.toml")
    assert code == 2 and "there is no such file" in err


def test_full_folder_is_exit_2(call: Call, file: Path, tmp_path: Path) -> None:
    code, _, err = call("run", file, "--out", tmp_path)
    assert code == 2 and "not empty" in err


def test_too_few_replies_are_exit_3(call: Call, file: Path, tmp_path: Path) -> None:
    """A learning rate that makes every update infinite: all replies are refused."""
    args = ["--set", "client.lr=1e30", "--set", "client.epochs=3", "--out", tmp_path / "out"]
    code, _, err = call("run", file, *args)
    assert code == 3 and "clients gave a usable update" in err


def test_a_server_step_that_overflows_is_exit_4_and_nothing_is_kept(
    call: Call, file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, said, err = call("run", file, "--set", "federation.options={lr=1e300}", "--out", out)
    assert code == 4 and "federation.options.lr" in err and "client.lr" not in err
    assert not said and not (out / "summary.json").exists()
    assert not list((out / "checkpoints").glob("*")) and not (out / "rounds.jsonl").read_text()


def test_unknown_command_and_option_are_exit_2(call: Call) -> None:
    assert call("fly")[0] == 2
    assert call("run", "--fast")[0] == 2


def test_sweep_json_is_a_list_and_the_worst_code_is_returned(
    call: Call, file: Path, tmp_path: Path
) -> None:
    over = ["--over", "data.partition.min_examples=1,900"]
    code, out, err = call("sweep", file, *over, "--out", tmp_path / "out", "--json")
    found = json.loads(out)
    assert code == 2 and [row["status"] for row in found] == ["finished", "failed"]
    assert "min_examples=900" in err


def test_sweep_prints_a_table(call: Call, file: Path, tmp_path: Path) -> None:
    code, out, _ = call("sweep", file, "--over", "seed=1,2", "--out", tmp_path / "out")
    header, line, *_ = out.splitlines()
    assert code == 0 and header.split()[:3] == ["method", "accuracy", "trained"]
    assert line.startswith("bias ") and "±" in line


def test_plan_has_the_names_of_the_contract(call: Call, file: Path) -> None:
    code, out, _ = call("plan", file, "--json")
    assert code == 0 and set(json.loads(out)) >= {
        "trainable_parameters", "total_parameters", "payload_bytes", "trainable_payload_bytes",
        "wire_bytes_up", "wire_bytes_down", "cohort", "rounds", "total_bytes", "epsilon",
    }  # fmt: skip


def test_plan_draws_the_partition(call: Call, file: Path) -> None:
    _, out, _ = call("plan", file)
    assert "6 clients with" in out and "█" in out


def test_check_passes_the_quickstart(call: Call) -> None:
    code, out, _ = call("check")
    assert code == 0 and "no problems found, 7 sweep rows" in out


def test_check_lists_all_problems(call: Call, file: Path) -> None:
    file.write_text(TINY + "[wire]\nups = []\n[tuning]\nmethod = 3\n")
    code, _, err = call("check", file)
    assert code == 2 and "2 problems" in err and "did you mean 'up'" in err


@pytest.mark.parametrize("what", sorted(LISTS.keys() - {"callbacks"}))
def test_list_prints_rows_with_names(call: Call, what: str) -> None:
    names = [row["name"] for row in json.loads(call("list", what, "--json")[1])]
    code, out, _ = call("list", what)
    assert code == 0 and names and all(name in out for name in names)


def test_a_list_without_rows_says_so(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpeft.experiment.plugins.installed", Plugins)
    assert call("list", "callbacks", "--json")[:2] == (0, "[]\n")
    code, out, _ = call("list", "callbacks")
    assert code == 0 and out.startswith("no callbacks: ")


def test_unknown_list_is_exit_2(call: Call) -> None:
    code, _, err = call("list", "model")
    assert code == 2 and "did you mean 'models'" in err


def test_doctor_trains_a_round(call: Call) -> None:
    code, out, _ = call("doctor", "--json")
    found = json.loads(out)
    assert found["self_check"] == "ok" and found["versions"]["torch"]
    assert code == (0 if found["bundled_model"] == "ok" else 4)


def test_interrupted_run_says_how_to_go_on(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sets = ["--set", "federation.rounds=5000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedpeft", "run", str(file), *sets, "--out", str(out)],
        stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while not list(out.glob("checkpoints/*.safetensors")) and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    command = f"fedpeft run {file} --set federation.rounds=5000 --out {out} --resume"
    assert f"interrupted; go on with: {command}" in err


def paths_of(group: click.Group) -> list[object]:
    """List the arguments and options of all commands whose value is a path."""
    commands = [(name, param) for name, each in group.commands.items() for param in each.params]
    return [
        pytest.param(param, id=f"{name}-{param.name}")
        for name, param in commands
        if isinstance(param.type, click.Path)
    ]


PATHS = paths_of(typer.main.get_command(app))


@pytest.mark.parametrize("param", PATHS)
def test_a_home_folder_is_written_out_in_every_path_of_the_command_line(
    param: click.Parameter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The shell leaves `~` in `--out=~/x` and in quotes; a user who does not exist stays."""
    monkeypatch.setenv("HOME", str(tmp_path))
    context = click.Context(click.Command("x"))
    many = param.nargs == -1 or getattr(param, "multiple", False)
    for given, expected in (("~/x", tmp_path / "x"), ("~no-such-user/x", Path("~no-such-user/x"))):
        found = param.process_value(context, [given] if many else given)
        assert found == ([expected] if many else expected)


def test_all_paths_of_the_command_line_are_found() -> None:
    assert len(PATHS) > 20


def test_a_warning_about_the_data_is_printed_once() -> None:
    def printed(name: str) -> list[bool]:
        record = logging.makeLogRecord({"name": name, "msg": "not read: notes.csv"})
        assert logging.lastResort is not None
        return [bool(logging.lastResort.filter(record)) for _ in range(2)]

    with warnings_once():
        assert printed("fedpeft.data.source") == [True, False]
        assert printed("fedpeft.runs.loop") == [True, True]
    assert printed("fedpeft.data.source") == [True, True]
