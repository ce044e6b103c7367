"""Conversion of raw checkpoints of self-supervised ViTs into model folders.

    mae       {"model": ...}                        decoder and mask token dropped
    moco-v3   {"state_dict": module.base_encoder.*} momentum encoder, predictor, projector dropped
    dino      plain names, or {"teacher": module.backbone.*}       projector dropped

    blocks.3.attn.qkv.weight [3D, D]  ->  layers.3.attention.{q,k,v}_proj.weight [D, D] each

A tensor of the backbone that is missing, unexpected or of another shape is an error. A loader that
ignores missing keys would silently load nothing at all from a raw MoCo file.

References: He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022. Chen, Xie, He,
An Empirical Study of Training Self-Supervised Vision Transformers, ICCV 2021. Caron et al.,
Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from fedpeft.core.errors import ModelError
from fedpeft.core.storage import about
from fedpeft.models.quiet import quiet

if TYPE_CHECKING:
    from transformers import ViTModel


Tensors: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class Scheme:
    """The layout of one kind of checkpoint.

    Attributes:
      about: one line, for the model card.
      sections: keys under which the tensors may be stored; the first existing one is used.
      prefixes: prefixes of the backbone's names; the first that occurs is stripped, and names
        without it are dropped. "" keeps all names.
      drop: regular expression of names, after stripping, that do not belong to the backbone.
    """

    about: str
    sections: tuple[str, ...]
    prefixes: tuple[str, ...]
    drop: str


SCHEMES: Mapping[str, Scheme] = {
    "dino": Scheme(
        "DINO, the teacher where the file holds both",
        ("teacher", "student", "state_dict", "model"),
        ("module.backbone.", "backbone.", "module.", ""),
        r"^head\.",
    ),
    "mae": Scheme(
        "masked autoencoder (MAE), the encoder",
        ("model", "state_dict"),
        ("module.", ""),
        r"^(?:decoder_\w+|mask_token|head\.)",
    ),
    "moco-v3": Scheme(
        "MoCo v3, the base encoder",
        ("state_dict", "model"),
        ("module.base_encoder.", "base_encoder."),
        r"^head\.",
    ),
}
"""Value of `fedpeft convert --as` -> layout of the checkpoint."""


@dataclass(frozen=True)
class ConvertReport:
    """The result of a conversion.

    Attributes:
      folder: the model folder.
      scheme: name of the layout.
      sha256: checksum of the raw file.
      num_tensors: number of tensors of the saved backbone.
      num_params: number of parameters of the saved backbone.
      dropped: names in the file that do not belong to the backbone.
      shape: the architecture: `hidden_size`, `num_hidden_layers` and so on.
    """

    folder: Path
    scheme: str
    sha256: str
    num_tensors: int
    num_params: int
    dropped: tuple[str, ...]
    shape: Mapping[str, int]


def convert_checkpoint(
    file: Path, *, scheme: str, to: Path, num_heads: int | None = None
) -> ConvertReport:
    """Turn a raw checkpoint of a ViT into a folder that `load_model` and `transformers` load.

    Args:
      file: a `.safetensors` file or one of `torch.save`; from a pickle only tensors are read.
      scheme: `mae`, `moco-v3` or `dino`.
      to: the folder to write; it must be empty or not exist.
      num_heads: attention heads; None is one for each 64 channels of the width.

    Raises:
      ModelError: if the scheme is unknown, the folder not empty, the file unreadable, or a tensor
        of the backbone is missing, unexpected or misshapen.
    """
    if scheme not in SCHEMES:
        raise ModelError(
            f"convert: scheme {scheme!r} is unknown; choose one of {', '.join(SCHEMES)}"
        )
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ModelError(f"convert: {to} exists and is not empty; choose another folder")
    raw, dropped = _backbone(_read(file), SCHEMES[scheme], f"convert {file} as {scheme}")
    shape = _shape(raw, num_heads, f"convert {file} as {scheme}")
    module = _filled(_renamed(raw), shape, f"convert {file} as {scheme}")
    report = ConvertReport(
        folder=to,
        scheme=scheme,
        sha256=_sha256(file),
        num_tensors=len(module.state_dict()),
        num_params=sum(p.numel() for p in module.parameters()),
        dropped=dropped,
        shape=shape,
    )
    with about(to):
        _save(module, report, file)
    return report


def _read(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise ModelError(f"convert: there is no file {file}")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        found = torch.load(file, map_location="cpu", weights_only=True)
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


def _backbone(
    found: Mapping[str, Any], scheme: Scheme, where: str
) -> tuple[Tensors, tuple[str, ...]]:
    """Return the backbone's tensors by their names without prefix, and the names dropped."""
    for section in scheme.sections:
        if isinstance(found.get(section), Mapping):
            found = found[section]
            break
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    prefix = next((p for p in scheme.prefixes if any(n.startswith(p) for n in tensors)), None)
    if prefix is None:
        raise ModelError(
            f"{where}: no tensor has a name that begins with {' or '.join(scheme.prefixes)}; the "
            f"first names are {', '.join(list(tensors)[:3]) or '(none)'}; choose another scheme"
        )
    kept = {
        name.removeprefix(prefix): value.float()
        for name, value in tensors.items()
        if name.startswith(prefix) and not re.search(scheme.drop, name.removeprefix(prefix))
    }
    dropped = tuple(name for name in tensors if name.removeprefix(prefix) not in kept)
    return kept, dropped


def _shape(raw: Tensors, num_heads: int | None, where: str) -> dict[str, int]:
    """Infer the architecture from the shapes of three tensors and the number of blocks."""
    try:
        width, channels, patch, _ = raw["patch_embed.proj.weight"].shape
        mlp = raw["blocks.0.mlp.fc1.weight"].shape[0]
        positions = raw["pos_embed"].shape[1] - 1
    except (KeyError, ValueError, IndexError) as error:
        raise ModelError(
            f"{where}: not a ViT: {error} is missing or misshapen; "
            f"the first names are {', '.join(list(raw)[:3]) or '(none)'}"
        ) from error
    side = math.isqrt(positions)
    heads = num_heads if num_heads is not None else max(1, width // 64)
    if side * side != positions or width % heads:
        raise ModelError(
            f"{where}: {positions} patches do not form a square, or {heads} heads do not divide "
            f"the width {width}; give the number of heads"
        )
    blocks = {int(found.group(1)) for name in raw if (found := re.match(r"blocks\.(\d+)\.", name))}
    return {
        "hidden_size": width,
        "num_hidden_layers": 1 + max(blocks),
        "num_attention_heads": heads,
        "intermediate_size": mlp,
        "image_size": side * patch,
        "patch_size": patch,
        "num_channels": channels,
    }


def _renamed(raw: Tensors) -> dict[str, Tensor]:
    """Rename the tensors as in `ViTModel`, and split the fused query, key and value."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in raw.items():
        for pattern, replacement in _RULES:
            name = re.sub(pattern, replacement, name)
        if ".qkv." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace(".qkv.", f".{letter}_proj.")] = part.contiguous()
        else:
            renamed[name] = tensor
    return renamed


def _filled(tensors: Tensors, shape: Mapping[str, int], where: str) -> ViTModel:
    from transformers import ViTConfig, ViTModel

    with torch.device("meta"), quiet():
        module = ViTModel(ViTConfig(**shape, layer_norm_eps=1e-6), add_pooling_layer=False)
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    problems = {
        "missing": [n for n in expected if n not in tensors],
        "unexpected": [n for n in tensors if n not in expected],
        "misshapen": [n for n in expected if n in tensors and tensors[n].shape != expected[n]],
    }
    if any(problems.values()):
        listed = "; ".join(f"{w}: {', '.join(names[:5])}" for w, names in problems.items() if names)
        raise ModelError(f"{where}: the backbone's tensors do not fit a plain ViT: {listed}")
    module.load_state_dict(tensors, assign=True)
    module.eval()
    return module


def _save(module: ViTModel, report: ConvertReport, file: Path) -> None:
    with quiet():
        module.save_pretrained(report.folder)
    processor = json.dumps(_processor(report.shape), indent=2)
    (report.folder / "preprocessor_config.json").write_text(processor + "\n")
    (report.folder / "README.md").write_text(_card(report, file))


def _processor(shape: Mapping[str, int]) -> dict[str, object]:
    """Return the settings of `ViTImageProcessor`; all schemes use the statistics of ImageNet."""
    channels = shape["num_channels"]
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": shape["image_size"], "width": shape["image_size"]},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(_MEAN) if channels == 3 else [0.5] * channels,
        "image_std": list(_STD) if channels == 3 else [0.5] * channels,
    }


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _card(report: ConvertReport, file: Path) -> str:
    shape = ", ".join(f"{name} {value}" for name, value in report.shape.items())
    return (
        "---\nlibrary_name: transformers\npipeline_tag: image-feature-extraction\n---\n\n"
        f"# ViT backbone from {file.name}\n\n"
        f"Converted by fedpeft from a raw checkpoint: {SCHEMES[report.scheme].about}.\n\n"
        f"- raw file: `{file.name}`, SHA-256 `{report.sha256}`\n"
        f"- architecture: {shape}\n"
        f"- {report.num_tensors} tensors, {report.num_params:,} parameters, float32, no head\n"
        f"- left out of the file: {len(report.dropped)} tensors\n"
        "- images: bicubic resize; mean and deviation of ImageNet for three channels\n\n"
        "The licence is that of the raw checkpoint. Values are unchanged; names follow "
        "`transformers`.\n"
    )


_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_RULES = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.(\d+)\.norm1\.", r"layers.\1.layernorm_before."),
    (r"^blocks\.(\d+)\.norm2\.", r"layers.\1.layernorm_after."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"layers.\1.attention.o_proj."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"layers.\1.attention.qkv."),
    (r"^blocks\.(\d+)\.mlp\.", r"layers.\1.mlp."),
)
