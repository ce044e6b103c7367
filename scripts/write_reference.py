"""Write the pages of docs/reference/ that are made from the code.

    experiment-file.md, site-file.md    every key, from the schemas
    commands.md                         every command, from what `--help` prints
    python.md                           the public names of MODULES; Sphinx adds their docstrings

python scripts/write_reference.py
"""

from __future__ import annotations

import importlib
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import click
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedpeft.cli.app import app
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.fields import fields_of
from fedpeft.experiment.keys import table_of
from fedpeft.experiment.site_file import SiteConfig

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"
PAGE = FOLDER / "experiment-file.md"
SITE_PAGE = FOLDER / "site-file.md"
COMMANDS_PAGE = FOLDER / "commands.md"
PYTHON_PAGE = FOLDER / "python.md"

MODULES = ("fedpeft", "fedpeft.testing")
"""The modules whose `__all__` is public; a further one gets a section of its own."""

GROUPS = {
    "launch": "Run experiments",
    "runs": "Run experiments",
    "models": "Models",
    "tuning": "Tuning",
    "data": "Data",
    "core": "Errors",
}
"""The heading of a public name by the room that defines it; all other rooms are for extensions."""

EXTENSIONS = "Extensions"

HEAD = """# The experiment file

Strict TOML; every key is optional.
An unknown key is an error that names the nearest known one.
All problems of a file are listed together (`fedpeft check FILE`).
`--set KEY=VALUE` overrides a key from the command line, with the dotted names below.
`fedpeft run` writes the file with every default resolved into the run folder.
This page is made from the schema by `make docs`.

**Paths.** A relative path in the file counts from the file's folder, in rows of `[[sweep]]` too.
On the command line (`--set`, `--over`) and from Python it counts from the current folder.
`~` is a home folder everywhere.
`model.name`, `model.config` and `data.source` are, in this order: a name that comes with the
package, a file or folder, a name of the hub.
What exists in the current folder only, while the file names it, is refused with both places.
Picture names in a table count from the table's folder.
A run folder records absolute paths, so that it can be resumed, loaded and exported from any folder,
and be moved.
"""


SITE_HEAD = """# The site file

The site file says what a site of a [federation](../how-to/federation.md) is, has and allows.
It is strict TOML; `name` and `data.source` are required, and paths are relative to the file.
`fedpeft node FILE --check` lists all problems at once.
No server can read or change the file.
This page is made from the schema by `make docs`.
"""

COMMANDS_HEAD = """# Commands

What `fedpeft COMMAND --help` prints, for every command; `make docs` writes this page.
The [exit codes](run-folder.md#exit-codes) are the same for all commands.
"""

PYTHON_HEAD = """# Python

The public names of the package.
Everything else may change in any release.
[Use fedpeft from Python](../how-to/python.md) shows how they work together.
`make docs` writes this page from `__all__`; the text of each entry is the docstring of the code.
"""


def reference() -> str:
    """Return the whole page of the experiment file."""
    return HEAD + "".join(_sections(Experiment, ""))


def site_reference() -> str:
    """Return the whole page of the site file."""
    return SITE_HEAD + "".join(_sections(SiteConfig, ""))


def commands_reference() -> str:
    """Return the whole page of the commands, in the order of `fedpeft --help`."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    top = click.Context(
        group,
        info_name="fedpeft",
        terminal_width=92,
        max_content_width=92,
        **group.context_settings,
    )
    below = [click.Context(each, top, name) for name, each in group.commands.items()]
    return COMMANDS_HEAD + "".join(_help(context) for context in (top, *below))


def python_reference() -> str:
    """Return the page of the Python interface: a heading a group, a directive a name."""
    return PYTHON_HEAD + "".join(text for name in MODULES for text in _module(name))


def _help(context: click.Context) -> str:
    text = context.get_help().replace("\\[", "[")
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return f"\n## {context.info_name}\n\n```text\n{lines}\n```\n"


def _module(name: str) -> Iterator[str]:
    module = importlib.import_module(name)
    groups: dict[str, list[str]] = {title: [] for title in (*GROUPS.values(), EXTENSIONS)}
    for each in module.__all__:
        thing = getattr(module, each)
        title = _group(thing) if name == "fedpeft" else f"`{name}`"
        groups.setdefault(title, []).append(f".. {_directive(thing)}:: {name}.{each}")
    for title, directives in groups.items():
        if directives:
            yield "\n".join([f"\n## {title}\n\n```{{eval-rst}}", *directives, "```\n"])


def _group(thing: object) -> str:
    package, _, rest = str(getattr(thing, "__module__", "")).partition(".")
    room = rest.partition(".")[0] if package == "fedpeft" else ""
    return GROUPS.get(room, EXTENSIONS)


def _directive(thing: object) -> str:
    if isinstance(thing, type):
        return "autoexception" if issubclass(thing, Exception) else "autoclass"
    return "autofunction" if callable(thing) else "autodata"


def _sections(model: type[BaseModel], prefix: str) -> list[str]:
    rows, inner = [], []
    for name, field in fields_of(model).items():
        table = table_of(field.annotation)
        if table is not None:
            inner += _sections(table, f"{prefix}{name}.")
            continue
        text = " ".join((field.description or "").split()).replace("|", "\\|")
        rows.append(f"| `{prefix}{name}` | {_type(field)} | {_default(field)} | {text} |\n")
    title = f"`[{prefix.rstrip('.')}]`" if prefix else "Top level"
    summary = "" if not prefix else re.sub(r"^`[^`]*`: ", "", model.__doc__ or "")
    head = f"\n## {title}\n\n{summary and summary[0].upper() + summary[1:] + chr(10) + chr(10)}"
    return [
        head + "| key | type | default | what |\n| --- | --- | --- | --- |\n" + "".join(rows),
        *inner,
    ]


def _type(field: FieldInfo) -> str:
    return " or ".join(dict.fromkeys(_names(field.annotation)))


def _names(kind: object) -> list[str]:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _names(inner[0])
    if origin is typing.Literal:
        return [f"`{value}`" for value in inner]
    if origin in (typing.Union, types.UnionType):
        return [name for part in inner if part is not type(None) for name in _names(part)]
    if origin is list:
        return [f"list of {' or '.join(_names(inner[0]))}"]
    words = {str: "text", int: "whole number", float: "number", bool: "true / false"}
    return [words.get(kind, "table")]  # type: ignore[call-overload]  # any annotation may be asked


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value != "" else "–"


if __name__ == "__main__":
    PAGE.write_text(reference(), "utf-8")
    SITE_PAGE.write_text(site_reference(), "utf-8")
    COMMANDS_PAGE.write_text(commands_reference(), "utf-8")
    PYTHON_PAGE.write_text(python_reference(), "utf-8")
    print(f"wrote experiment-file.md, site-file.md, commands.md and python.md in {FOLDER}")
