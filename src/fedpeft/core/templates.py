"""Jinja templates, stored beside the modules that render them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template


def read_template(
    file: Path, filters: Mapping[str, Callable[..., object]], *, markup: bool
) -> Template:
    """Read a template; undefined names are errors, and block tags leave no blank lines.

    Args:
      file: the template; it may include other files of its folder.
      filters: name -> function that the template may call.
      markup: whether it renders HTML, so that values must be escaped.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(file.parent),
        autoescape=markup,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= filters
    return environment.get_template(file.name)
