"""Custom modules: any `nn.Module` becomes a `LoadedModel`."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence

from torch import nn

from fedpeft.core.errors import ModelError
from fedpeft.models.families import family_of
from fedpeft.models.loaded import InputSpec, LoadedModel
from fedpeft.models.quiet import zero_dropout
from fedpeft.models.tasks import Task


def wrap_module(
    module: nn.Module,
    *,
    task: Task,
    head: Sequence[str] = (),
    inputs: InputSpec = None,
    name: str = "module",
) -> LoadedModel:
    """Make a custom module ready for `tune`.

    The module is copied and not changed. The copy is float32, in eval mode, with all dropout off.
    Its head keeps its weights; `init_head` draws new ones.

    Args:
      module: any module; one with a `transformers` config of a known type gets its family.
      task: how a batch is scored; see `classification_task` and `custom_task`.
      head: paths of the modules that every tuning method trains.
      inputs: how raw examples become batches; None if the user's data set returns batches.
      name: name in records and error messages.

    Raises:
      ModelError: if a path of the head is not a module, or has no parameters, or if the module is
        wrapped with `peft` already (see `from_peft`).

    Example:
      >>> import torch, fedpeft
      >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
      >>> task = fedpeft.classification_task(lambda net, batch: net(batch["inputs"]))
      >>> loaded = fedpeft.wrap_module(net, task=task, head=["2"])
      >>> fedpeft.tune(loaded, fedpeft.TuningRequest("head")).spec.names
      ('2.bias', '2.weight')
    """
    if hasattr(module, "peft_config") and hasattr(module, "get_base_model"):
        raise ModelError(
            f"model {name!r}: it is wrapped with peft already (a {type(module).__name__}); take "
            "`fedpeft.from_peft(model)`, or unload its adapter and give the base model"
        )
    paths = [path for path, _ in module.named_modules() if path]
    for path in head:
        if path not in paths:
            near = difflib.get_close_matches(path, paths, n=3) or paths[:6]
            raise ModelError(
                f"model {name!r}: head {path!r} is not one of its modules; the nearest are "
                f"{', '.join(near) or '(it has none)'}"
            )
        if not any(True for _ in module.get_submodule(path).parameters()):
            raise ModelError(
                f"model {name!r}: head {path!r} has no parameters; name a layer that has"
            )
    own = copy.deepcopy(module).float().eval()
    zero_dropout(own)
    return LoadedModel(
        module=own, task=task, family=family_of(own), head=tuple(head), inputs=inputs, source=name
    )
