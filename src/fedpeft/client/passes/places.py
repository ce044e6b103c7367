"""Which modules of a tuned model give way to forms while clients share a pass.

    trained parameter ──its module's class──> FORMS ──> what takes the place of that module's method

A module counts by the full name of its class, so that `peft` and `transformers` need not be
imported; a class that is not in the table has no form, and its model trains one client at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fedpeft.client.passes.forms import (
    Live,
    Own,
    Run,
    conv1d,
    convolution,
    embedding,
    layer_norm,
    linear,
    prompt,
    rms_norm,
    vit_embeddings,
)
from fedpeft.client.passes.forms_peft import ia3, is_plain_lora, lora
from fedpeft.tuning.prompt import Prompt
from fedpeft.tuning.tuned import TunedModel

__all__ = ["FORMS", "Form", "Place", "find_places", "in_place"]


@dataclass(frozen=True)
class Form:
    """How one class of modules computes for several clients.

    Attributes:
      make: from a module and its trained parameters to what replaces its method.
      trains: own names that may be trained; () for any.
      method: what is replaced.
      whole: whether it speaks for the modules inside it too, but for a `base_layer`.
      fits: whether it can stand for this module.
    """

    make: Callable[[Any, Own], Run]
    trains: tuple[str, ...] = ()
    method: str = "forward"
    whole: bool = False
    fits: Callable[[Any], bool] = lambda module: True


@dataclass(frozen=True)
class Place:
    """A module whose method gives way to a form while a pass runs."""

    module: nn.Module
    method: str
    run: Run


def find_places(tuned: TunedModel, live: Live) -> list[Place] | str:
    """Find a form for every trained parameter, or say which has none."""
    wire = {id(parameter): name for name, parameter in tuned.parameters.items()}
    inside: set[int] = set()
    covered: set[str] = set()
    found: list[Place] = []
    for path, module in tuned.model.named_modules():
        if id(module) in inside:
            continue
        form = _form_of(module)
        own = _trained(module, wire, whole=form is not None and form.whole)
        if not own:
            continue
        if form is None or (form.trains and not set(own) <= set(form.trains)):
            return f"{path or 'the model itself'} ({type(module).__name__}) trains {sorted(own)}"
        if form.whole:
            inside |= {id(part) for name, part in module.named_modules() if not _is_base(name)}
        found.append(Place(module, form.method, form.make(module, Own(own, live))))
        covered |= set(own.values())
    missing = [name for name in tuned.parameters if name not in covered]
    return f"{missing[0]} is not in the model's modules" if missing else found


@contextlib.contextmanager
def in_place(places: Sequence[Place]) -> Iterator[None]:
    """Let the forms take the place of their modules' methods inside the block."""
    for place in places:
        object.__setattr__(place.module, place.method, place.run)
    try:
        yield
    finally:
        for place in places:
            object.__delattr__(place.module, place.method)


def _form_of(module: nn.Module) -> Form | None:
    kind = type(module)
    form = FORMS.get(f"{kind.__module__}.{kind.__qualname__}")
    return form if form is not None and form.fits(module) else None


def _trained(module: nn.Module, wire: Mapping[int, str], *, whole: bool) -> dict[str, str]:
    """Own name -> wire name of a module's trained parameters."""
    pairs = module.named_parameters(recurse=whole, remove_duplicate=False)
    return {name: wire[id(p)] for name, p in pairs if id(p) in wire and not _is_base(name)}


def _is_base(name: str) -> bool:
    return name == "base_layer" or name.startswith("base_layer.")


def _has_plain_kernel(module: nn.Conv2d) -> bool:
    """Whether a convolution's own kernel can be one group of a larger one."""
    frozen = not module.weight.requires_grad
    return frozen or (module.groups == 1 and module.padding_mode == "zeros")


def _is_plain_embedding(module: nn.Embedding) -> bool:
    return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse


_BOTH = ("weight", "bias")
_RMS = Form(rms_norm, ("weight",))

FORMS: Mapping[str, Form] = {
    "torch.nn.modules.linear.Linear": Form(linear, _BOTH),
    "torch.nn.modules.normalization.LayerNorm": Form(layer_norm, _BOTH),
    "torch.nn.modules.sparse.Embedding": Form(embedding, ("weight",), fits=_is_plain_embedding),
    "torch.nn.modules.conv.Conv2d": Form(convolution, _BOTH, fits=_has_plain_kernel),
    "torch.nn.modules.conv.Conv3d": Form(convolution, ("bias",)),
    "transformers.pytorch_utils.Conv1D": Form(conv1d, _BOTH),
    "transformers.models.llama.modeling_llama.LlamaRMSNorm": _RMS,
    "transformers.models.qwen2.modeling_qwen2.Qwen2RMSNorm": _RMS,
    "transformers.models.qwen3.modeling_qwen3.Qwen3RMSNorm": _RMS,
    "transformers.models.vit.modeling_vit.ViTEmbeddings": Form(
        vit_embeddings, ("cls_token", "position_embeddings")
    ),
    f"{Prompt.__module__}.Prompt": Form(prompt, ("tokens",), method="append"),
    "peft.tuners.lora.layer.Linear": Form(lora, whole=True, fits=is_plain_lora),
    "peft.tuners.ia3.layer.Linear": Form(ia3, whole=True),
}
"""Full name of a class -> its form."""
