import json

import pytest
from typer.testing import CliRunner

from fedpeft.cli.app import app

RUNNER = CliRunner()


def said(*args, lines=""):
    found = RUNNER.invoke(app, [str(arg) for arg in args], input=lines)
    assert found.exit_code == 0, found.output
    return found.stdout


def test_labels_before_and_after_stand_side_by_side(texts_run):
    heading, row = said("predict", texts_run, "w1 w2").splitlines()
    assert heading.split() == ["input", "before", "probability", "after", "probability"]
    assert row.startswith("w1 w2") and {*row.split()} & {"yes", "no"}
    assert said("predict", texts_run, "w1 w2", "--after-only").split()[:3] == [
        "input",
        "label",
        "probability",
    ]


def test_json_is_a_list_of_predictions(texts_run):
    [found] = json.loads(said("predict", texts_run, "w1 w2", "--json"))
    assert {*found} == {"input", "label", "probability", "before"}
    assert 0.5 <= found["probability"] <= 1


def test_answers_before_and_after_stand_below_each_other(language_run):
    lines = said("predict", language_run, "-", "--max-new-tokens", 6, lines="one\ntwo\n")
    starts = [line.split(":")[0] for line in lines.split("\n") if ": " in line]
    assert [each for each in starts if each in ("input", "before", "after")] == [
        *("input", "before", "after"),
        *("input", "before", "after"),
    ]


def test_piped_lines_are_answered_in_turn(language_run):
    once = said("chat", language_run, "--max-new-tokens", 6, lines="one\n")
    twice = said("chat", language_run, "--max-new-tokens", 6, lines="one\n/new\none\n/bye\nno\n")
    assert once.startswith("before: ") and "\nafter: " in once
    assert twice == once * 2
    alone = said("chat", language_run, "--max-new-tokens", 6, "--after-only", lines="one\n")
    assert once.endswith(f"after: {alone}")


def test_a_conversation_that_is_too_long_ends_no_chat(language_run):
    found = RUNNER.invoke(app, ["chat", language_run], input="long " * 120 + "\n")
    assert found.exit_code == 0
    assert "/new starts a new conversation" in found.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["predict", "RUN", "none.jsonl"], "there is no file or folder 'none.jsonl'"),
        (["predict", "nowhere", "a"], "neither a run folder"),
        (["chat", "RUN"], "only language models answer"),
    ],
)
def test_bad_input_gets_one_sentence(texts_run, args, words):
    found = RUNNER.invoke(app, [texts_run if arg == "RUN" else arg for arg in args])
    assert found.exit_code == 2
    assert words in " ".join(found.stderr.split())
