"""Training that starts from an adapter that exists, instead of from a new one.

    adapter_config.json, adapter_model.safetensors    an adapter that `peft` saved
    experiment.toml, delta.safetensors                a run folder
    fedpeft.json, delta.safetensors                   an export

The folder says the method and its options; its values become the delta before round 1. A head of
other classes, or without a part that is new here, is left out: a new one trains.
"""

from __future__ import annotations

import dataclasses
import logging
import tomllib
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from fedpeft.core.errors import ModelError
from fedpeft.core.text import plain
from fedpeft.models.reading import read_object, reading
from fedpeft.tuning.peft_export import head_tensors, peft_tensors
from fedpeft.tuning.peft_options import config_class, read_options
from fedpeft.tuning.peft_table import PEFT_TYPES
from fedpeft.tuning.prepared import head_parameters
from fedpeft.tuning.tuned import TunedModel

if TYPE_CHECKING:
    from peft import PeftModel

_log = logging.getLogger(__name__)

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_EXPORT, _RUN, _DELTA = "fedpeft.json", "experiment.toml", "delta.safetensors"
ADAPTER_FILES = (_CONFIG, _WEIGHTS, _EXPORT, _DELTA)
"""Files of an adapter on the hub."""


@dataclass(frozen=True)
class Adapter:
    """An adapter that exists.

    Attributes:
      method: the tuning method that made it.
      options: options of the method; for `peft` those that its config sets.
      file: the values.
      by_peft: whether the names in the file are those of the `peft` library.
    """

    method: str
    options: Mapping[str, object] = field(default_factory=dict)
    file: Path = Path()
    by_peft: bool = False


def read_adapter(folder: Path) -> Adapter:
    """Read what an adapter is, without its values.

    Raises:
      ModelError: if the folder holds no adapter, or one of a type that we do not have.
    """
    where = f"tuning.from: {folder}"
    if (folder / _EXPORT).is_file() or (folder / _RUN).is_file():
        if not (folder / _DELTA).is_file():
            raise ModelError(
                f"{where}: holds no {_DELTA}: it is an export with an ordinary model, which can be "
                "given as model.name, or a run that has not finished"
            )
        return _of_fedpeft(folder, where)
    if not (folder / _CONFIG).is_file():
        raise ModelError(
            f"{where}: holds no adapter; expected is a folder with {_CONFIG} and {_WEIGHTS} (of "
            "peft), a run folder, or an export with a delta"
        )
    found = read_object(folder / _CONFIG)
    name = str(found.get("peft_type", "")).lower()
    if name not in PEFT_TYPES:
        raise ModelError(f"{where}: its type {plain(name, 40)!r} is not offered here")
    known = {each.name for each in dataclasses.fields(config_class(name))}
    if new := sorted(key for key, value in found.items() if key not in known and value):
        _log.warning("%s: %s is not read: this peft does not have it", where, ", ".join(new[:3]))
    fields = {key: value for key, value in found.items() if key in known}
    with reading(folder / _CONFIG, "the peft library refuses it"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = config_class(name)(**cast("dict[str, Any]", fields))
    return Adapter(name, read_options(config), folder / _WEIGHTS, by_peft=True)


def _of_fedpeft(folder: Path, where: str) -> Adapter:
    found: object
    if (folder / _EXPORT).is_file():
        found = read_object(folder / _EXPORT).get("experiment")
    else:
        with reading(folder / _RUN, "not a TOML file"):
            found = tomllib.loads((folder / _RUN).read_text("utf-8"))
    tuning = found.get("tuning") if isinstance(found, Mapping) else None
    if not isinstance(tuning, Mapping) or not isinstance(tuning.get("options", {}), Mapping):
        raise ModelError(f"{where}: does not say the tuning method of its delta; make it again")
    return Adapter(str(tuning.get("method")), dict(tuning.get("options", {})), folder / _DELTA)


def start_from(tuned: TunedModel, adapter: Adapter) -> None:
    """Write an adapter's values into a model that was tuned by its method and options.

    Raises:
      ModelError: if the values are of another model or of other options, or are not finite.
    """
    from safetensors.torch import load_file

    where = f"tuning.from: {adapter.file.parent}"
    with reading(adapter.file, "cannot be read", advice="take another copy of the adapter"):
        found = load_file(adapter.file)
    for name, values in found.items():
        if not torch.isfinite(values).all():
            raise ModelError(f"{where}: {name} holds values that are not finite")
    if adapter.by_peft:
        live, head = peft_tensors(tuned), frozenset(head_tensors(tuned))
    else:
        live, head = {**tuned.parameters, **tuned.buffers}, _head_names(tuned)
    kept = _fitting(found, live, head, where)
    if adapter.by_peft:
        _write_peft(tuned, kept)
    else:
        with torch.no_grad():
            for name, values in kept.items():
                live[name].copy_(values)


def _head_names(tuned: TunedModel) -> frozenset[str]:
    """Return the names, in the delta, of the head's parameters."""
    paths = head_parameters(tuned.loaded)
    ours = {id(p) for path, p in tuned.loaded.module.named_parameters() if path in paths}
    return frozenset(name for name, p in tuned.parameters.items() if id(p) in ours)


def _fitting(
    found: Mapping[str, Tensor], live: Mapping[str, Tensor], head: Collection[str], where: str
) -> dict[str, Tensor]:
    """Return the values to write, after a check that they fit; all of a head, or nothing of it."""
    wrong = {
        name
        for name in live.keys() | found.keys()
        if name not in found or name not in live or found[name].shape != live[name].shape
    }
    if others := sorted(wrong - {*head}):
        name = others[0]
        sizes = [
            "nothing" if name not in side else str(list(side[name].shape)) for side in (found, live)
        ]
        raise ModelError(
            f"{where}: does not fit the model: {name} is {sizes[0]} in the adapter and {sizes[1]} "
            f"here ({len(others)} such tensors); give the model that it was trained on as "
            "model.name, and leave tuning.method and tuning.options out"
        )
    if wrong:
        _log.warning("%s: its head is not that of this model; a new head is trained", where)
    return {name: value for name, value in found.items() if not (wrong and name in head)}


def _write_peft(tuned: TunedModel, values: Mapping[str, Tensor]) -> None:
    from peft import set_peft_model_state_dict

    head = head_tensors(tuned)
    with torch.no_grad():
        for name in head.keys() & values.keys():
            head[name].copy_(values[name])
    own = {name: value for name, value in values.items() if name not in head}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_peft_model_state_dict(cast("PeftModel", tuned.peft_model), own)
    after = peft_tensors(tuned)
    changed = [name for name, value in own.items() if not torch.equal(after[name], value.float())]
    if changed:
        raise ModelError(f"tuning.from: the peft library did not take {changed[0]} of the adapter")
