"""Conversion of raw checkpoints into model folders.

    mae           {"model": ...}                        without decoder and mask token
    moco-v3       {"state_dict": module.base_encoder.*} without momentum encoder and projectors
    dino          plain names, or {"teacher": module.backbone.*}  without projector
    mobilenet-v2  torchvision's names                   whole

A tensor of the model that is missing, unexpected or of another shape is an error. A loader that
ignores missing keys would silently load nothing at all from a raw MoCo file.

References: He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022. Chen, Xie, He,
An Empirical Study of Training Self-Supervised Vision Transformers, ICCV 2021. Caron et al.,
Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021. Sandler et al., MobileNetV2:
Inverted Residuals and Linear Bottlenecks, CVPR 2018.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedpeft.core.errors import ModelError
from fedpeft.core.storage import about
from fedpeft.models.convert_mobilenet import build_mobilenet_v2
from fedpeft.models.convert_vit import build_vit
from fedpeft.models.quiet import quiet
from fedpeft.models.raw_checkpoints import Built, Sizes, Tensors, keep_tensors, read_raw


@dataclass(frozen=True)
class Scheme:
    """The layout of one kind of checkpoint.

    Attributes:
      about: one line, for the model card.
      sections: keys under which the tensors may be stored; the first existing one is used.
      prefixes: prefixes of the model's names; the first that occurs is stripped, and names without
        it are dropped. "" keeps all names.
      drop: regular expression of names, after stripping, that do not belong to the model.
      build: makes the model of its tensors.
    """

    about: str
    sections: tuple[str, ...]
    prefixes: tuple[str, ...]
    drop: str
    build: Callable[[Tensors, Sizes, str], Built] = build_vit


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
    "mobilenet-v2": Scheme(
        "torchvision's MobileNetV2, with its classifier",
        ("model", "state_dict"),
        ("module.", ""),
        r"(?!)",
        build_mobilenet_v2,
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
      num_tensors: number of tensors of the saved model.
      num_params: number of parameters of the saved model.
      dropped: names in the file that do not belong to the model.
      shape: the architecture: `hidden_size`, `num_hidden_layers` and so on.
    """

    folder: Path
    scheme: str
    sha256: str
    num_tensors: int
    num_params: int
    dropped: tuple[str, ...]
    shape: Mapping[str, float]


def convert_checkpoint(
    file: Path,
    *,
    scheme: str,
    to: Path,
    num_heads: int | None = None,
    image_size: int | None = None,
) -> ConvertReport:
    """Turn a raw checkpoint into a folder that `load_model` and `transformers` load.

    Args:
      file: a `.safetensors` file or one of `torch.save`; from a pickle only tensors are read.
      scheme: a name of `SCHEMES`.
      to: the folder to write; it must be empty or not exist.
      num_heads: attention heads of a ViT; None is one for each 64 channels of the width.
      image_size: side of the pictures in pixels, for a convolutional network; None is 224.

    Raises:
      ModelError: if the scheme is unknown, the folder not empty, the file unreadable, or a tensor
        of the model is missing, unexpected or misshapen.
    """
    if scheme not in SCHEMES:
        raise ModelError(
            f"convert: scheme {scheme!r} is unknown; choose one of {', '.join(SCHEMES)}"
        )
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ModelError(f"convert: {to} exists and is not empty; choose another folder")
    layout, where = SCHEMES[scheme], f"convert {file} as {scheme}"
    raw, dropped = keep_tensors(
        read_raw(file),
        sections=layout.sections,
        prefixes=layout.prefixes,
        drop=layout.drop,
        where=where,
    )
    built = layout.build(raw, Sizes(num_heads, image_size), where)
    report = ConvertReport(
        folder=to,
        scheme=scheme,
        sha256=_sha256(file),
        num_tensors=len(built.module.state_dict()),
        num_params=sum(p.numel() for p in built.module.parameters()),
        dropped=dropped,
        shape=built.shape,
    )
    with about(to):
        _save(built, report, file)
    return report


def _save(built: Built, report: ConvertReport, file: Path) -> None:
    with quiet():
        built.module.save_pretrained(report.folder)
    processor = json.dumps(built.processor, indent=2)
    (report.folder / "preprocessor_config.json").write_text(processor + "\n")
    (report.folder / "README.md").write_text(_card(built, report, file))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _card(built: Built, report: ConvertReport, file: Path) -> str:
    shape = ", ".join(f"{name} {value:g}" for name, value in report.shape.items())
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: {built.pipeline_tag}\n---\n\n"
        f"# {built.kind} from {file.name}\n\n"
        f"Converted by fedpeft from a raw checkpoint: {SCHEMES[report.scheme].about}.\n\n"
        f"- raw file: `{file.name}`, SHA-256 `{report.sha256}`\n"
        f"- architecture: {shape}\n"
        f"- {report.num_tensors} tensors, {report.num_params:,} parameters, float32, {built.head}\n"
        f"- left out of the file: {len(report.dropped)} tensors\n"
        f"- images: {built.images}\n\n"
        "The licence is that of the raw checkpoint. Values are unchanged; names follow "
        "`transformers`.\n"
    )
