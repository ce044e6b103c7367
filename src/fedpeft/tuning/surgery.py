"""Surgery: what every tuning method gets and gives, and how the result becomes a `TunedModel`.

    Patient ──method──> Surgery ──finish──> TunedModel
    model, options,     model, names of     all frozen but those names; wire names;
    blocks, keys        what trains         delta spec and buffer spec

A method only changes the module and says which parameters train. Freezing, wire names and specs
are made here, once, for all methods.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedpeft.core.deltas import DeltaSpec
from fedpeft.core.errors import TuningError
from fedpeft.models.families import block_of, canonical, num_blocks
from fedpeft.models.loaded import LoadedModel
from fedpeft.tuning.dropout import DropoutKeys
from fedpeft.tuning.tuned import TunedModel

__all__ = [
    "ADAPTER_ROOT",
    "PROMPT_ROOT",
    "Patient",
    "Surgery",
    "check_blocks",
    "chosen_blocks",
    "finish",
    "head_parameters",
    "in_range",
    "is_meta",
    "wire_name",
]

ADAPTER_ROOT = "fedpeft_adapter"
"""Attribute of the model that holds our adapters; `adapter` on the wire."""

PROMPT_ROOT = "fedpeft_prompt"
"""Attribute of the model that holds our prompts; `prompt` on the wire."""


@dataclass(frozen=True)
class Patient:
    """What a method works on.

    Attributes:
      loaded: the model; the method owns `loaded.module` and may change it.
      method: name of the method, for errors.
      options: resolved options.
      blocks: first and last block (inclusive) that may get a part of the delta; None is all.
      seed: of the surgery, for random numbers that a library wants to draw from a seed of its own.
      keys: where dropout layers find the keys of the examples.
    """

    loaded: LoadedModel
    method: str
    options: Mapping[str, object]
    blocks: tuple[int, int] | None
    seed: int
    keys: DropoutKeys


@dataclass(frozen=True)
class Surgery:
    """What a method gives back.

    Attributes:
      model: the changed module.
      trained: in-memory names, in `model`, of the parameters that train.
      whole: whether floating buffers travel too and BatchNorm runs in training mode.
      rename: from an in-memory name to the wire; None is `wire_name` of the family.
      peft_model: the `peft` wrapper, where there is one.
      drawn: options that followed from the seed; given, they make the same model again.
    """

    model: nn.Module
    trained: Collection[str]
    whole: bool = False
    rename: Callable[[str], str] | None = None
    peft_model: nn.Module | None = None
    drawn: Mapping[str, object] = field(default_factory=dict)


def finish(patient: Patient, surgery: Surgery) -> TunedModel:
    """Freeze all but the trained parameters, put the model in eval mode, and describe the delta.

    Raises:
      TuningError: if nothing would train, or two parameters would get one wire name.
    """
    model = surgery.model.eval()
    rename = surgery.rename or (lambda path: wire_name(patient.loaded, path))
    trained = set(surgery.trained)
    parameters: dict[str, nn.Parameter] = {}
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(path in trained)
        if path in trained:
            _put(parameters, rename(path), parameter, patient.method)
    if not parameters:
        raise TuningError(
            f"tuning.method {patient.method}: nothing would train on this model; "
            "name its head, or choose another method or another range of blocks"
        )
    buffers = dict(_travelling_buffers(model, rename)) if surgery.whole else {}
    spec, buffer_spec = DeltaSpec.of(parameters), DeltaSpec.of(buffers)
    return TunedModel(
        model=model,
        loaded=_with_module(patient.loaded, surgery),
        method=patient.method,
        options={**patient.options, **surgery.drawn},
        spec=spec,
        parameters={name: parameters[name] for name in spec.names},
        buffer_spec=buffer_spec,
        buffers={name: buffers[name] for name in buffer_spec.names},
        trains_statistics=surgery.whole and _has_statistics(model),
        dropout=patient.keys,
        peft_model=surgery.peft_model,
        blocks=patient.blocks,
    )


def wire_name(loaded: LoadedModel, path: str) -> str:
    """Return the wire name of an in-memory path; our own parts lose their prefix."""
    for root in (ADAPTER_ROOT, PROMPT_ROOT):
        _, found, inner = path.rpartition(f"{root}.")
        if found:
            return f"{root.removeprefix('fedpeft_')}.{inner}"
    return canonical(loaded.family, path)


def head_parameters(loaded: LoadedModel) -> frozenset[str]:
    """In-memory names of the parameters that every method trains: the head, and what is new.

    A classifier's head is new and small: it is always trained. A language model's head is
    pretrained, and as large as its vocabulary: only `head`, `full` and `scratch` train it.
    """
    if not loaded.task.new_head:
        return loaded.fresh
    inside = (n for n, _ in loaded.module.named_parameters() if _is_under(n, loaded.head))
    return frozenset(inside) | loaded.fresh


def in_range(patient: Patient, path: str) -> bool:
    """Whether a parameter or module path lies in the wanted blocks; all do without a range."""
    if patient.blocks is None:
        return True
    block = block_of(canonical(patient.loaded.family, f"{path}."))
    return block is not None and patient.blocks[0] <= block <= patient.blocks[1]


def check_blocks(loaded: LoadedModel, method: str, blocks: tuple[int, int] | None) -> None:
    """Refuse a range of blocks that the model does not have.

    Raises:
      TuningError: if the model has no numbered blocks, or the range leaves them.
    """
    if blocks is None:
        return
    if not loaded.family.block:
        raise TuningError(
            f"tuning.blocks {list(blocks)}: {loaded.source} has no numbered blocks that we know; "
            "leave the range out and name modules in the method's options"
        )
    count = num_blocks(loaded.module, loaded.family)
    if not 0 <= blocks[0] <= blocks[1] < count:
        raise TuningError(
            f"tuning.blocks {list(blocks)} with method {method}: {loaded.source} has blocks "
            f"0 to {count - 1}; give the first and the last (inclusive) in that order"
        )


def chosen_blocks(patient: Patient) -> range:
    """Numbers of the blocks that get a part of the delta, of a model of a known family."""
    last = num_blocks(patient.loaded.module, patient.loaded.family) - 1
    first, last = patient.blocks or (0, last)
    return range(first, last + 1)


def is_meta(module: nn.Module) -> bool:
    """Whether a model has shapes but no weights (`plan`)."""
    return any(parameter.is_meta for parameter in module.parameters())


def _is_under(name: str, modules: Collection[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _put(parameters: dict[str, nn.Parameter], name: str, value: nn.Parameter, method: str) -> None:
    if name in parameters:
        raise TuningError(
            f"tuning.method {method}: two parameters have the wire name {name!r}; "
            "rename one of the modules of the model"
        )
    parameters[name] = value


def _travelling_buffers(
    model: nn.Module, rename: Callable[[str], str]
) -> Iterator[tuple[str, Tensor]]:
    """Floating buffers that a checkpoint holds; what is computed from the config stays at home."""
    persistent = model.state_dict(keep_vars=True)
    for path, buffer in model.named_buffers():
        if path in persistent and buffer.is_floating_point():
            yield rename(path), buffer


def _has_statistics(model: nn.Module) -> bool:
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in model.modules())


def _with_module(loaded: LoadedModel, surgery: Surgery) -> LoadedModel:
    """Keep `loaded.module` the module that is in use, also where it was built anew."""
    if surgery.peft_model is not None:
        return loaded
    return dataclasses.replace(loaded, module=surgery.model)
