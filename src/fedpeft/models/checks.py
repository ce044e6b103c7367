"""Checks of loaded weights: a run on a half-random or damaged backbone looks like a weak method.

check_shapes     every tensor of the backbone is in the files, with the same shape
check_kinds      as floating-point numbers
check_numbers    which are finite
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fedpeft.core.errors import ModelError
from fedpeft.models.architectures import Weights
from fedpeft.models.families import canonical
from fedpeft.models.loaded import LoadedModel


def check_shapes(loaded: LoadedModel, weights: Weights, fresh_paths: Sequence[str]) -> None:
    """Check that every tensor of the backbone came from the files, in the shape that it has there.

    Args:
      loaded: the model.
      weights: what its files lack.
      fresh_paths: paths of the modules that may be new.

    Raises:
      ModelError: naming the tensors.
    """
    new = tuple(f"{path}." for path in fresh_paths)
    missing = sorted(name for name in weights.missing if not name.startswith(new))
    misshapen = sorted(name for name in weights.misshapen if not name.startswith(new))
    if not missing and not misshapen:
        return
    parts = [
        f"{len(names)} {what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
        for what, names in (("missing", missing), ("of another shape", misshapen))
        if names
    ]
    raise ModelError(
        f"model {loaded.source!r}: the files do not fit the tensors of the backbone: "
        f"{'; '.join(parts)}. Only a classifier's head may be new: check that config.json belongs "
        "to these weights, or convert them with `fedpeft convert`"
    )


def check_kinds(loaded: LoadedModel, weights: Weights) -> None:
    """Check that the files hold floating-point numbers for every parameter, not codes for them.

    Raises:
      ModelError: naming the tensors that they do not.
    """
    prefix = getattr(loaded.module, "base_model_prefix", "")
    kinds = {
        canonical(loaded.family, path): kind
        for name, kind in weights.integers.items()
        for path in (name, f"{prefix}.{name}")
    }
    found = {
        name: kinds[own]
        for name, tensor in loaded.module.named_parameters()
        if tensor.is_floating_point() and (own := canonical(loaded.family, name)) in kinds
    }
    if found:
        shown = [f"{name} ({kind})" for name, kind in sorted(found.items())[:5]]
        raise ModelError(
            f"model {loaded.source!r}: {len(found)} tensors of {loaded.folder or loaded.source} "
            f"hold no floating-point numbers: {', '.join(shown)}{' ...' if len(found) > 5 else ''}"
            ". The model is quantised or damaged: give it as it was before, in float32, float16 or "
            "bfloat16"
        )


def check_numbers(loaded: LoadedModel) -> None:
    """Check that all weights are finite: one that is not makes every client's update so.

    Raises:
      ModelError: naming the tensors that are not.
    """
    module = loaded.module
    bad = [name for name, tensor in module.named_parameters() if _worst(tensor) != "finite"]
    # a buffer may hold -inf on purpose: a mask
    bad += [name for name, tensor in module.named_buffers() if _worst(tensor) == "NaN"]
    if bad:
        raise ModelError(
            f"model {loaded.source!r}: {len(bad)} tensors of {loaded.folder or loaded.source} hold "
            f"NaN or infinity: {', '.join(bad[:5])}{' ...' if len(bad) > 5 else ''}. The file is "
            "damaged, or its training diverged; take another copy or an earlier checkpoint"
        )


def _worst(tensor: torch.Tensor) -> str:
    """Return the worst kind of number in a tensor: `NaN`, `infinite`, or `finite`."""
    if not tensor.is_floating_point() or not tensor.numel():
        return "finite"
    low, high = map(float, torch.aminmax(tensor.detach()))  # both are NaN where any number is
    if math.isnan(low):
        return "NaN"
    return "finite" if math.isfinite(low) and math.isfinite(high) else "infinite"
