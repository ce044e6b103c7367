"""Docstrings of installed scientific packages: a text classification that needs no download.

    scipy/stats/_qmc.py   class Sobol:  '''Engine for generating (scrambled) Sobol' ...'''
      ->  text "Engine for generating ...", label "scipy", client "scipy.stats"

Source files are parsed, never imported. A text is the first paragraphs of a public docstring, up to
the first section; package names in it are replaced by "package", so that they do not give the
class away. The texts depend on the installed versions: `Splits.digest` records which texts were
read.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from fedpeft.core.errors import DataError
from fedpeft.data.tables import Splits, Table

PACKAGES = ("matplotlib", "networkx", "numpy", "pandas", "scipy", "sklearn", "sympy", "torch")

_MIN_CHARS = 60
_MAX_CHARS = 400
_PER_MODULE = 80
_PER_PACKAGE = 400
_MAX_FILES = 200
_MAX_BYTES = 200_000
_LEFT_OUT = frozenset({"tests", "testing", "distutils", "f2py", "externals"})
_TEST_SHARE = 0.2
_MASKED = re.compile(
    r"matplotlib|pyplot|networkx|numpy|pandas|scipy|scikit-learn|sklearn|sympy|pytorch|torch|"
    r"\b(?:mpl|nx|np|pd|plt)\b",
    re.IGNORECASE,
)
_SECTION = re.compile(r"^(?:[-=~*^\"]{3,}|\.\. .*|:\w+.*:.*|Args:|Example[s]?:?|>>> .*)$")


_Defined: TypeAlias = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Docstring:
    """One example.

    Attributes:
      name: dotted name, unique and the same in every version: `scipy.stats._qmc.Sobol`.
      package: name of the package, which is the example's class.
      module: module or subpackage directly below the package, which is the example's natural
        client: `scipy.stats`.
      text: first paragraphs of the docstring, with package names masked.
    """

    name: str
    package: str
    module: str
    text: str


def installed_folders(source: str, packages: Sequence[str]) -> dict[str, Path]:
    """Return the folders of the packages that are installed, by name.

    Raises:
      DataError: naming the data source, if fewer than two of them are.
    """
    found = {name: folder for name in packages if (folder := folder_of(name)) is not None}
    if len(found) < 2:
        raise DataError(
            f"data.source: {source} needs two or more of {', '.join(packages)} installed; "
            f"found are {', '.join(found) or 'none'}"
        )
    return found


def read_docstrings(packages: Sequence[str] = PACKAGES) -> Splits:
    """Collect docstrings; a fifth of each module, chosen by a hash of names, is the test split.

    Raises:
      DataError: if fewer than two of the packages are installed.
    """
    found = installed_folders("docstrings", packages)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # parsing warns of string escapes in the packages' code
        examples = [e for name, folder in found.items() for e in _of_package(name, folder)]
    by_module: dict[str, list[Docstring]] = {}
    for example in examples:
        by_module.setdefault(example.module, []).append(example)
    test = {
        example.name
        for group in by_module.values()
        for example in group[: round(_TEST_SHARE * len(group))]
    }
    digest = hashlib.sha256("\n".join(f"{e.name} {e.text}" for e in examples).encode()).hexdigest()
    tables = {
        "train": _table([e for e in examples if e.name not in test]),
        "test": _table([e for e in examples if e.name in test]),
    }
    return Splits(tables, digest=digest)


def summary_of(docstring: str) -> str:
    """Return the masked paragraphs before the first section: one line, at most 400 characters."""
    lines: list[str] = []
    for line in inspect.cleandoc(docstring).splitlines():
        if _SECTION.match(line.strip()):
            if lines and line.strip()[0] in '-=~*^"':
                lines.pop()
            break
        lines.append(line)
    words = " ".join(" ".join(lines).split())
    return _MASKED.sub("package", words)[:_MAX_CHARS].strip()


def folder_of(package: str) -> Path | None:
    """Return the folder of an installed package, which is not imported; None without it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _of_package(package: str, folder: Path) -> list[Docstring]:
    """Return a package's examples in the order of a hash of their names, capped by module."""
    files = sorted(sources(folder), key=lambda file: stable(file.relative_to(folder).as_posix()))
    counts: dict[str, int] = {}
    texts: dict[str, Docstring] = {}
    for file in files[:_MAX_FILES]:
        for example in _of_file(package, folder, file):
            if counts.get(example.module, 0) < _PER_MODULE and example.text not in texts:
                counts[example.module] = counts.get(example.module, 0) + 1
                texts[example.text] = example
        if len(texts) >= _PER_PACKAGE:
            break
    return sorted(texts.values(), key=lambda example: stable(example.name))[:_PER_PACKAGE]


def sources(folder: Path) -> Iterator[Path]:
    """Yield the public source files of a package."""
    for file in folder.rglob("*.py"):
        folders = file.relative_to(folder).parts[:-1]
        hidden = any(part.startswith("_") and part != "_core" for part in folders)
        if not hidden and not _LEFT_OUT.intersection(folders) and file.stat().st_size < _MAX_BYTES:
            yield file


def _of_file(package: str, folder: Path, file: Path) -> Iterator[Docstring]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    parts = file.relative_to(folder).with_suffix("").parts
    module = f"{package}.{parts[0]}" if len(parts) > 1 else package
    dotted = ".".join((package, *(part for part in parts if part != "__init__")))
    for name, _, docstring in documented(tree, f"{dotted}."):
        text = summary_of(docstring)
        if len(text) >= _MIN_CHARS:
            yield Docstring(name, package, module, text)


def documented(node: ast.AST, prefix: str) -> Iterator[tuple[str, _Defined, str]]:
    """Yield (dotted name, node, docstring) of public functions and classes, methods included."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if child.name.startswith("_"):
            continue
        name = f"{prefix}{child.name}"
        docstring = ast.get_docstring(child, clean=False)
        if docstring:
            yield name, child, docstring
        if isinstance(child, ast.ClassDef):
            yield from documented(child, f"{name}.")


def _table(examples: Sequence[Docstring]) -> Table:
    fields = {"text": "text", "label": "package", "client": "module", "name": "name"}
    return Table({name: [getattr(e, field) for e in examples] for name, field in fields.items()})


def stable(name: str) -> str:
    """Return a name's hash, by which names are put in an order that means nothing."""
    return hashlib.sha256(name.encode()).hexdigest()
