"""Print the rooms of the package, their files and lines of code, and the arrows between them.

    python scripts/house.py             # rooms, lines, arrows; what breaks a rule, if anything
    python scripts/house.py FILE.py     # what one file imports, and who imports it

Rules: a module imports from its own room and from rooms to the left; no file imports itself through
others; no module is named in a string. Lines of code are those without blanks, comments and
docstrings, templates included.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "fedpeft"
ROOMS = (
    "core", "models", "tuning", "data", "client", "answers", "server", "wire", "rounds", "engines",
    "experiment", "build", "runs", "results", "pictures", "plan", "export", "studies", "report",
    "federation", "inference", "launch", "testing", "cli",
)  # fmt: skip
"""From left to right; what lies in no room (`fedpeft/__init__.py`) comes last."""

CONFINED: Mapping[str, tuple[str, ...]] = {
    "flwr": ("engines/flower/", "federation/"),
    "ray": ("engines/flower/",),
    "peft": ("tuning/",),
    "matplotlib": ("pictures/", "report/", "studies/", "plan/pictures.py"),
}
"""Libraries that only these rooms or files may import."""

_CODELESS = (
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
)  # fmt: skip
_TEMPLATES = (".html", ".jinja", ".css", ".js", ".txt")


@dataclass(frozen=True)
class House:
    """The package, as its files say.

    Attributes:
      files: module -> its file.
      arrows: module -> module that it imports -> names that it takes.
    """

    files: Mapping[str, Path]
    arrows: Mapping[str, Mapping[str, frozenset[str]]]


def read_house(root: Path = PACKAGE) -> House:
    """Read the imports of every file below a package's folder."""
    files = {_module(root, file): file for file in sorted(root.rglob("*.py"))}
    arrows = {
        module: imports_of(file.read_text("utf-8"), module, files) for module, file in files.items()
    }
    return House(files, arrows)


def imports_of(text: str, module: str, files: Mapping[str, Path]) -> Mapping[str, frozenset[str]]:
    """Return which modules of the package a text imports, those inside functions included."""
    found: dict[str, set[str]] = defaultdict(set)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                home = inner if inner in files else node.module
                if home in files and home != module:
                    found[home].add(alias.name)
                if (
                    home == inner
                    and node.module in files
                    and node.module not in (module, "fedpeft")
                ):
                    found[node.module].add(alias.name)  # the package itself is run, too
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in files and alias.name != module:
                    found[alias.name].add(alias.name)
    return {home: frozenset(names) for home, names in found.items()}


def room_of(module: str) -> str:
    """Return the room that a module lies in; "" for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else ""


def arrows_up(house: House) -> list[str]:
    """Return imports from a room on the right, `a -> b` each."""
    place = {room: number for number, room in enumerate((*ROOMS, ""))}
    return [
        f"{module} -> {home}"
        for module, homes in house.arrows.items()
        for home in homes
        if place[room_of(home)] > place[room_of(module)]
    ]


def circles(house: House) -> list[str]:
    """Return the modules that import themselves through others."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = [start]
        while ahead:
            for home in house.arrows[ahead.pop()]:
                if home not in seen:
                    seen.add(home)
                    ahead.append(home)
        return seen

    return [module for module in house.files if module in reached(module)]


def hidden_imports(text: str) -> list[str]:
    """Return strings that name a module of the package, or hold an import of one."""
    tree = ast.parse(text)
    prose = {id(node) for node in _docstrings(tree)}
    rooms = "|".join(ROOMS)
    wanted = re.compile(rf"(?:from|import)\s+fedpeft\.(?:{rooms})\b|^fedpeft\.(?:{rooms})\b[\w.]*$")
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in prose
        and wanted.search(node.value)
    ]


def unconfined(where: str, text: str) -> list[str]:
    """Return libraries that a file imports and may not.

    Args:
      where: the file's path below the package.
      text: of the file.
    """
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return sorted(lib for lib in found & set(CONFINED) if not where.startswith(CONFINED[lib]))


def lines_of(text: str) -> int:
    """Count a text's lines of code: no blanks, comments or docstrings."""
    prose = {
        line
        for node in _docstrings(ast.parse(text))
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _CODELESS:
            code |= set(range(token.start[0], token.end[0] + 1))
    blank = {number for number, line in enumerate(text.split("\n"), 1) if not line.strip()}
    return len(code - prose - blank)


def count_lines(root: Path = PACKAGE) -> dict[str, int]:
    """Count lines of code by file, templates included, by path below the root."""
    found = {}
    for file in sorted(root.rglob("*")):
        where = str(file.relative_to(root))
        if file.suffix == ".py":
            found[where] = lines_of(file.read_text("utf-8"))
        elif file.suffix in _TEMPLATES and "bundled" not in file.parts:
            found[where] = sum(bool(line.strip()) for line in file.read_text("utf-8").split("\n"))
    return found


def _docstrings(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield strings that stand alone as statements: of modules, classes, functions, constants."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                yield statement.value


def _module(root: Path, file: Path) -> str:
    parts = file.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def main() -> None:
    """Print the house, or one file's place in it."""
    house = read_house()
    if len(sys.argv) > 1:
        _print_file(house, Path(sys.argv[1]).resolve())
        return
    lines = count_lines()
    total = sum(lines.values())
    by_room: Counter[str] = Counter()
    num_files: Counter[str] = Counter()
    for where, count in lines.items():
        room = room_of("fedpeft." + where.replace("/", ".")) if "/" in where else ""
        by_room[room] += count
        num_files[room] += 1
    targets: dict[str, Counter[str]] = {room: Counter() for room in (*ROOMS, "")}
    for module, homes in house.arrows.items():
        for home in homes:
            if room_of(home) != room_of(module):
                targets[room_of(module)][room_of(home)] += 1
    print(f"{total} lines of code in {len(lines)} files\n")
    print("room         files  lines  share  imports from")
    for room in (*ROOMS, ""):
        ordered = sorted(targets[room].items(), key=lambda pair: (*ROOMS, "").index(pair[0]))
        heads = " ".join(f"{name}:{count}" for name, count in ordered)
        share = by_room[room] / total
        print(f"{room or '.':12} {num_files[room]:5} {by_room[room]:6} {share:6.1%}  {heads}")
    hidden = {
        module: found
        for module, file in house.files.items()
        if (found := hidden_imports(file.read_text("utf-8")))
    }
    print(f"\narrows to the right: {arrows_up(house) or 'none'}")
    print(f"files in circles: {circles(house) or 'none'}")
    print(f"modules named in strings: {hidden or 'none'}")


def _print_file(house: House, file: Path) -> None:
    module = next(name for name, path in house.files.items() if path == file)
    print(module)
    for home, names in sorted(house.arrows[module].items()):
        print(f"  takes {', '.join(sorted(names))} from {home}")
    for other, homes in sorted(house.arrows.items()):
        if module in homes:
            print(f"  gives {', '.join(sorted(homes[module]))} to {other}")


if __name__ == "__main__":
    main()
