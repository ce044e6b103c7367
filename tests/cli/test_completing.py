"""What Tab offers, and the script that asks for it in bash."""

from __future__ import annotations

import re
import subprocess

import pytest
import typer

import house
from fedpeft.cli.app import app, main
from fedpeft.cli.shells import SHELLS, candidates
from fedpeft.core.errors import FedpeftError
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.keys import keys_of
from fedpeft.experiment.read import DIGITS, read_experiment
from fedpeft.experiment.tables import OURS

SCHEDULES = ("constant", "linear", "cosine")
COMMAND = typer.main.get_command(app)
ROOT = house.PACKAGE.parent.parent


def offered(*words: str) -> list[str]:
    return [line.partition("\t")[0] for line in candidates(COMMAND, words)]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["rep"], ["report"]),
        (["run", "--res"], ["--resume"]),
        (["list", "me"], ["methods"]),
        (["export", "runs/a", "--as", "a"], ["adapter"]),
        (["run", "--set", "tuning.he"], ["tuning.head_init="]),
        (["run", "--set", "client.schedule="], [f"client.schedule={each}" for each in SCHEDULES]),
        (["plan", "--set", "client.nesterov=t"], ["client.nesterov=true"]),
        (["run", "--set", "data.source=glyphs-n"], ["data.source=glyphs-new"]),
        (["sweep", "--over", "client.optimizer=sgd,adamw_"], ["client.optimizer=sgd,adamw_8bit"]),
        (["report", "runs/"], [":files"]),
        (["run", "--set", "data.source=./"], [":files"]),
        (["run", "--set", "no.such=x"], [":files"]),
        (["run", "--no-such"], []),
    ],
)  # fmt: skip
def test_the_last_word_is_completed(words, found):
    assert offered(*words) == found


def test_commands_come_with_what_they_do():
    lines = dict(line.split("\t") for line in candidates(COMMAND, [""]))
    assert set(lines) == set(COMMAND.commands) and all(lines.values())


def test_names_of_a_table_are_offered():
    assert offered("run", "--set", "tuning.method=") == [
        f"tuning.method={name}" for name in OURS["methods"]
    ]


def test_keys_are_those_of_the_reference():
    page = (ROOT / "docs" / "reference" / "experiment-file.md").read_text("utf-8")
    known = re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE)
    assert sorted(key.name for key in keys_of(Experiment)) == sorted(known)


@pytest.mark.parametrize("key", [key for key in keys_of(Experiment) if key.values])
def test_every_offered_value_is_of_the_right_kind(key):
    for value in (*key.values, "no-such-value"):
        try:
            read_experiment(DIGITS, [f"{key.name}={value}"])
        except FedpeftError as error:
            wrong = f"{key.name}: found '{value}'; allowed is" in str(error)
        else:
            wrong = False
        assert wrong == (value == "no-such-value")


def test_scripts_are_printed_and_others_refused(capsys):
    for shell in SHELLS:
        with pytest.raises(SystemExit):
            main(["completion", shell])
        assert f"fedpeft completion {shell} -- " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["completion", "zhs"])
    assert "did you mean 'zsh'?" in capsys.readouterr().err


def replies(line: str, words: list[str], lines: list[str]) -> tuple[list[str], list[str]]:
    """Complete a line in bash; return what fedpeft was asked, and what bash was given."""
    script = f"""
fedpeft() {{ printf '<%s>' "${{@:4}}" >&3; printf '%s\\n' "${{lines[@]}}"; }}
compopt() {{ :; }}
{(house.PACKAGE / "cli" / "completion.bash").read_text("utf-8")}
lines=("$2" "$3")
COMP_LINE=$1 COMP_POINT=${{#1}}
shift 3
COMP_WORDS=(fedpeft "$@") COMP_CWORD=$#
_fedpeft 3>&1
printf '\\n%s' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-c", script, "bash", line, *lines, *words],
        capture_output=True,
        text=True,
        check=True,
    )
    asked, *given = done.stdout.split("\n")
    return re.findall("<(.*?)>", asked), given


@pytest.mark.parametrize(
    ("line", "words", "asked", "lines", "given"),
    [
        ("fedpeft pl", ["pl"], ["pl"], ["plan\tShow", "play\tx y"], ["plan", "play"]),
        (
            "fedpeft run --set a.b=c",
            ["run", "--set", "a.b", "=", "c"],
            ["run", "--set", "a.b=c"],
            ["a.b=cd\t", "a.b=ce\t"],
            ["cd", "ce"],
        ),
        (
            "fedpeft run --set m=preset:ti",
            ["run", "--set", "m", "=", "preset", ":", "ti"],
            ["run", "--set", "m=preset:ti"],
            ["m=preset:tiny-vit\t", "m=preset:tiny-bert\t"],
            ["tiny-vit", "tiny-bert"],
        ),
        (
            "fedpeft run --set a.b=",
            ["run", "--set", "a.b", "="],
            ["run", "--set", "a.b="],
            ["a.b=x\t", "a.b=y\t"],
            ["x", "y"],
        ),
        (
            "fedpeft run --set a=1 --set ",
            ["run", "--set", "a", "=", "1", "--set", ""],
            ["run", "--set", "a=1", "--set", ""],
            ["a=\t", "b=\t"],
            ["a=", "b="],
        ),
    ],
)
def test_bash_joins_what_it_split(line, words, asked, lines, given):
    assert replies(line, words, lines) == (asked, given)
