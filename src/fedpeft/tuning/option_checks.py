"""Checks of a method's options: one value at a time, all problems together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fedpeft.core.words import nearest

__all__ = ["Found", "Option", "resolve_own", "unknown_option"]


@dataclass(frozen=True)
class Option:
    """One option of a method of ours.

    Attributes:
      default: its value where none is given.
      allowed: what is accepted, in words.
      accepts: whether a value is accepted.
    """

    default: object
    allowed: str
    accepts: Callable[[object], bool]


@dataclass(frozen=True)
class Found:
    """Options as they will be used, and what is wrong with them.

    Attributes:
      options: complete, by name.
      problems: one sentence each; empty if all is well.
    """

    options: Mapping[str, object]
    problems: tuple[str, ...] = ()


def resolve_own(method: str, known: Mapping[str, Option], options: Mapping[str, object]) -> Found:
    """Complete the options of a method of ours with defaults, and list all that is wrong."""
    problems = [unknown_option(method, key, known) for key in options if key not in known]
    problems += [
        f"{key} = {value!r}: expected {known[key].allowed}"
        for key, value in options.items()
        if key in known and not known[key].accepts(value)
    ]
    defaults = {key: copy.copy(option.default) for key, option in known.items()}
    return Found({**defaults, **options}, tuple(problems))


def unknown_option(method: str, key: str, known: Iterable[str]) -> str:
    """Say that a method has no such option, and name the nearest that it has."""
    return f"{key}: method {method} has no such option; {nearest(key, known)}"
