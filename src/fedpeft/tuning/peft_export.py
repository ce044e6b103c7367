"""Export of a `peft` delta, head included, as a folder that the unmodified library loads.

    adapter_config.json          the library's config; the head is listed in `modules_to_save`
    adapter_model.safetensors    the library's tensors, and the head under the names it expects

The tensors of the library's state dict share memory with the live model, so they are copied.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fedpeft.core.errors import TuningError
from fedpeft.tuning.peft_table import PROMPT_LEARNING, short_form
from fedpeft.tuning.prepared import head_parameters
from fedpeft.tuning.targets import CLASSIFIERS
from fedpeft.tuning.tuned import TunedModel

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


def save_peft(tuned: TunedModel, folder: Path, *, base: str, revision: str | None = None) -> None:
    """Write the current delta of a model that was tuned by a `peft` method.

    `peft.PeftModel.from_pretrained(backbone, folder)` then gives the tuned model's outputs.

    Args:
      tuned: a model tuned by a method of the library.
      folder: an existing folder; files of the same names are overwritten.
      base: hub id or folder of the backbone, written into the config.
      revision: of the backbone on the hub, written into the config.

    Raises:
      TuningError: if the method is not one of the library's, or the library alone could not run
        the model.
    """
    from safetensors.torch import save_file

    if tuned.peft_model is None:
        raise TuningError(
            f"export as peft: the peft library does not have method {tuned.method}; "
            "export full, head and bias as a merged model, others for `fedpeft.load`"
        )
    wrapper = cast("PeftModel", tuned.peft_model)
    _check_readers(tuned, wrapper)
    config = _config(tuned, wrapper.peft_config["default"], base)
    config.revision = revision
    save_file(peft_tensors(tuned), folder / "adapter_model.safetensors", {"format": "pt"})
    config.save_pretrained(str(folder))


def _check_readers(tuned: TunedModel, wrapper: nn.Module) -> None:
    """Refuse a MobileNet that reads strides: the layers of the library have none."""
    reads = getattr(getattr(tuned.loaded.module, "config", None), "tf_padding", False)
    if reads and any(
        isinstance(getattr(m, "base_layer", None), _ConvNd) for m in wrapper.modules()
    ):
        raise TuningError(
            f"export as peft: {tuned.loaded.source} reads the strides of its convolutions "
            "(tf_padding = true in its config), which the layers of the peft library do not have: "
            "peft alone could not run it; export it with `--as merged`"
        )


def _config(tuned: TunedModel, live: PeftConfig, base: str) -> PeftConfig:
    config = copy.deepcopy(live)
    config.base_model_name_or_path = base
    config.inference_mode = True
    modules = _saved_modules(tuned)
    if modules and hasattr(config, "modules_to_save"):
        config.modules_to_save = modules
    task, module = tuned.loaded.task, tuned.loaded.module
    if task.inputs == "text":
        config.task_type = task.peft_type
    elif task.inputs is not None:  # the library has no such task: the class's name stands in
        names = {"base_model_class": type(module).__name__, "parent_library": "transformers"}
        config.task_type, config.auto_mapping = None, names
    return config


def _saved_modules(tuned: TunedModel) -> list[str]:
    """Return the modules of the head: a whole head by its own name, other new parts by theirs.

    The library looks for a classifier by the name of the whole head (`classifier`), not by those
    of the layers inside it.
    """
    heads = tuned.loaded.head
    found = set()
    for name in head_parameters(tuned.loaded):
        inside = [path for path in heads if name.startswith(f"{path}.")]
        found.add(inside[0] if inside else name.rpartition(".")[0])
    return sorted(found)


def merge_peft(tuned: TunedModel) -> nn.Module | None:
    """Fold the delta of a `peft` method into the model's weights; None where it cannot be.

    The tuned model is taken apart: do not use it afterwards.
    """
    if short_form(tuned.method)[0] in PROMPT_LEARNING:
        return None
    wrapper = cast("PeftModel", tuned.peft_model)
    try:
        merged: nn.Module = wrapper.merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError, TypeError):
        return None
    return merged


def peft_tensors(tuned: TunedModel) -> dict[str, Tensor]:
    """Copy the library's tensors, and the head's under their paths in the wrapper."""
    from peft import get_peft_model_state_dict

    wrapper = cast("PeftModel", tuned.peft_model)
    state = get_peft_model_state_dict(wrapper, save_embedding_layers=False) | head_tensors(tuned)
    return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}


def head_tensors(tuned: TunedModel) -> dict[str, Tensor]:
    """Return the live tensors of the head by the names of `peft_tensors`; {} without a new head."""
    if not tuned.loaded.task.new_head:
        return {}
    prompted = short_form(tuned.method)[0] in PROMPT_LEARNING
    prefix = "base_model." if prompted else "base_model.model."
    return {f"{prefix}{name}": value for name, value in _whole_modules(tuned).items()}


def _whole_modules(tuned: TunedModel) -> dict[str, Tensor]:
    """Return all tensors of the modules that the library replaces by copies, and expects whole.

    It compares the ends of paths: `classifier` stands for `pre_classifier` as well. The statistics
    of a BatchNorm in the head belong to them.
    """
    ends = (*_saved_modules(tuned), *(CLASSIFIERS if tuned.loaded.task.inputs == "text" else ()))
    return {
        f"{path}.{name}": value
        for path, part in tuned.loaded.module.named_modules()
        if path.endswith(ends)
        for name, value in part.state_dict(keep_vars=True).items()
    }
