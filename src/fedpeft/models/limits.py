"""Limits on what a config.json may ask for, so that a broken one is refused at once.

    config.json ── check_counts ──> the library's config ── check_tables ──> build, `limited`

A library makes a list of `num_hidden_layers` entries, or a table of `num_labels` names, before it
looks whether such a model can exist: a wrong digit costs all memory, or hours. Numbers of layers
and classes are therefore compared before the library sees them; modules and tensors are counted
while they are made, on torch's `meta` device, where a tensor has a size but takes no memory.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from fedpeft.core.errors import ModelError

MOST_LABELS = 1_000_000
"""Classes of a head."""
MOST_MODULES = 12_000
"""Modules of a model; the largest published ones have some thousands."""
MOST_ELEMENTS = 10**13
"""Elements of a model's tensors; the largest published ones have some 10**12."""
_MOST_NEW = 2**28
_MODULES_PER_TENSOR, _MODULES_BESIDE = 10, 1000
_MOST_LAYERS = 10_000
_MOST_OTHERS = 2**24
_MOST_IN_TABLE = 3_000_000

_LAYERS = re.compile(r"layer|depth|block|repeat|stage|attention_types")
_POSITIVE = re.compile(
    r"num_hidden_layers|num_attention_heads|num_channels|n_layers?|n_heads?|n_embd|d_model|depths"
    r"|hidden_sizes?|intermediate_size|vocab_size|image_size|patch_size"
)
_LABELS = re.compile(r"num_labels|num_classes")
_FREE = re.compile(r"(?:_ids?|theta|seed|base|factor|max_length|eps)$|block_size|_dim$|_size$")
"""Numbers that count nothing, and sizes of tensors, which are counted as they are made."""


def check_counts(found: Mapping[str, object], file: Path, known: Collection[str]) -> None:
    """Check the whole numbers of a config before a library makes anything of that many parts.

    Args:
      found: content of the file.
      file: for messages.
      known: keys that the library's config has; others change nothing and are not compared.

    Raises:
      ModelError: naming the key.
    """
    for key, number in _numbers(found, known):
        name = key.rpartition(".")[2]
        least, most = (1 if _POSITIVE.fullmatch(name) else None), _most(name)
        if least is not None and number < least:
            allowed = f"at least {least}"
        elif most is not None and number > most:
            allowed = f"at most {most:,}"
        else:
            continue
        shown = f"{number:,}" if abs(number) < 10**30 else f"a number of {len(str(number))} digits"
        raise ModelError(
            f"{file}: {key}: found {shown}; allowed is {allowed}: correct the file, or fetch the "
            "model again"
        )


def _most(name: str) -> int | None:
    """Return the largest number that is allowed under a key; None if it counts nothing."""
    if _LABELS.search(name):
        return MOST_LABELS
    if _FREE.search(name):
        return None
    return _MOST_LAYERS if _LAYERS.search(name) else _MOST_OTHERS


def check_tables(config: object, where: object) -> None:
    """Check the size of the tables of sines that libraries fill number by number, in Python.

    Raises:
      ModelError: if one would take more than some seconds.
    """
    width = _whole(config, "hidden_size")
    rows = 0
    if getattr(config, "model_type", None) == "videomae":
        patch, tubelet = _whole(config, "patch_size"), _whole(config, "tubelet_size")
        side = _whole(config, "image_size") // max(1, patch)
        rows = side * side * (_whole(config, "num_frames") // max(1, tubelet))
    elif any(
        getattr(config, key, None) for key in ("sinusoidal_pos_embds", "sinusoidal_embeddings")
    ):
        rows = _whole(config, "max_position_embeddings")
    if rows * width > _MOST_IN_TABLE:
        raise ModelError(
            f"{where}: a table of {rows:,} positions of width {width:,}; allowed are at most "
            f"{_MOST_IN_TABLE:,} numbers: correct image_size, patch_size, num_frames, hidden_size "
            "or max_position_embeddings"
        )


@contextlib.contextmanager
def limited(where: object, stored: Collection[int] | None = None) -> Iterator[None]:
    """Count what this thread builds on `meta` in the block, and stop it when it is too much.

    Args:
      where: what describes the model, for messages.
      stored: elements of each tensor that the model's files hold, where they are known: it may have
        some more (a new head, masks), but what does not fit them at all is not built.

    Raises:
      ModelError: when there are too many modules or elements.
    """
    modules, elements, beside = MOST_MODULES, MOST_ELEMENTS, "any published one has"
    if stored is not None:
        modules = min(modules, _MODULES_PER_TENSOR * len(stored) + _MODULES_BESIDE)
        elements = min(elements, 2 * sum(stored) + _MOST_NEW)
        beside = f"its weights allow ({len(stored):,} tensors, {sum(stored):,} numbers)"
    thread, counts = threading.get_ident(), {"modules": 0, "elements": 0}

    def count_module(_: nn.Module, __: str, child: nn.Module | None) -> None:
        if threading.get_ident() == thread and child is not None:
            counts["modules"] += 1
            if counts["modules"] > modules:
                raise ModelError(
                    f"{where}: describes a model of more than {modules:,} modules, which is more "
                    f"than {beside}; correct its numbers of layers"
                )

    def count_tensor(_: nn.Module, __: str, tensor: Tensor | None) -> None:
        if threading.get_ident() == thread and tensor is not None and tensor.is_meta:
            counts["elements"] += tensor.numel()
            if counts["elements"] > elements:
                raise ModelError(
                    f"{where}: describes a model of more than {elements:,} numbers, which is more "
                    f"than {beside}; correct its sizes (hidden_size, vocab_size and so on)"
                )

    hooks = [
        torch_modules.register_module_module_registration_hook(count_module),
        torch_modules.register_module_parameter_registration_hook(count_tensor),
        torch_modules.register_module_buffer_registration_hook(count_tensor),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _numbers(
    found: object, known: Collection[str] | None, path: str = ""
) -> Iterator[tuple[str, int]]:
    """Yield the path and value of every whole number under keys that count."""
    if isinstance(found, Mapping):
        for key, value in found.items():
            nested = isinstance(value, Mapping)
            if nested and str(key).endswith("config"):
                yield from _numbers(value, None, f"{path}{key}.")
            elif not nested and (known is None or key in known):
                yield from _numbers(value, known, f"{path}{key}")
    elif isinstance(found, list):
        for each in found:
            yield from _numbers(each, known, path) if not isinstance(each, Mapping) else ()
    elif isinstance(found, int) and not isinstance(found, bool):
        yield path, found


def _whole(config: object, name: str) -> int:
    """Return a whole number of a config; 0 where there is none."""
    found = getattr(config, name, None)
    found = found[0] if isinstance(found, list | tuple) and found else found
    return found if isinstance(found, int) else 0
