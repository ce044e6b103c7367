"""Fingerprints: a hash of the frozen part of a model, in 64 hexadecimal digits.

    SHA-256 over, in the order of names:   name \\0 type \\0 shape \\0 bytes

The names are canonical, so that folders written by `transformers` 4 and 5 agree. A server and its
clients compare fingerprints when they first connect; an export records that of its backbone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import torch
from torch import Tensor, nn

from fedpeft.core.errors import ModelError
from fedpeft.models.families import Family, canonical_names


def fingerprint(module: nn.Module, family: Family, *, exclude: Collection[str] = ()) -> str:
    """Hash the parameters and saved buffers of a module.

    Args:
      module: the model, on any device but `meta`.
      family: family of the model, for the canonical names.
      exclude: canonical names that are left out: those of the delta, which changes.

    Raises:
      ModelError: if the module has no weights (`meta`), or two tensors have one name.
    """
    tensors = module.state_dict(keep_vars=True)
    digest = hashlib.sha256()
    for name, path in sorted(canonical_names(module, family).items()):
        if name not in exclude:
            _update(digest, name, tensors[path])
    return digest.hexdigest()


def _update(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        raise ModelError(
            f"fingerprint: tensor {name!r} is on `meta` and has no values; load the model first"
        )
    shape = "x".join(str(size) for size in tensor.shape)
    kind = str(tensor.dtype).removeprefix("torch.")
    digest.update(f"{name}\0{kind}\0{shape}\0".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data)
