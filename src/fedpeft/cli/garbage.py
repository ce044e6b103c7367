"""Fewer runs of Python's garbage collector over what a command imports.

torch, transformers and peft make some hundred thousand objects that live to the end. Collections
that scan them find nothing, and cost half a second at the start, as much in the middle of a run,
and a second at the end.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["few_collections", "leave_alone"]


@contextlib.contextmanager
def few_collections() -> Iterator[None]:
    """Collect less often inside the block, and never scan what exists at its end."""
    before = gc.get_threshold()
    gc.set_threshold(20_000, 10, 10)
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(*before)


def leave_alone() -> None:
    """Exclude all present objects from collections: called once, after the imports of a command."""
    gc.freeze()
