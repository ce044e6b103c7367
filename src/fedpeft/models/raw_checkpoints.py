"""Raw checkpoints: files of named tensors, and what is made of them.

file ── read_raw ──> {name: tensor, ...} ── keep_tensors ──> backbone's own names ── fill ──> module
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from fedpeft.core.errors import ModelError
from fedpeft.models.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Tensors: TypeAlias = Mapping[str, Tensor]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_SAVED = (b"PK\x03\x04", b"\x80")
"""How files of `torch.save` begin: as an archive, or, before torch 1.6, as a pickle."""


@dataclass(frozen=True)
class Sizes:
    """What a file does not tell about its architecture.

    Attributes:
      num_heads: attention heads; None is one for each 64 channels of the width.
      image_size: side of the pictures in pixels; None is that of the checkpoint, or 224.
    """

    num_heads: int | None = None
    image_size: int | None = None


@dataclass(frozen=True)
class Built:
    """A model made of a raw checkpoint.

    Attributes:
      module: the model, in eval mode.
      shape: the architecture: `hidden_size`, `num_hidden_layers` and so on.
      processor: content of `preprocessor_config.json`.
      kind: what it is, for the title of its card: `ViT backbone`.
      pipeline_tag: task of the hub.
      head: the head in words: `no head`.
      images: in words, how pictures are prepared.
    """

    module: PreTrainedModel
    shape: Mapping[str, float]
    processor: Mapping[str, object]
    kind: str
    pipeline_tag: str
    head: str
    images: str


def read_raw(file: Path) -> Mapping[str, Any]:
    """Read a `.safetensors` file or one of `torch.save`; from a pickle only tensors are read.

    Raises:
      ModelError: if there is no file, or it cannot be read.
    """
    if not file.is_file():
        raise ModelError(f"convert: there is no file {file}")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        with file.open("rb") as stream:
            start = stream.read(8)
        if not start.startswith(_SAVED):
            raise ModelError(
                f"convert: {file} is neither a .safetensors file nor one of torch.save: it begins "
                f"with {start!r}; fetch it again, or unpack it"
            )
        found = torch.load(file, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"convert: {file} holds Python objects besides tensors, which could run code; save "
            "only its state dict, with a tool that you trust"
        ) from error
    except Exception as error:  # readers of broken files raise whatever they meet
        raise ModelError(f"convert: {file} cannot be read ({type(error).__name__})") from error
    if not isinstance(found, Mapping):
        raise ModelError(f"convert: {file} holds a {type(found).__name__}, not named tensors")
    return found


def keep_tensors(
    found: Mapping[str, Any],
    *,
    sections: Sequence[str],
    prefixes: Sequence[str],
    drop: str,
    where: str,
) -> tuple[Tensors, tuple[str, ...]]:
    """Return the model's tensors by their names without prefix, and the names dropped.

    Args:
      found: content of a file.
      sections: keys under which the tensors may be stored; the first existing one is used.
      prefixes: prefixes of the model's names; the first that occurs is stripped, and names without
        it are dropped. "" keeps all names.
      drop: regular expression of names, after stripping, that do not belong to the model.
      where: the file and scheme, for messages.

    Raises:
      ModelError: if no name begins with a prefix.
    """
    for section in sections:
        if isinstance(found.get(section), Mapping):
            found = found[section]
            break
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    prefix = next((p for p in prefixes if any(n.startswith(p) for n in tensors)), None)
    if prefix is None:
        raise ModelError(
            f"{where}: no tensor has a name that begins with {' or '.join(prefixes)}; the "
            f"first names are {', '.join(list(tensors)[:3]) or '(none)'}; choose another scheme"
        )
    kept = {
        name.removeprefix(prefix): value.float() if value.is_floating_point() else value
        for name, value in tensors.items()
        if name.startswith(prefix) and not re.search(drop, name.removeprefix(prefix))
    }
    dropped = tuple(name for name in tensors if name.removeprefix(prefix) not in kept)
    return kept, dropped


def fill(
    make: Callable[[], PreTrainedModel], tensors: Tensors, where: str, kind: str
) -> PreTrainedModel:
    """Return a model in eval mode that holds exactly the given tensors.

    Args:
      make: gives the untrained model.
      tensors: in-memory names -> tensors.
      where: the file and scheme, for messages.
      kind: what the model is, with its article: `a plain ViT`.

    Raises:
      ModelError: if a tensor is missing, unexpected or misshapen.
    """
    with torch.device("meta"), quiet():
        module = make()
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    problems = {
        "missing": [n for n in expected if n not in tensors],
        "unexpected": [n for n in tensors if n not in expected],
        "misshapen": [n for n in expected if n in tensors and tensors[n].shape != expected[n]],
    }
    if any(problems.values()):
        listed = "; ".join(f"{w}: {', '.join(names[:5])}" for w, names in problems.items() if names)
        raise ModelError(f"{where}: the backbone's tensors do not fit {kind}: {listed}")
    module.load_state_dict(tensors, assign=True)
    module.eval()
    return module
