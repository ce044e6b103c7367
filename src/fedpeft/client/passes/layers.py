"""The modules of a tuned model whose methods are replaced by forms while clients share a pass.

    trained parameter ──its module's class──> FORMS ──> replacement of that module's method

The table has full names of classes, so that `peft` and `transformers` need not be imported. A class
that is not in the table has no form, and its model trains one client at a time.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from fedpeft.client.passes.client_axis import Live, Own, Run, layer_norm, linear, vmapped
from fedpeft.models.stored import StoredLinear
from fedpeft.tuning.prompt import Prompt
from fedpeft.tuning.tuned import TunedModel


class LoraLayer(Protocol):
    """The part of `peft`'s linear LoRA layer that we use."""

    base_layer: nn.Linear
    lora_variant: Mapping[str, object]


@dataclass(frozen=True)
class Form:
    """The computation of one class of modules for several clients.

    Attributes:
      make: (module, its trained parameters) -> replacement of its method.
      trains: the module's names of parameters that may train; () for any.
      method: name of the replaced method.
      fits: whether the form is correct for a module of the class.
    """

    make: Callable[[Any, Own], Run] = vmapped
    trains: tuple[str, ...] = ()
    method: str = "forward"
    fits: Callable[[Any], bool] = lambda module: True


@dataclass(frozen=True)
class Place:
    """A module, and the form that replaces one of its methods while a pass runs."""

    module: nn.Module
    method: str
    run: Run


def find_places(tuned: TunedModel, live: Live) -> list[Place] | str:
    """Find a form for every trained parameter, or return why there is none.

    A form also covers the modules inside its module.
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
    """Replace methods by their forms within the context."""
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
    """Return the class name of the variant that a LoRA layer of `peft` uses; "" for plain LoRA."""
    variants: Mapping[str, object] = getattr(module, "lora_variant", {})
    return next((type(v).__name__ for v in variants.values() if v is not None), "")


def _is_dora(module: LoraLayer) -> bool:
    """Whether a LoRA layer is DoRA whose bias does not train, since DoRA subtracts it again."""
    bias = module.base_layer.bias
    return bool(module.lora_variant) and (bias is None or not bias.requires_grad)


def _has_plain_kernel(module: nn.Conv2d) -> bool:
    """Whether a convolution's kernel can be one group of a larger convolution."""
    frozen = not module.weight.requires_grad
    return frozen or (module.groups == 1 and module.padding_mode == "zeros")


def _is_plain_embedding(module: nn.Embedding) -> bool:
    return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse


_LORA_VARIANTS = ("", "DoraLinearVariant")
"""Plain LoRA calls linear layers, which have forms; DoRA has a form of its own."""

_BOTH = ("weight", "bias")
_RMS = Form(trains=("weight",))

FORMS: Mapping[str, Form] = {
    "torch.nn.modules.linear.Linear": Form(linear, _BOTH),
    f"{StoredLinear.__module__}.StoredLinear": Form(linear, ("bias",)),
    f"{StoredLinear.__module__}.StoredConv1D": Form(trains=("bias",)),
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
