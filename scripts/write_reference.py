"""Write the reference pages that are made from the code: keys, commands.

python scripts/write_reference.py
"""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.site_file import SiteConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "experiment-file.md"
SITE_PAGE = PAGE.with_name("site-file.md")

HEAD = """# The experiment file

Strict TOML; every key is optional. An unknown key is an error that names the nearest known one, and
all problems of a file are listed together (`fedpeft check FILE`). `--set KEY=VALUE` overrides a key
from the command line, with the dotted names below. `fedpeft run` writes the file with every default
resolved into the run folder. This page is made from the schema by `make docs`.
"""


SITE_HEAD = """# The site file

What a site of a [federation](../how-to/federation.md) is, has and allows. Strict TOML; `name` and
`data.source` are required, paths are relative to the file, and `fedpeft node FILE --check` lists
all problems at once. No server can read or change it. This page is made from the schema by
`make docs`.
"""


def reference() -> str:
    """Return the whole page of the experiment file."""
    return HEAD + "".join(_sections(Experiment, ""))


def site_reference() -> str:
    """Return the whole page of the site file."""
    return SITE_HEAD + "".join(_sections(SiteConfig, ""))


def _sections(model: type[BaseModel], prefix: str) -> list[str]:
    rows, inner = [], []
    for name, field in model.model_fields.items():
        table = _table(field)
        if table is not None:
            inner += _sections(table, f"{prefix}{name}.")
            continue
        text = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{prefix}{name}` | {_type(field)} | {_default(field)} | {text} |\n")
    title = f"`[{prefix.rstrip('.')}]`" if prefix else "Top level"
    summary = "" if not prefix else re.sub(r"^`[^`]*`: ", "", model.__doc__ or "")
    head = f"\n## {title}\n\n{summary and summary[0].upper() + summary[1:] + chr(10) + chr(10)}"
    return [
        head + "| key | type | default | what |\n| --- | --- | --- | --- |\n" + "".join(rows),
        *inner,
    ]


def _table(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(kind) if part is not type(None)]
        kind = parts[0] if len(parts) == 1 else kind
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


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
    print(f"wrote {PAGE} and {SITE_PAGE.name}")
