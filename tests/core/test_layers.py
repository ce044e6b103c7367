"""Imports point left: core -> models -> ... -> cli."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fedpeft

ROOT = Path(fedpeft.__file__).parent
LAYERS = [
    "core", "models", "tuning", "data", "client", "server", "wire", "rounds", "engines",
    "experiment", "cli",
]  # fmt: skip
CONFINED = {
    "flwr": "engines/flower", "ray": "engines/flower", "peft": "tuning/",
    "matplotlib": ("experiment/report", "data/glyphs.py"),
}  # fmt: skip
FILES = sorted(ROOT.rglob("*.py"))


def layer(name: str) -> int:
    first = name.split(".")[0]
    return LAYERS.index(first) if first in LAYERS else LAYERS.index("cli")


def imports(text: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def wrong_imports(where: str, text: str) -> list[str]:
    own = layer(where.removesuffix(".py").replace("/", "."))
    wrong = []
    for name in imports(text):
        parts = name.split(".")
        if parts[0] == "fedpeft" and len(parts) > 1 and parts[1] in LAYERS:
            wrong += [name] if layer(".".join(parts[1:])) > own else []
        elif parts[0] in CONFINED and not where.startswith(CONFINED[parts[0]]):
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_left(file):
    where = str(file.relative_to(ROOT))
    if "/" in where or where.startswith("cli"):
        assert wrong_imports(where, file.read_text()) == []


def test_a_wrong_import_is_seen():
    assert wrong_imports("core/x.py", "from fedpeft.models import tasks")
    assert wrong_imports("models/x.py", "import peft")
    assert not wrong_imports("tuning/x.py", "import peft\nfrom fedpeft.models import tasks")
