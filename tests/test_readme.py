"""What the README shows is real: its files are valid, its names exist, its commands parse."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

import fedpeft
from fedpeft.cli.app import app
from fedpeft.experiment.read import validate

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(kind: str) -> list[str]:
    texts = [page.read_text("utf-8") for page in PAGES]
    found = (m for text in texts for m in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S))
    return [block for name, block in found if name == kind]


def test_experiment_files_are_valid():
    assert len(blocks("toml")) >= 2
    for block in blocks("toml"):
        assert validate(tomllib.loads(block), "README")


def test_names_of_python_code_exist():
    used = {
        node.attr
        for block in blocks("python")
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "fedpeft"
    }
    assert len(used) > 6 and used <= set(fedpeft.__all__)


def test_commands_exist_with_their_options():
    commands = typer.main.get_command(app).commands
    whole = [block.replace("\\\n", " ") for block in blocks("")]
    shown = [line for block in whole for line in block.splitlines() if "fedpeft " in line]
    lines = [line.split("#")[0] for line in shown if line.lstrip().startswith("fedpeft ")]
    assert len(lines) >= 8
    for words in map(shlex.split, lines):
        options = {name for p in commands[words[1]].params for name in p.opts}
        assert {word for word in words[2:] if word.startswith("--")} <= options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
