"""What commands print fits terminals of any width: no line too long, no word broken."""

from __future__ import annotations

import json

import click
import pytest
import typer

import fedpeft.cli.planning as planning
from fedpeft.cli.app import app, main
from fedpeft.cli.printing import say, show_table
from fedpeft.core.terminal import NO_BREAK
from fedpeft.plan.plan import Partition

WIDTHS = (40, 80, 120)
TINY = ("--set", "model.name=preset:tiny-vit", "--set", "data.partition.clients=4")
COMMANDS = (
    ["list", "methods"],
    ["list", "models"],
    ["list", "engines"],
    ["list", "stages"],
    ["list", "no-such-list"],
    ["plan", *TINY],
    ["check", "--set", "client.lr=-1", "--set", "tuning.method=lroa", "--set", "tuning.x=1"],
)


@pytest.fixture
def lines(monkeypatch, capsys):
    def printed(width, words):
        monkeypatch.setenv("COLUMNS", str(width))
        with pytest.raises(SystemExit):
            main(words)
        found = capsys.readouterr()
        return [*found.out.splitlines(), *found.err.splitlines()]

    return printed


@pytest.mark.parametrize("width", [None, *WIDTHS, 20])
@pytest.mark.parametrize("classes", [0, 3, 10, 757])
def test_the_drawing_of_a_partition_fits(width, classes):
    sizes = [500, 40, 3]
    counts = [[size, *[0] * (classes - 1)] for size in sizes] if classes else []
    partition = Partition(["client-a", "client-b", "client-c"], sizes, counts)
    found = list(planning._partition_lines(partition, width))
    drawn = [line.replace(NO_BREAK, " ") for line in found if "client-" in line]
    assert len(drawn) == 3 and all(len(line) <= (width or 120) for line in drawn)
    bars = [line.count("█", 0, line.find("|") if "|" in line else None) for line in drawn]
    assert bars[0] == max(bars) and min(bars) > 0
    assert ("|" in drawn[0]) == bool(classes) or width == 20


def words_of(text):
    return [word for word in text.split() if not set(word) <= set("|█▓▒░")]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_lines_of_commands_fit(words, lines):
    whole = set(words_of("\n".join(lines(1000, words))))
    for width in WIDTHS:
        found = lines(width, words)
        assert [line for line in found if len(line) > width and len(line.split()) > 1] == []
        parts = {word.strip(":,") for word in words_of("\n".join(found))}
        assert parts <= {word.strip(":,") for word in whole} | {"classes"}


def test_a_line_that_is_printed_without_care_is_seen(lines):
    assert max(map(len, lines(1000, ["plan", *TINY]))) > 40


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_become_records_where_they_do_not_fit(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    names = ("row", "trained parameters", "what", "time left")
    sentence = "a sentence of quite a few words that can go on below itself"
    rows = [["first-row-with-a-long-name", "1,000", sentence, "2 h 10 min"], ["b", "", "short", ""]]
    show_table(names, rows)
    out = capsys.readouterr().out
    assert all(len(line) <= width and line == line.rstrip() for line in out.splitlines())
    kept = {word.strip(":,") for word in out.split()}
    assert kept >= {word for row in rows for cell in row for word in cell.split()}


def test_numbers_stand_below_each_other_where_there_is_room(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    show_table(("row", "bytes"), [["a", "1"], ["b", "1,000"]], numbers=True)
    assert capsys.readouterr().out.splitlines() == ["row  bytes", "a        1", "b    1,000"]


def test_json_is_never_broken(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(SystemExit):
        main(["list", "datasets", "--json"])
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1 and json.loads(out)[0]["name"] == "digits"


def test_pipes_get_whole_lines(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    say("word " * 100)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_help_fits_eighty_columns():
    group = typer.main.get_command(app)
    top = click.Context(group, info_name="fedpeft", terminal_width=80, **group.context_settings)
    for name, command in group.commands.items():
        text = command.get_help(click.Context(command, top, name))
        assert [line for line in text.splitlines() if len(line) > 80] == [], name
    assert "..." not in group.get_help(top).split("Commands:")[1]
