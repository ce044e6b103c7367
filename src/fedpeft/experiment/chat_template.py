"""The chat template of an experiment: a name, or a file whose text the run keeps.

data.chat_template = "chat.jinja"  ──resolve──>  the text: a run folder needs no other file,
                                                 and sites get it with the experiment
"""

from __future__ import annotations

from fedpeft.core.errors import ConfigError
from fedpeft.core.text import home
from fedpeft.data.chat_templates import BUILT_IN

TEMPLATE_KEY = "data.chat_template"
MOST_CHARACTERS = 200_000
"""Largest text of a template."""
_MARKS = ("{%", "{{")


def is_template(value: str) -> bool:
    """Whether a value is the text of a template, and not the name of a file."""
    return any(mark in value for mark in _MARKS)


def read_template(value: str | None) -> str | None:
    """Return a built-in name or a template's text as it is, and the text of a file.

    Raises:
      ConfigError: if there is no such file, it is no text, or holds no template.
    """
    if value is None or value in BUILT_IN or is_template(value):
        return value
    path, names = home(value), " and ".join(map(repr, BUILT_IN))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"data.chat_template: {value} cannot be read ({type(error).__name__}); allowed are "
            f"{names}, and a file with a Jinja template"
        ) from error
    if not is_template(text) or len(text) > MOST_CHARACTERS:
        raise ConfigError(
            f"data.chat_template: {value} is no Jinja template of at most {MOST_CHARACTERS:,} "
            "characters that writes the messages in {{ }}"
        )
    return text
