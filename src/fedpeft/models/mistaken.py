"""Folders that are given as a model and are something else: what they are, and what to give.

adapter_config.json       an adapter of `peft`: a few weights beside a model that it names
experiment.toml           a run folder: a delta, and a record of how it was trained
fedpeft.json              an export that holds the delta alone
one/config.json           a folder of models
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from fedpeft.core.errors import ModelError
from fedpeft.core.text import plain
from fedpeft.models.reading import read_object

_ADAPTER = "adapter_config.json"
_EXPORT = "fedpeft.json"
_RUN = "experiment.toml"


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder with an adapter of `peft`: a library would load what it names instead.

    Raises:
      ModelError: naming the adapter's base model.
    """
    if not os.path.lexists(folder / _ADAPTER):
        return
    base = _base_of(folder)
    whole = (
        f"`fedpeft.load({str(folder)!r})` loads this export"
        if (folder / _EXPORT).is_file()
        else "to go on with this one, give its folder as tuning.from beside the base model"
    )
    raise ModelError(
        f"model {str(folder)!r}: holds {_ADAPTER}: it is an adapter of peft, which is a part of a "
        f"model. Give its base model{base} as model.name to train a new adapter; {whole}; or give "
        "the model into which it was merged (peft's `merge_and_unload`, then `save_pretrained`)"
    )


def no_config(folder: Path) -> str:
    """Say what a folder without `config.json` is, and what to give instead of it."""
    if (folder / _RUN).exists():
        return (
            "has no config.json: it is a run folder of fedpeft, which holds what was trained and "
            f"not the model. Make a model of it with `fedpeft export {folder} --to DIR`, for lora "
            "and its kind with `--as merged`, and give DIR as model.name"
        )
    if (folder / _EXPORT).exists():
        return (
            "has no config.json: it is an export of fedpeft that holds the delta without the "
            f"model; `fedpeft.load({str(folder)!r})` loads it. To train on, export the run in a "
            "form that is an ordinary model (--as merged), or give the base model"
        )
    inside: list[str] = []
    with contextlib.suppress(OSError):
        files = [*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")]
        inside = sorted(str(file.parent.relative_to(folder)) for file in files)
    found = [name for name in inside if name.isprintable()][:3]
    if found:
        return (
            f"has no config.json, but {', '.join(found)} in it: did you mean {folder / found[0]}?"
        )
    return "has no config.json; a model folder holds config and weights"


def refuse_file(path: Path, name: str) -> None:
    """Refuse a file in the place of a model folder.

    Raises:
      ModelError: if the path is a file, or a link that leads nowhere.
    """
    if path.is_file():
        folder = path.parent
        raise ModelError(
            f"model {name!r}: is a file; a folder with config.json and model.safetensors is "
            + (f"expected: give {folder}" if (folder / "config.json").is_file() else "expected")
            + (
                ""
                if path.suffix == ".safetensors"
                else "; `fedpeft convert` reads a raw checkpoint"
            )
        )
    if path.is_symlink() and not path.exists():
        raise ModelError(
            f"model {name!r}: is a link to {os.readlink(path)}, which leads nowhere; correct it"
        )


def _base_of(folder: Path) -> str:
    """Return the name of an adapter's base model in brackets, if its file tells it."""
    with contextlib.suppress(ModelError):
        base = read_object(folder / _ADAPTER).get("base_model_name_or_path")
        if isinstance(base, str) and base:
            return f" ({plain(base, 200)})"
    return ""
