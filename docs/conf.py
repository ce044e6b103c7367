"""How Sphinx builds the site (`make docs`); docs/decisions/ says why it is Sphinx."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

from fedpeft.core.version import VERSION

project = "fedpeft"
author = "The fedpeft authors"
version = release = VERSION

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]

myst_heading_anchors = 4

default_role = "code"  # docstrings write `name` with single backticks, as Markdown does
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "fedpeft"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]


def show_code(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Mark indented blocks of a docstring as code, in place, before napoleon reads its sections."""
    last, found = "", []
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("    ") and not before.strip() and last and not last.startswith(" "):
            found += ["::", ""]
        found.append(line)
        last = line if line.strip() else last
    lines[:] = found


def plain_defaults(
    app: Sphinx, what: str, name: str, thing: object, options: object, text: str, returns: str
) -> tuple[str, str] | None:
    """Write defaults that are no Python, such as `<factory>`, as `...`, which Sphinx can parse."""
    return (re.sub(r"<(factory|function \w+)>", "...", text), returns) if text else None


def setup(app: Sphinx) -> None:
    """Connect the two; napoleon reads docstrings at priority 500."""
    app.connect("autodoc-process-docstring", show_code, priority=400)
    app.connect("autodoc-process-signature", plain_defaults)
