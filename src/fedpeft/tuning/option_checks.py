"""Checks of a method's options; all problems are reported together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedpeft.core.text import hints, shown

LARGEST_SIZE = 100_000
"""Largest rank, and largest number of learned tokens; a larger one is a slip of the keyboard."""


@dataclass(frozen=True)
class Option:
    """One option of a method of this package.

    Attributes:
      default: the value where none is given.
      allowed: a description of the accepted values, for error messages.
      accepts: returns whether a value is accepted.
    """

    default: object
    allowed: str
    accepts: Callable[[object], bool]


@dataclass(frozen=True)
class ResolvedOptions:
    """Resolved options, and the problems found in them.

    Attributes:
      options: name -> value, with all defaults filled in.
      problems: one sentence for each invalid option; empty if all are valid.
    """

    options: Mapping[str, object]
    problems: tuple[str, ...] = ()


def resolve_own(
    method: str, known: Mapping[str, Option], options: Mapping[str, object]
) -> ResolvedOptions:
    """Fill in the defaults of a method's options, and list all invalid ones."""
    problems = unknown_options(method, [key for key in options if key not in known], known)
    problems += [
        f"{key} = {shown(value)}: expected {known[key].allowed}"
        for key, value in options.items()
        if key in known and not known[key].accepts(value)
    ]
    defaults = {key: copy.copy(option.default) for key, option in known.items()}
    return ResolvedOptions({**defaults, **options}, tuple(problems))


def unknown_options(method: str, keys: Sequence[str], known: Iterable[str]) -> list[str]:
    """Return the problem "no such option" of each key, with the nearest option of the method."""
    return [
        f"{key}: method {method} has no such option{hint}"
        for key, hint in zip(keys, hints(keys, known), strict=True)
    ]
