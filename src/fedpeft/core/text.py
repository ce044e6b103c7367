"""Helpers for messages and keys: misspelt names, sizes, dotted keys, paths, foreign text."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

MOST_LISTED = 100
"""Largest number of problems of one file that are listed; the others are counted."""

_SHOWN = 200
"""Largest number of characters of a value in a message."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a phrase for an unknown word: the nearest known word, or all of them."""
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"allowed are {', '.join(words)}" if words else "none is allowed here"


def hints(words: Iterable[str], known: Iterable[str]) -> Iterator[str]:
    """Yield what follows each of some unknown words: `; ` and the phrase of `nearest`.

    After `MOST_LISTED` words it is empty: nobody reads so many, and each is a search.
    """
    known = sorted(known)
    for number, word in enumerate(words):
        yield f"; {nearest(word, known)}" if number < MOST_LISTED else ""


def shown(value: object) -> str:
    """Return a value as Python writes it, and of a very long one the beginning."""
    return repr(value)[:_SHOWN]


def brief(text: str, most: int = 300) -> str:
    """Return a text as one line, and of a long one its beginning and its end."""
    line = " ".join(text.split())
    half = (most - 5) // 2
    return line if len(line) <= most else f"{line[:half]} ... {line[-half:]}"


def byte_words(count: float) -> str:
    """Format a number of bytes in decimal units: 1,234,567 is `1.23 MB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def byte_count(text: str) -> float | None:
    """Read a number of bytes, such as `500 kB`, `1.5MB` or `20000`; None if it is none above 0."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([kmgt]?b)?\s*", text, re.IGNORECASE)
    return float(found[1]) * _UNITS[(found[2] or "").lower()] or None if found else None


def median_words(sizes: Iterable[int]) -> str:
    """Format the median of some counts; of an even number it is the mean of the middle two."""
    return f"{statistics.median(sizes):,.1f}".removesuffix(".0")


def dotted(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables into dotted keys: `{"a": {"b": 1}}` is `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        inside = isinstance(value, Mapping)
        flat |= dotted(value, f"{prefix}{key}.") if inside else {f"{prefix}{key}": value}
    return flat


def home(path: str | os.PathLike[str]) -> Path:
    """Return a path with `~` written out; one that names no user's folder stays as it is."""
    return Path(os.path.expanduser(path))


def plain(text: object, most: int = 500) -> str:
    """Return foreign text as one line of at most `most` characters, fit for files and terminals.

    White space becomes single blanks; other characters that cannot be printed (control characters,
    surrogates, which no file can hold) are written as escapes.
    """
    line = " ".join(str(text)[: 2 * most].split())[:most]
    if not line.isprintable():
        line = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)
    return line[:most]


def is_loopback(address: str) -> bool:
    """Whether the host of `host:port` is this machine."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
