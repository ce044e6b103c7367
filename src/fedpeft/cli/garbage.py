"""Python's garbage collector and what a command imports.

torch, transformers and peft make some hundred thousand objects that live to the end. Looking at
them again and again costs half a second of a start, as much in the middle of a run, and a second
at the end, and finds nothing.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["few_collections", "leave_alone"]


@contextlib.contextmanager
def few_collections() -> Iterator[None]:
    """Collect less often inside the block, and nothing that is there at its end."""
    before = gc.get_threshold()
    gc.set_threshold(20_000, 10, 10)
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(*before)


def leave_alone() -> None:
    """Never again look at what is there now: called once, when a command has its imports."""
    gc.freeze()
