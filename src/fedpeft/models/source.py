"""Loading a model by name: a pretrained backbone, with a new head.

    request ── locate ──> folder ── weights ──> checks ──> new head ──> LoadedModel
                     └──> preset ── build, untrained ────────┘
    sketch_model: the same on torch's `meta` device: shapes, but no weights and no network

A load that leaves a tensor of the backbone without its weight, or with one of another shape, is an
error: a run on a half-random backbone looks like a weak method.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fedpeft.core import seeds
from fedpeft.core.errors import ModelError
from fedpeft.models.architectures import (
    Described,
    ModelConfig,
    Weights,
    build,
    fit_config,
    infer_task,
    load_weights,
    preset_config,
    read_config,
)
from fedpeft.models.checks import check_kinds, check_numbers, check_shapes
from fedpeft.models.families import Family, before_head, family_of, parameters_under
from fedpeft.models.heads import init_head
from fedpeft.models.inputs import image_input, text_input, video_input
from fedpeft.models.loaded import InputSpec, LoadedModel, TextInput
from fedpeft.models.locate import Place, is_local, locate, preset_tokenizer
from fedpeft.models.padding import (
    check_padding,
    pad_tokens,
    position_table,
    refuse_unmasked,
    set_padding,
)
from fedpeft.models.pooling import check_pooling, pooling_of, set_pooling
from fedpeft.models.presets import PRESETS
from fedpeft.models.quiet import slow_statistics, zero_dropout
from fedpeft.models.storage import Storage, storage_of
from fedpeft.models.stored import cast, runnable
from fedpeft.models.tasks import TASKS, TEXT_CLASSIFICATION, Task, task_named
from fedpeft.models.weight_files import StoredTensor, has_weights, stored_tensors


@dataclass(frozen=True)
class ModelRequest:
    """A request for a model: its name, its task and its head.

    Attributes:
      name: hub id, local folder, bundled name, or `preset:NAME` (untrained).
      task: a task, or the name of a row of `TASKS`; None infers it from the config.
      num_labels: number of classes of a new head; None keeps the head in the files.
      config: source of the architecture where the name needs a network: `preset:NAME`, a folder or
        a `config.json`; used by `sketch_model`, and for a folder of weights without a config.
      revision: branch, tag or commit on the hub.
      head_init: `normal` or `paper`; see `fedpeft.models.heads`.
      seed: root seed of the new head and of a preset's weights.
      data_channels: channels of the data's images; used by presets whose channels follow the data.
      attention: `sdpa` or `eager`; None is `sdpa` where the model supports it.
      pooling: `mean`, `cls` or `pooler`; None is what the model's class does; see
        `fedpeft.models.pooling`.
      dtype: `float32`, `bfloat16`, or `auto`, the type of the files: how linear layers and
        embeddings that do not train are stored; see `fedpeft.models.storage`.
      quantization: `none`, `int8` or `nf4`, of the linear layers among them.

    Example:
      >>> import fedpeft
      >>> request = fedpeft.ModelRequest("preset:tiny-vit", num_labels=3)
      >>> fedpeft.load_model(request).module.config.num_labels
      3
    """

    name: str
    task: str | Task | None = None
    num_labels: int | None = None
    config: str | None = None
    revision: str | None = None
    head_init: str = "normal"
    seed: int = 0
    data_channels: int | None = None
    attention: str | None = None
    pooling: str | None = None
    dtype: str = "float32"
    quantization: str = "none"


def load_model(request: ModelRequest) -> LoadedModel:
    """Load a model: on the CPU, in eval mode, without dropout; float32 unless `dtype` is another.

    Raises:
      ModelError: if the name is unknown, the hub out of reach, the files incomplete, the task not
        supported, or a tensor of the backbone missing or misshapen.

    Example:
      >>> import fedpeft
      >>> loaded = fedpeft.load_model(fedpeft.ModelRequest("preset:tiny-vit"))
      >>> loaded.task.name, loaded.family.name, loaded.head
      ('image-classification', 'vit', ('classifier',))
    """
    place = locate(request.name, revision=request.revision)
    config, task = _config(request, place)
    attention, where = request.attention, _where(request, place)
    storage = _storage(request, stored_tensors(place.folder) if place.folder else {})
    with seeds.isolated(seeds.derive(request.seed, "model")):
        if place.folder is None:
            module = build(config, task, attention=attention, described=Described(where))
            weights = Weights(module, missing=frozenset(), misshapen=frozenset())
        else:
            weights = load_weights(
                place.folder,
                config,
                task,
                attention=attention,
                where=where,
                dtype=storage.dtype,
            )
    weights = _pooled(weights, request, task)
    loaded = _describe(request, place, weights.module, task)
    fresh_paths = _fresh_paths(loaded, request, weights)
    check_shapes(loaded, weights, fresh_paths)
    check_kinds(loaded, weights)
    if storage.dtype is not torch.float32:
        new = [*fresh_paths, *(loaded.head if task.new_head else ())]
        cast(weights.module, storage.dtype, new)
    init_head(loaded.module, fresh_paths, seed=request.seed, how=request.head_init)
    check_numbers(loaded)
    if isinstance(loaded.inputs, TextInput):
        set_padding(loaded.module, loaded.inputs)
        if not task.per_token:
            with runnable(loaded.module, storage):
                check_pooling(loaded.module, loaded.inputs, where=request.name)
                check_padding(loaded.module, loaded.inputs)
    fresh = parameters_under(loaded.module, fresh_paths)
    return dataclasses.replace(loaded, fresh=fresh, storage=storage)


def sketch_model(request: ModelRequest) -> LoadedModel:
    """Build the model's structure on torch's `meta` device: names and shapes, no weights.

    Its trainable counts equal those of `load_model`. If a folder is available, the headers of its
    files show which parts of the head are new; a preset counts as if its backbone were pretrained.

    Raises:
      ModelError: as `load_model`, except for errors that only the weights reveal.
    """
    if request.config is not None and not is_local(request.name):
        place = locate(request.config)
    else:
        place = locate(request.name, revision=request.revision)
    config, task = _config(request, place)
    folder = place.folder
    known = folder is not None and has_weights(folder, any_format=place.name == request.name)
    stored = stored_tensors(folder) if folder is not None and known else {}
    sizes = tuple(tensor.num_elements for tensor in stored.values()) or None
    described = Described(_where(request, place), sizes)
    with torch.device("meta"):
        module = build(config, task, attention=request.attention, described=described)
    set_pooling(module, request.pooling, task, where=request.name)
    loaded = _describe(request, place, module, task)
    missing = frozenset(_absent(loaded, stored)) if stored else frozenset()
    weights = Weights(module, missing=missing, misshapen=frozenset())
    fresh_paths = _fresh_paths(loaded, request, weights)
    fresh = parameters_under(module, fresh_paths)
    return dataclasses.replace(loaded, fresh=fresh, storage=_storage(request, stored))


def describe_module(module: nn.Module, request: ModelRequest, task: Task | None) -> LoadedModel:
    """Describe a module that was loaded elsewhere; the caller sets its head.

    The module is changed: float32, on the CPU, in eval mode, without dropout.

    Args:
      module: any module; the family is that of its `transformers` config, if it has one.
      request: the request that loads the same weights again; without a name nothing is recorded.
      task: how a batch is scored; None infers it from the name of the module's class.

    Raises:
      ModelError: if the task cannot be inferred.
    """
    zero_dropout(module.float().cpu().eval())
    slow_statistics(module)
    folder: Path | None = None
    with contextlib.suppress(ModelError):
        folder = locate(request.name, revision=request.revision).folder if request.name else None
    task = task or _task_of(module)
    request = dataclasses.replace(request, pooling=pooling_of(module))
    named = request.name and (folder is not None or is_local(request.name))
    inputs = _inputs(request, module, task, folder) if named else None
    if isinstance(inputs, TextInput):
        set_padding(module, inputs)
    return LoadedModel(
        module=module,
        task=task,
        family=family_of(module),
        head=(),
        inputs=inputs,
        source=request.name or type(module).__name__,
        folder=folder,
        recorded=_recorded(request) if request.name else {},
    )


def _task_of(module: nn.Module) -> Task:
    name = type(module).__name__
    config: ModelConfig | None = copy.copy(getattr(module, "config", None))
    if config is None:
        raise ModelError(f"model {name}: its task cannot be inferred; pass task=")
    vars(config)["architectures"] = [name]
    return infer_task(config, where=name)


def _config(request: ModelRequest, place: Place) -> tuple[ModelConfig, Task]:
    """Read the config of a place and adapt it to the task, which is inferred if not given."""
    preset = PRESETS[place.preset] if place.preset is not None else None
    if preset is not None:
        if preset.channels_from_data and request.data_channels is not None:
            settings = {**preset.settings, "num_channels": request.data_channels}
            preset = dataclasses.replace(preset, settings=settings)
        config = preset_config(preset)
    else:
        config = _read(request, place)
    named = request.task or (preset.task if preset else None)
    task = task_named(named) if named else infer_task(config, where=request.name)
    if task.auto_class == TEXT_CLASSIFICATION.auto_class:
        refuse_unmasked(config.model_type, where=request.name)
    return fit_config(config, task, num_labels=request.num_labels, where=request.name), task


def _read(request: ModelRequest, place: Place) -> ModelConfig:
    """Read the config of a folder, or of `request.config` if the folder has none."""
    assert place.folder is not None, "a place is a preset or a folder"
    if (place.folder / "config.json").is_file() or request.config is None:
        return read_config(place.folder)
    other = locate(request.config)
    if other.folder is not None:
        return read_config(other.folder)
    return preset_config(PRESETS[str(other.preset)])


def _storage(request: ModelRequest, stored: Mapping[str, StoredTensor]) -> Storage:
    """Return how the frozen weights of a model are to be stored."""
    kinds: dict[str, int] = {}
    for tensor in stored.values():
        kinds[tensor.kind] = kinds.get(tensor.kind, 0) + tensor.num_elements
    return storage_of(request.dtype, request.quantization, kinds)


def _where(request: ModelRequest, place: Place) -> str:
    """Say what describes the architecture of a place, for messages."""
    if place.folder is None:
        return f"model {place.name!r}"
    own = place.folder / "config.json"
    return str(own if own.exists() or request.config is None else request.config)


def _pooled(weights: Weights, request: ModelRequest, task: Task) -> Weights:
    """Set how a loaded model pools; weights of a pooler that it lost are not missing."""
    set_pooling(weights.module, request.pooling, task, where=request.name)
    names = weights.module.state_dict(keep_vars=True).keys()
    return dataclasses.replace(
        weights, missing=weights.missing & names, misshapen=weights.misshapen & names
    )


def _describe(request: ModelRequest, place: Place, module: nn.Module, task: Task) -> LoadedModel:
    """Switch a module to eval mode without dropout, and find its head and input format."""
    zero_dropout(module.eval())
    slow_statistics(module)
    family = family_of(module)
    own = place.folder if place.name == request.name else None
    return LoadedModel(
        module=module,
        task=task,
        family=family,
        head=_head(module, family, request.name),
        inputs=_inputs(request, module, task, own),
        source=request.name,
        folder=own,
        recorded=_recorded(request),
    )


def _recorded(request: ModelRequest) -> Mapping[str, object]:
    """Return a request as keys of an experiment file; the seed is that of the experiment."""
    keys = ("name", "task", "num_labels", "config", "revision", "pooling", "dtype", "quantization")
    given = {f"model.{key}": getattr(request, key) for key in keys}
    if isinstance(request.task, Task):  # one of the user's own has no name in a file
        row = TASKS.get(request.task.name)
        given["model.task"] = request.task.name if row is request.task else None
    usual = {"model.dtype": "float32", "model.quantization": "none"}
    known = {k: value for k, value in given.items() if value not in (None, usual.get(k))}
    return {**known, "tuning.head_init": request.head_init}


def _head(module: nn.Module, family: Family, source: str) -> tuple[str, ...]:
    candidates = family.head or ("classifier", "score", "lm_head", "fc", "head")
    twins = () if family.head else (n for n in _beside_backbone(module) if "classifier" in n)
    paths = dict.fromkeys((*candidates, *twins))  # a distilled model has a second classifier
    found = tuple(path for path in paths if parameters_under(module, [path]))
    found = found or _beside_backbone(module)
    if not found:
        raise ModelError(
            f"model {source!r}: no head found at {', '.join(candidates)}; its modules are "
            f"{', '.join(name for name, _ in module.named_children())}: load it yourself and use "
            "fedpeft's wrap_module with the head's path"
        )
    return found


def _beside_backbone(module: nn.Module) -> tuple[str, ...]:
    """Return what a class of `transformers` adds to its backbone, whatever it is called."""
    output = getattr(module, "get_output_embeddings", lambda: None)()
    if output is not None:
        return tuple(path for path, part in module.named_modules() if part is output)[:1]
    backbone = getattr(module, "base_model", module)
    others = ((n, part) for n, part in module.named_children() if backbone not in (module, part))
    return tuple(name for name, part in others if any(True for _ in part.parameters()))


def _inputs(request: ModelRequest, module: nn.Module, task: Task, folder: Path | None) -> InputSpec:
    config, family = getattr(module, "config", None), family_of(module)
    if task.inputs in ("image", "video"):
        return (image_input if task.inputs == "image" else video_input)(config, family, folder)
    source = (
        folder or preset_tokenizer(request.name) or ("" if is_local(request.name) else request.name)
    )
    ends = not task.per_token and "score" in dict(module.named_children())
    places, padded = position_table(module) or (None, None)
    reserved = 0 if padded is None else padded + 1
    padding = pad_tokens(module, ends=ends)
    return text_input(config, source, padding, places=places, reserved=reserved)


def _fresh_paths(loaded: LoadedModel, request: ModelRequest, weights: Weights) -> tuple[str, ...]:
    """Return the paths of modules that get new weights: a classifier's head, or missing parts."""
    if not loaded.task.new_head:
        return ()
    bad = weights.missing | weights.misshapen
    renewed = (
        request.num_labels is not None
        or loaded.folder is None
        or not bad.isdisjoint(parameters_under(loaded.module, loaded.head))
    )
    late = tuple(
        path
        for path in before_head(loaded.module, loaded.head)
        if not weights.missing.isdisjoint(parameters_under(loaded.module, [path]))
    )
    return (*(loaded.head if renewed else ()), *late)


def _absent(loaded: LoadedModel, names: Collection[str]) -> Sequence[str]:
    """Return the head's parameters that a file's names lack, with and without their prefix."""
    late = before_head(loaded.module, loaded.head)
    parts = parameters_under(loaded.module, [*loaded.head, *late])
    return [n for n in parts if n not in names and n.partition(".")[2] not in names]
