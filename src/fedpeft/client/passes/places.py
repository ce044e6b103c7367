"""Which modules of a tuned model give way to forms while clients share a pass.

    trained parameter ──its module's class──> FORMS ──> what takes the place of that module's method

A module counts by the full name of its class, so that `peft` and `transformers` need not be
imported; a class that is not in the table has no form, and its model trains one client at a time.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from fedpeft.client.passes.forms import Live, Own, Run, layer_norm, linear, vmapped
from fedpeft.tuning.prompt import Prompt
from fedpeft.tuning.tuned import TunedModel

__all__ = ["FORMS", "Form", "LoraLayer", "Place", "find_places", "in_place"]


class LoraLayer(Protocol):
    """The part of `peft`'s linear LoRA layer that we use."""

    base_layer: nn.Linear
    lora_variant: Mapping[str, object]


@dataclass(frozen=True)
class Form:
    """How one class of modules computes for several clients.

    Attributes:
      make: from a module and its trained parameters to what replaces its method.
      trains: own names that may be trained; () for any.
      method: what is replaced.
      fits: whether it can stand for this module.
    """

    make: Callable[[Any, Own], Run] = vmapped
    trains: tuple[str, ...] = ()
    method: str = "forward"
    fits: Callable[[Any], bool] = lambda module: True


@dataclass(frozen=True)
class Place:
    """A module whose method gives way to a form while a pass runs."""

    module: nn.Module
    method: str
    run: Run


def find_places(tuned: TunedModel, live: Live) -> list[Place] | str:
    """Find a form for every trained parameter, or say which has none.

    A form speaks for the modules inside its module too.
    """
    wire = {id(parameter): name for name, parameter in tuned.parameters.items()}
    inside: set[int] = set()
    covered: set[str] = set()
    found: list[Place] = []
    for path, module in tuned.model.named_modules():
        if id(module) in inside:
            continue
        if (variant := _lora_variant(module)) not in _LORA_VARIANTS:
            return f"{path} is a LoRA layer of the kind {variant}"
        form = _form_of(module)
        pairs = module.named_parameters(recurse=form is not None, remove_duplicate=False)
        own = {name: wire[id(parameter)] for name, parameter in pairs if id(parameter) in wire}
        if not own:
            continue
        if form is None or (form.trains and not set(own) <= set(form.trains)):
            return f"{path or 'the model itself'} ({type(module).__name__}) trains {sorted(own)}"
        inside |= {id(part) for part in module.modules()}
        run = form.make(module, Own(own, live, tuned.dropout))
        found.append(Place(module, form.method, run))
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


def _lora_variant(module: nn.Module) -> str:
    """Return the class of what a LoRA layer of `peft` computes instead of plain LoRA, if any."""
    variants: Mapping[str, object] = getattr(module, "lora_variant", {})
    return next((type(v).__name__ for v in variants.values() if v is not None), "")


def _is_dora(module: LoraLayer) -> bool:
    """Whether a LoRA layer is DoRA; it takes the bias out again, which so must not train."""
    bias = module.base_layer.bias
    return bool(module.lora_variant) and (bias is None or not bias.requires_grad)


def _has_plain_kernel(module: nn.Conv2d) -> bool:
    """Whether a convolution's own kernel can be one group of a larger one."""
    frozen = not module.weight.requires_grad
    return frozen or (module.groups == 1 and module.padding_mode == "zeros")


def _is_plain_embedding(module: nn.Embedding) -> bool:
    return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse


_LORA_VARIANTS = ("", "DoraLinearVariant")
"""Plain LoRA calls linear layers, which have their form; DoRA is a whole."""

_BOTH = ("weight", "bias")
_RMS = Form(trains=("weight",))

FORMS: Mapping[str, Form] = {
    "torch.nn.modules.linear.Linear": Form(linear, _BOTH),
    "torch.nn.modules.normalization.LayerNorm": Form(layer_norm, _BOTH),
    "torch.nn.modules.sparse.Embedding": Form(trains=("weight",), fits=_is_plain_embedding),
    "torch.nn.modules.conv.Conv2d": Form(trains=_BOTH, fits=_has_plain_kernel),
    "torch.nn.modules.conv.Conv3d": Form(trains=("bias",)),
    "transformers.pytorch_utils.Conv1D": Form(trains=_BOTH),
    "transformers.models.llama.modeling_llama.LlamaRMSNorm": _RMS,
    "transformers.models.qwen2.modeling_qwen2.Qwen2RMSNorm": _RMS,
    "transformers.models.qwen3.modeling_qwen3.Qwen3RMSNorm": _RMS,
    "transformers.models.vit.modeling_vit.ViTEmbeddings": Form(),
    f"{Prompt.__module__}.Prompt": Form(
        functools.partial(vmapped, method="append"), ("tokens",), method="append"
    ),
    "peft.tuners.lora.layer.Linear": Form(fits=_is_dora),
    "peft.tuners.ia3.layer.Linear": Form(),
}
"""Full name of a class -> its form."""
