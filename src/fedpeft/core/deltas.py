"""The delta: the tensors that are trained and sent, as ordered names and one flat buffer.

    names    head.bias   head.weight   adapter.up.bias ...
    flat    |___________|_____________|________________ ...|      one contiguous tensor

Clipping, compressing, averaging and sending use the flat buffer; only the model uses its tensors.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedpeft.core.errors import DeltaMismatchError


@dataclass(frozen=True)
class DeltaSpec:
    """The ordered names, shapes and type of a delta.

    Attributes:
      names: canonical names, in the order of the flat buffer.
      shapes: the shape of each tensor, in the same order.
      dtype: the floating type of all tensors and of the flat buffer.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype = torch.float32

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> DeltaSpec:
        """Describe named tensors, sorted by name, so that two builds of one model are equal.

        Raises:
          DeltaMismatchError: if the tensors are not all of one floating type.
        """
        dtypes = {tensor.dtype for tensor in tensors.values()}
        if len(dtypes) > 1 or not all(dtype.is_floating_point for dtype in dtypes):
            found = ", ".join(sorted(dtype_name(dtype) for dtype in dtypes))
            raise DeltaMismatchError(
                f"delta: tensors of types {found}; one floating type is allowed: "
                "load the model in float32 (for half precision set `engine.precision`)"
            )
        names = tuple(sorted(tensors))
        shapes = tuple(tuple(tensors[name].shape) for name in names)
        return DeltaSpec(names, shapes, dtypes.pop() if dtypes else torch.float32)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of elements of each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def num_params(self) -> int:
        """Number of elements of the whole delta."""
        return sum(self.sizes)

    @property
    def num_bytes(self) -> int:
        """Size of the flat buffer in bytes, without framing."""
        return self.num_params * self.dtype.itemsize

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of names, shapes and type; deltas of equal digest may be averaged."""
        rows = (f"{n} {list(s)}" for n, s in zip(self.names, self.shapes, strict=True))
        text = "\n".join([dtype_name(self.dtype), *rows])
        return hashlib.sha256(text.encode()).hexdigest()

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Copy named tensors into a new flat buffer [num_params].

        Raises:
          DeltaMismatchError: if a name is missing or unknown, or a shape or type differs.
        """
        self.check(tensors)
        if not self.names:
            return torch.empty(0, dtype=self.dtype)
        return torch.cat([tensors[name].detach().reshape(-1) for name in self.names])

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Return named views of a flat buffer [num_params], which share its memory.

        Raises:
          DeltaMismatchError: if the length or type differs.
        """
        self.check_flat(flat)
        parts = torch.split(flat, list(self.sizes))
        shaped = zip(self.names, self.shapes, parts, strict=True)
        return {name: part.view(shape) for name, shape, part in shaped}

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Compare named tensors with this spec.

        Raises:
          DeltaMismatchError: if they differ; the message lists the first differences.
        """
        missing = [name for name in self.names if name not in tensors]
        unknown = sorted(set(tensors) - set(self.names))
        wrong = [
            f"{name} is {dtype_name(tensors[name].dtype)}{list(tensors[name].shape)}, "
            f"expected {dtype_name(self.dtype)}{list(shape)}"
            for name, shape in zip(self.names, self.shapes, strict=True)
            if name in tensors
            and (tuple(tensors[name].shape) != shape or tensors[name].dtype != self.dtype)
        ]
        problems = [f"missing {n}" for n in missing] + [f"unknown {n}" for n in unknown] + wrong
        if problems:
            more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
            raise DeltaMismatchError(
                f"delta of {len(self.names)} tensors does not fit: "
                f"{'; '.join(problems[:4])}{more}. "
                "Both sides must use the same model, tuning method and options"
            )

    def check_flat(self, flat: Tensor) -> None:
        """Compare a flat buffer's shape and type with this spec.

        Raises:
          DeltaMismatchError: if they differ.
        """
        if tuple(flat.shape) != (self.num_params,) or flat.dtype != self.dtype:
            raise DeltaMismatchError(
                f"flat delta: found {dtype_name(flat.dtype)}{list(flat.shape)}, "
                f"expected {dtype_name(self.dtype)}[{self.num_params}]. "
                "Both sides must use the same model, tuning method and options"
            )


def digest_of(flat: Tensor) -> str:
    """SHA-256 (hex) of a flat buffer's bytes (little endian, as in memory)."""
    array = flat.detach().cpu().contiguous().view(torch.uint8).numpy()
    return hashlib.sha256(array.tobytes()).hexdigest()


def dtype_name(dtype: torch.dtype) -> str:
    """Return a type's short name, such as `float32`."""
    return str(dtype).removeprefix("torch.")
