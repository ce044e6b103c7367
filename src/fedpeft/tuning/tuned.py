"""A tuned model: a pretrained model in which exactly the delta is trainable.

frozen backbone θ   +   delta δ (one flat buffer, by canonical names)
                    +   buffers (BatchNorm's running statistics; full fine-tuning only)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedpeft.core.deltas import DeltaSpec
from fedpeft.models.loaded import LoadedModel
from fedpeft.tuning.dropout import DropoutKeys
from fedpeft.tuning.targets import Targets


@dataclass(frozen=True)
class TunedModel:
    """A pretrained model in which exactly the delta is trainable; the result of `tune`.

    Attributes:
      model: the module; only the delta's parameters require gradients.
      loaded: the pretrained model that was tuned.
      method: name of the tuning method, as the user wrote it.
      options: resolved options of the method, with the seeds derived for it.
      spec: names, shapes and type of the delta.
      parameters: canonical name -> live parameter, in the order of `spec`.
      buffer_spec: names and shapes of the floating buffers that are sent with the delta; empty
        except for methods that train everything.
      buffers: canonical name -> live buffer, in the order of `buffer_spec`.
      trains_statistics: whether BatchNorm layers run in training mode.
      dropout: keys for every dropout mask; see `fedpeft.tuning.dropout`.
      peft_model: the `peft` wrapper around the model where a `peft` method was used, else None.
      local_spec: names, shapes and type of what each client trains and never sends.
      local: canonical name -> live parameter, in the order of `local_spec`.
      blocks: first and last block (inclusive) that were tuned; None is all.
      targets: the layers that were adapted, and the rule that chose them; None if none were.
      unrecorded: why no experiment file can describe the model; empty if one can.

    Example:
      >>> import fedpeft
      >>> loaded = fedpeft.load_model(fedpeft.ModelRequest("preset:tiny-vit"))
      >>> tuned = fedpeft.tune(loaded, fedpeft.TuningRequest("head"))
      >>> {name: tuple(value.shape) for name, value in tuned.parameters.items()}
      {'head.bias': (10,), 'head.weight': (10, 16)}
    """

    model: nn.Module
    loaded: LoadedModel
    method: str
    options: Mapping[str, object]
    spec: DeltaSpec
    parameters: Mapping[str, nn.Parameter]
    buffer_spec: DeltaSpec
    buffers: Mapping[str, Tensor]
    trains_statistics: bool = False
    dropout: DropoutKeys = field(default_factory=DropoutKeys)
    peft_model: nn.Module | None = None
    local_spec: DeltaSpec = field(default_factory=lambda: DeltaSpec((), ()))
    local: Mapping[str, nn.Parameter] = field(default_factory=dict)
    blocks: tuple[int, int] | None = None
    targets: Targets | None = None
    unrecorded: str = ""


def move(tuned: TunedModel, device: str) -> None:
    """Move the model to a device, in place, so that `parameters` and `buffers` stay live.

    `Module.to` would replace the buffers by new tensors.
    """
    for tensor in [*tuned.model.parameters(), *tuned.model.buffers()]:
        tensor.data = tensor.data.to(device)


def read_delta(tuned: TunedModel) -> Tensor:
    """Copy the live delta into a new flat buffer [num_params]."""
    return tuned.spec.flatten(tuned.parameters)


def write_delta(tuned: TunedModel, flat: Tensor) -> None:
    """Copy a flat buffer [num_params] into the live model.

    Raises:
      DeltaMismatchError: if its length or type differs.
    """
    _write(tuned.spec, tuned.parameters, flat)


def read_buffers(tuned: TunedModel) -> Tensor:
    """Copy the live buffers that are sent into a new flat buffer."""
    return tuned.buffer_spec.flatten(tuned.buffers)


def write_buffers(tuned: TunedModel, flat: Tensor) -> None:
    """Copy a flat buffer into the live buffers that are sent."""
    _write(tuned.buffer_spec, tuned.buffers, flat)


def _write(spec: DeltaSpec, live: Mapping[str, Tensor], flat: Tensor) -> None:
    views = spec.unflatten(flat)
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(views[name])
