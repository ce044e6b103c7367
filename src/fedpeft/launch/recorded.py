"""The record of a simulation's model and data: the folder describes the objects that were used.

    tuned model ──> [model] and [tuning] of experiment.toml ──> rebuilt: equal frozen tensors?

A module that was passed from Python cannot be loaded by a name. Its folder records `object:NAME`: a
simulation with the same object can resume it, `fedpeft.load` refuses it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from typing import cast

import torch
from torch import Tensor

from fedpeft.build.model import build_tuned
from fedpeft.core.errors import ConfigError, FedpeftError
from fedpeft.data.examples import Federated
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.read import apply_overrides
from fedpeft.experiment.resolve import Resolved
from fedpeft.models.locate import OBJECT
from fedpeft.tuning.tuned import TunedModel


def described(tuned: TunedModel, data: Federated, seed: object) -> dict[str, object]:
    """Return the tables of an experiment with a seed that describe a model and its data."""
    tuning = {
        "method": tuned.method,
        "options": _plain(tuned.options),
        "blocks": list(tuned.blocks) if tuned.blocks else None,
    }
    table: dict[str, object] = {
        "model": {"name": f"{OBJECT}{tuned.loaded.source}"},
        "tuning": {key: value for key, value in tuning.items() if value is not None},
        "data": _data_table(data, seed),
    }
    return apply_overrides(table, tuned.loaded.recorded.items())


def check_recorded(experiment: Experiment, tuned: TunedModel) -> None:
    """Rebuild the model from the record, and compare all tensors that do not train.

    Args:
      experiment: resolved, with the tables of `described`.
      tuned: the model of the simulation.

    Raises:
      ConfigError: if the experiment's model and tuning would not give this model.
    """
    if tuned.unrecorded:
        raise _unlike(tuned, tuned.unrecorded)
    if not tuned.loaded.recorded:
        return
    try:
        again = build_tuned(Resolved(experiment), experiment.model.num_labels)
    except FedpeftError as error:
        raise _unlike(tuned, str(error)) from error
    if again.spec.digest != tuned.spec.digest:
        others = sorted(set(again.spec.names) ^ set(tuned.spec.names))
        shown = ", ".join(others[:2]) or "of other shapes"
        raise _unlike(tuned, f"other parameters would train ({shown})")
    ours, theirs = _frozen(tuned), _frozen(again)
    other = sorted(name for name in ours if not _equal(ours[name], theirs.get(name)))
    if other or ours.keys() != theirs.keys():
        names = ", ".join(other[:2]) or "of other names"
        raise _unlike(
            tuned,
            f"its frozen tensors ({names}) differ: they were changed after loading, or follow from "
            f"another seed than this simulation's, which is {experiment.seed}: set `seed`",
        )


def _data_table(data: Federated, seed: object) -> dict[str, object]:
    """Describe data; data that was drawn from another seed than the experiment's is an object."""
    clients = {"clients": len(data.clients)}
    request = data.request
    if request is None or {request.seed, request.partition.seed} != {seed}:
        return {"source": f"{OBJECT}{data.name}", "partition": clients}
    keys = dataclasses.asdict(request)
    columns, transforms, partition = (keys.pop(k) for k in ("columns", "transforms", "partition"))
    for key in ("task", "seed", "classes", "whole"):
        keys.pop(key)
    partition.pop("seed")
    if not isinstance(transforms["normalize"], str):
        mean, std = transforms["normalize"]
        transforms["normalize"] = {"mean": list(mean), "std": list(std)}
    table = {**keys, **columns, "transforms": transforms, "partition": partition | clients}
    return cast("dict[str, object]", _plain(table))


def _frozen(tuned: TunedModel) -> Mapping[str, Tensor]:
    """Return the tensors of the model that neither train nor are sent."""
    moving = {id(tensor) for tensor in [*tuned.parameters.values(), *tuned.buffers.values()]}
    named = [*tuned.model.named_parameters(), *tuned.model.named_buffers()]
    return {name: tensor for name, tensor in named if id(tensor) not in moving}


def _equal(ours: Tensor, theirs: Tensor | None) -> bool:
    return theirs is not None and torch.equal(ours.detach().cpu(), theirs.detach())


def _plain(value: object) -> object:
    """Convert an option's value to what TOML can hold; tables lose keys that are None."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items() if v is not None}
    if isinstance(value, set | frozenset):
        return sorted(value)
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _unlike(tuned: TunedModel, why: str) -> ConfigError:
    return ConfigError(
        f"out=: {tuned.loaded.source} with method {tuned.method} cannot be recorded in a folder: "
        f"{why}. Leave out= away to train in memory"
    )
