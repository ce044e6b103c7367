"""Questions about installed packages, and their answers: instruction data that need no download.

    scipy/stats/_qmc.py   class Sobol:  '''Engine for generating (scrambled) Sobol' sequences.'''
      ->  question "In the Python package scipy, what does the class Sobol of scipy.stats do?"
          answer   "Engine for generating (scrambled) Sobol' sequences."      client "scipy"

Source files are parsed, never imported. An answer is the first sentence of a public docstring. The
texts depend on the installed versions: `Splits.digest` records which were read.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedpeft.data.docstrings import PACKAGES, documented, installed_folders, sources, stable
from fedpeft.data.tables import Splits, Table

_PER_PACKAGE = 150
_MAX_FILES = 120
_LENGTH = (25, 160)
"""Fewest and most characters of an answer."""
_TEST_SHARE = 0.2
_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!cf)(?<!vs)(?<=[a-z0-9)'`])\.(?=\s|$)")
_MARKUP = re.compile(r":\w+:`~?([^`<]+)(?: <[^`]*>)?`|``?([^`]+)``?")


@dataclass(frozen=True)
class Question:
    """One example.

    Attributes:
      name: dotted name of what is asked about, unique.
      package: its package, which is the client.
      question: what is asked.
      answer: the first sentence of its docstring.
    """

    name: str
    package: str
    question: str
    answer: str


def read_questions() -> Splits:
    """Collect questions; a fifth of each package's, by a hash of names, is the test split.

    Raises:
      DataError: if fewer than two of the packages are installed.
    """
    found = installed_folders("docstring-questions", PACKAGES)
    train, test = list[Question](), list[Question]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # parsing warns of string escapes in the packages' code
        for name, folder in found.items():
            questions = _of_package(name, folder)
            cut = round(_TEST_SHARE * len(questions))
            test += questions[:cut]
            train += questions[cut:]
    text = "\n".join(f"{each.question} {each.answer}" for each in (*train, *test))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Splits({"train": _table(train), "test": _table(test)}, digest=digest)


def first_sentence(docstring: str) -> str:
    """Return the first sentence of a docstring as plain text; "" where it has none."""
    paragraph = inspect.cleandoc(docstring).split("\n\n")[0]
    words = " ".join(_MARKUP.sub(lambda m: m[1] or m[2], paragraph).split())
    end = _END.search(words)
    return words[: end.end()] if end else ""


def _of_package(package: str, folder: Path) -> list[Question]:
    """Return a package's questions in the order of a hash of their names."""
    files = sorted(sources(folder), key=lambda file: stable(file.relative_to(folder).as_posix()))
    found: dict[str, Question] = {}
    for file in files[:_MAX_FILES]:
        for each in _of_file(package, folder, file):
            found.setdefault(each.answer.casefold(), each)  # many say the same
        if len(found) >= _PER_PACKAGE:
            break
    return sorted(found.values(), key=lambda each: stable(each.name))[:_PER_PACKAGE]


def _of_file(package: str, folder: Path, file: Path) -> Iterator[Question]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    parts = [part for part in file.relative_to(folder).with_suffix("").parts if part != "__init__"]
    public = [part for part in parts if not part.startswith("_")]
    module = ".".join((package, *public))
    kinds = {ast.ClassDef: "class", ast.FunctionDef: "function", ast.AsyncFunctionDef: "function"}
    for name, node, docstring in documented(tree, ""):
        answer = first_sentence(docstring)
        kind = kinds[type(node)] if "." not in name else "method"
        if _LENGTH[0] <= len(answer) <= _LENGTH[1]:
            question = f"In Python, what does the {kind} {name} of {module} do?"
            yield Question(f"{module}.{name}", package, question, answer)


def _table(questions: list[Question]) -> Table:
    fields = {"question": "question", "answer": "answer", "client": "package", "name": "name"}
    return Table({name: [getattr(each, f) for each in questions] for name, f in fields.items()})
