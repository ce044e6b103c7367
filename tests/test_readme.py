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
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


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


def links(text: str) -> list[str]:
    """The targets of links and pictures outside of code blocks, without those on the web."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)
    found = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [target for target in found if not re.match(r"https?:|mailto:", target)]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)
    headings = [
        re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", h) for h in re.findall(r"^#+ (.*)", prose, re.M)
    ]
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def broken(page: Path, text: str) -> list[str]:
    wrong = []
    for target in links(text):
        path, _, anchor = target.partition("#")
        other = page.parent / path if path else page
        if not other.exists() or (anchor and anchor not in anchors(other.read_text("utf-8"))):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_lead_somewhere(page):
    assert broken(page, page.read_text("utf-8")) == []


def test_a_broken_link_is_noticed():
    text = "[a](docs/nowhere.md) [b](README.md#nowhere) [c](https://example.org) [d](LICENSE)"
    assert broken(ROOT / "README.md", text) == ["docs/nowhere.md", "README.md#nowhere"]


def test_every_page_stands_in_the_contents_of_the_site():
    docs = ROOT / "docs"
    contents = (docs / "index.md").read_text("utf-8").splitlines()
    pages = {str(page.relative_to(docs).with_suffix("")) for page in docs.rglob("*.md")}
    outside = {name for name in pages if name.startswith("decisions/0")}  # their own index globs
    assert pages - outside - {"index"} <= set(contents)


def test_the_answers_of_contributing_are_in_the_code():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    rows = re.findall(r"^\| Wh[^|]*\| `([^`]*)` \| ([^|]*) \|$", text, re.M)
    assert len(rows) == 10
    for file, names in rows:
        tree = ast.parse((ROOT / "src" / "fedpeft" / file).read_text("utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert set(re.findall(r"`([^`]*)`", names)) <= defined, file
