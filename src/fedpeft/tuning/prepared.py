"""The interface of tuning methods: what each receives and returns, and what `finish` adds.

    ModelToTune ──method──> PreparedModel ──finish──> TunedModel
    loaded model,           changed module,           all other parameters frozen; wire names;
    options, blocks         names of what trains      delta spec and buffer spec

A method only changes the module and names the parameters that train. Freezing, wire names and
specs are the same for all methods, so they are made here once.
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
from fedpeft.models.quiet import forget_biases
from fedpeft.tuning.dropout import DropoutKeys
from fedpeft.tuning.targets import Targets
from fedpeft.tuning.tuned import TunedModel

ADAPTER_ROOT = "fedpeft_adapter"
"""Attribute of the model that holds our adapters; `adapter` on the wire."""

PROMPT_ROOT = "fedpeft_prompt"
"""Attribute of the model that holds our prompts; `prompt` on the wire."""


STORABLE = (
    "adapter", "bias", "head", "ia3", "ln_tuning", "lora", "p_tuning", "prefix_tuning", "prompt",
    "prompt_tuning", "rslora",
)  # fmt: skip
"""Methods that leave the weights of layers as they are and do not read them."""


@dataclass(frozen=True)
class ModelToTune:
    """A pretrained model with the options of the tuning method that is applied to it.

    Attributes:
      loaded: the model; the method owns `loaded.module` and may change it.
      method: name of the method, for error messages.
      options: resolved options.
      blocks: first and last block (inclusive) that may get a part of the delta; None is all.
      seed: seed for libraries that take one; the global generators are already seeded from it.
      keys: the example keys that `KeyedDropout` layers read.
    """

    loaded: LoadedModel
    method: str
    options: Mapping[str, object]
    blocks: tuple[int, int] | None
    seed: int
    keys: DropoutKeys


@dataclass(frozen=True)
class PreparedModel:
    """A model that a tuning method has changed, before its other parameters are frozen.

    Attributes:
      module: the changed module.
      trained: in-memory names, in `module`, of the parameters that train.
      whole: whether floating buffers are sent too and BatchNorm runs in training mode.
      rename: maps an in-memory name to its wire name; None is `wire_name` of the family.
      peft_model: the `peft` wrapper around the module, where there is one.
      drawn: options derived from the seed, the model or the library; passing them as options builds
        the same model again.
      targets: the layers that were adapted, and the rule that chose them; None if none were.
    """

    module: nn.Module
    trained: Collection[str]
    whole: bool = False
    rename: Callable[[str], str] | None = None
    peft_model: nn.Module | None = None
    drawn: Mapping[str, object] = field(default_factory=dict)
    targets: Targets | None = None


def finish(model: ModelToTune, prepared: PreparedModel) -> TunedModel:
    """Freeze all but the trained parameters, switch to eval mode, and describe the delta.

    Raises:
      TuningError: if nothing would train, or two parameters would get one wire name.
    """
    module = prepared.module.eval()
    forget_biases(module)
    rename = prepared.rename or (lambda path: wire_name(model.loaded, path))
    trained = set(prepared.trained)
    parameters: dict[str, nn.Parameter] = {}
    for path, parameter in module.named_parameters():
        parameter.requires_grad_(path in trained)
        if path in trained:
            _put(parameters, rename(path), parameter, model.method)
    if not parameters:
        raise TuningError(
            f"tuning.method {model.method}: nothing would train on this model; "
            "name its head, or choose another method or another range of blocks"
        )
    from fedpeft.models.stored import store

    store(module, model.loaded.storage, model.loaded.head)
    buffers = dict(_travelling_buffers(module, rename)) if prepared.whole else {}
    spec, buffer_spec = DeltaSpec.of(parameters), DeltaSpec.of(buffers)
    return TunedModel(
        model=module,
        loaded=_with_module(model.loaded, prepared),
        method=model.method,
        options={**model.options, **prepared.drawn},
        spec=spec,
        parameters={name: parameters[name] for name in spec.names},
        buffer_spec=buffer_spec,
        buffers={name: buffers[name] for name in buffer_spec.names},
        trains_statistics=prepared.whole and _has_statistics(module),
        dropout=model.keys,
        peft_model=prepared.peft_model,
        blocks=model.blocks,
        targets=prepared.targets,
    )


def refuse_storage(loaded: LoadedModel, method: str) -> None:
    """Refuse weights in fewer bits with a method that trains them, or reads them itself.

    Raises:
      TuningError: if the method does so.
    """
    storage = loaded.storage
    if not storage.plain and method not in STORABLE:
        raise TuningError(
            f"model.dtype, model.quantization: found {str(storage.dtype).removeprefix('torch.')!r} "
            f"and {storage.quantization!r} with tuning.method = {method!r}, which trains or reads "
            f"the weights themselves; allowed are 'float32' and 'none', or one of the methods "
            f"{', '.join(STORABLE)}"
        )


def wire_name(loaded: LoadedModel, path: str) -> str:
    """Return the wire name of an in-memory path; modules added here lose their `fedpeft_`."""
    for root in (ADAPTER_ROOT, PROMPT_ROOT):
        _, found, inner = path.rpartition(f"{root}.")
        if found:
            return f"{root.removeprefix('fedpeft_')}.{inner}"
    return canonical(loaded.family, path)


def head_parameters(loaded: LoadedModel) -> frozenset[str]:
    """Return the in-memory names of what every method trains: the head and new parameters.

    A classifier's head is new and small: it is always trained. A language model's head is
    pretrained, and as large as its vocabulary: only `head`, `full` and `scratch` train it.
    """
    if not loaded.task.new_head:
        return loaded.fresh
    under = tuple(f"{path}." for path in loaded.head)
    inside = (name for name, _ in loaded.module.named_parameters() if name.startswith(under))
    return loaded.fresh.union(inside)


def in_range(model: ModelToTune, path: str) -> bool:
    """Whether a parameter or module path lies in the range of blocks; without one, all do."""
    if model.blocks is None:
        return True
    block = block_of(canonical(model.loaded.family, f"{path}."))
    return block is not None and model.blocks[0] <= block <= model.blocks[1]


def check_blocks(loaded: LoadedModel, method: str, blocks: tuple[int, int] | None) -> None:
    """Raise if the model does not have the range of blocks.

    Raises:
      TuningError: if the model has no numbered blocks, or the range exceeds them.
    """
    if blocks is None:
        return
    if not loaded.family.block:
        raise TuningError(
            f"tuning.blocks {list(blocks)}: {loaded.source} has no known numbered blocks; "
            "leave the range out and name modules in the method's options"
        )
    count = num_blocks(loaded.module, loaded.family)
    if not 0 <= blocks[0] <= blocks[1] < count:
        raise TuningError(
            f"tuning.blocks {list(blocks)} with method {method}: {loaded.source} has blocks "
            f"0 to {count - 1}; give the first and the last (inclusive) in that order"
        )


def chosen_blocks(model: ModelToTune) -> range:
    """Return the numbers of the blocks that are tuned, in a model of a known family."""
    last = num_blocks(model.loaded.module, model.loaded.family) - 1
    first, last = model.blocks or (0, last)
    return range(first, last + 1)


def is_meta(module: nn.Module) -> bool:
    """Whether a model has shapes but no weights (`plan`)."""
    return any(parameter.is_meta for parameter in module.parameters())


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
    """Yield the floating buffers that a checkpoint holds; buffers computed from the config do not
    need to be sent."""
    persistent = model.state_dict(keep_vars=True)
    for path, buffer in model.named_buffers():
        if path in persistent and buffer.is_floating_point():
            yield rename(path), buffer


def _has_statistics(model: nn.Module) -> bool:
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in model.modules())


def _with_module(loaded: LoadedModel, prepared: PreparedModel) -> LoadedModel:
    """Point `loaded.module` to the tuned module, which `scratch` builds anew."""
    if prepared.peft_model is not None:
        return loaded
    return dataclasses.replace(loaded, module=prepared.module)
