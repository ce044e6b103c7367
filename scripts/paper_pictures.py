"""The paper's data sets: what the hub's copies look like, and small drawn ones of the same format.

    FOLDER/data/train-00000-of-00001.parquet     columns, classes and picture sizes as on the hub
    FOLDER/data/test-00000-of-00001.parquet

A drawn picture is its class's pattern of 8 x 8 colours under noise: something can be learned from
it, and nothing about the paper's data.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["DRAWN", "PAPER_SETS", "PaperSet", "draw_pictures"]


@dataclass(frozen=True)
class PaperSet:
    """A data set of the paper.

    Attributes:
      picture: name of the column of pictures.
      label: name of the column of classes.
      side: height and width of a picture, in pixels.
      classes: number of classes.
      sizes: split -> number of pictures.
      boolean: whether a class is stored as true or false.
      more: a further column that is not used, as the hub has it.
    """

    picture: str
    label: str
    side: int
    classes: int
    sizes: Mapping[str, int]
    boolean: bool = False
    more: str | None = None


PAPER_SETS: Mapping[str, PaperSet] = {
    "uoft-cs/cifar100": PaperSet(
        "img", "fine_label", 32, 100, {"train": 50_000, "test": 10_000}, more="coarse_label"
    ),
    "timm/resisc45": PaperSet(
        "image", "label", 256, 45, {"train": 18_900, "validation": 6_300, "test": 6_300},
        more="image_id",
    ),
    "1aurent/PatchCamelyon": PaperSet(
        "image", "label", 96, 2, {"train": 262_144, "valid": 32_768, "test": 32_768}, boolean=True
    ),
}  # fmt: skip
"""Name on the hub -> the data set."""
DRAWN = 2_000
"""Pictures of a drawn set, in all splits together; four fifths of them are for training."""


def draw_pictures(folder: Path, kind: PaperSet, number: int = DRAWN) -> PaperSet:
    """Write a drawn data set into a folder, unless it is there, and return its description.

    Args:
      folder: is made.
      kind: columns, classes and sides.
      number: of pictures, in all splits together.
    """
    others = len(kind.sizes) - 1
    sizes = {
        split: number * 4 // 5 if split == "train" else number // 5 // others
        for split in kind.sizes
    }
    patterns_C88c = np.random.default_rng(0).integers(0, 256, (kind.classes, 8, 8, 3))
    for seed, (split, size) in enumerate(sizes.items(), start=1):
        file = folder / "data" / f"{split}-00000-of-00001.parquet"
        if not file.exists():
            _write(file, kind, patterns_C88c, np.random.default_rng(seed), size)
    return replace(kind, sizes=sizes)


def _write(
    file: Path,
    kind: PaperSet,
    patterns_C88c: npt.NDArray[np.int64],
    draws: np.random.Generator,
    size: int,
) -> None:
    import datasets

    datasets.disable_progress_bars()
    labels_N = draws.permutation(np.arange(size) % kind.classes)
    names = [str(number) for number in range(kind.classes)]
    classes = datasets.Value("bool") if kind.boolean else datasets.ClassLabel(names=names)
    columns: dict[str, object] = {kind.picture: datasets.Image(), kind.label: classes}
    pictures = [_encoded(patterns_C88c[label], kind.side, draws) for label in labels_N]
    rows: dict[str, object] = {kind.picture: pictures, kind.label: labels_N.tolist()}
    if kind.more == "coarse_label":
        columns[kind.more], rows[kind.more] = datasets.Value("int64"), (labels_N // 5).tolist()
    elif kind.more is not None:
        columns[kind.more], rows[kind.more] = datasets.Value("string"), [str(n) for n in labels_N]
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    features = datasets.Features(columns)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(partial)
    partial.replace(file)


def _encoded(
    pattern_88c: npt.NDArray[np.int64], side: int, draws: np.random.Generator
) -> dict[str, object]:
    noisy = np.clip(pattern_88c + draws.normal(0, 40, pattern_88c.shape), 0, 255).astype(np.uint8)
    picture, stream = Image.fromarray(noisy).resize((side, side)), io.BytesIO()
    picture.save(stream, format="PNG" if side <= 32 else "JPEG")
    return {"bytes": stream.getvalue(), "path": None}
