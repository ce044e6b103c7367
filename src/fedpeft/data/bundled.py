"""Bundled data sets: they need no file and no network.

    digits       1,797 pictures, 8 x 8, of handwritten digits (UCI, as scikit-learn ships them)
    digits-*     the same digits inverted, blurred, as strokes, permuted; see `renditions.py`
    glyphs       letters and signs of the fonts that matplotlib ships; see `glyphs.py`
    motion       clips of a figure that moves in one of eight ways; see `motion.py`
    docstrings   first paragraphs of the documentation of installed packages; see `docstrings.py`

The digits' split stands in `digits_split.json`: stratified, 20 % test, 10 % validation, the rest
training. It does not depend on an experiment's seed.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedpeft.data.docstrings import read_docstrings
from fedpeft.data.glyphs import NUM_GLYPH_LABELS, read_glyphs
from fedpeft.data.motion import MOTIONS, read_motion
from fedpeft.data.renditions import RENDITIONS, render
from fedpeft.data.tables import Splits, Table

__all__ = ["BUNDLED_DATASETS", "BundledDataset", "draw_digits_split", "read_digits"]


@dataclass(frozen=True)
class BundledDataset:
    """One row of `BUNDLED_DATASETS`.

    Attributes:
      task: that it is for.
      summary: one line for `fedpeft list datasets`.
      read: gives its tables.
      num_labels: classes, where they are known without reading it.
    """

    task: str
    summary: str
    read: Callable[[], Splits]
    num_labels: int | None = None


def read_digits() -> Splits:
    """Read the digits: `image` uint8 [8, 8] of 0 to 16, and `label`."""
    rows = _digit_rows()
    images, labels = rows[:, :64].reshape(-1, 8, 8).astype(np.uint8), rows[:, 64]
    text = resources.files(__package__ or "").joinpath("digits_split.json").read_text("utf-8")
    names = {"label": tuple(str(digit) for digit in range(10))}
    tables = {
        split: Table({"image": images[rows], "label": labels[rows].astype(np.int64)}, names)
        for split, rows in json.loads(text).items()
    }
    return Splits(tables, full_scale=16)


def _digit_rows() -> npt.NDArray[np.int64]:
    """Read 64 pixels and the label of each digit [1797, 65] from the file in scikit-learn.

    Importing scikit-learn for it would double the time that a run takes to start.
    """
    place = importlib.util.find_spec("sklearn")
    for folder in (place.submodule_search_locations or []) if place else []:
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.exists():
            return np.loadtxt(file, delimiter=",", dtype=np.int64)
    from sklearn.datasets import load_digits

    pictures, labels = load_digits(return_X_y=True)
    return np.column_stack([pictures, labels]).astype(np.int64)


def draw_digits_split(labels: npt.NDArray[np.int64]) -> dict[str, list[int]]:
    """Draw the split that is stored: of each class 20 % test, 10 % validation, the rest training.

    Args:
      labels: of all digits, int64 [1797].

    Returns:
      `train`, `validation` and `test`: sorted rows.
    """
    rng = np.random.RandomState(0)
    rows: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for label in np.unique(labels):
        order = rng.permutation(np.flatnonzero(labels == label)).tolist()
        test, held = round(0.2 * len(order)), round(0.3 * len(order))
        rows["test"] += order[:test]
        rows["validation"] += order[test:held]
        rows["train"] += order[held:]
    return {split: sorted(members) for split, members in rows.items()}


def _read_rendition(word: str) -> Splits:
    return render(read_digits(), RENDITIONS[word])


_RENDITION_SUMMARIES = {
    "inverted": "dark ink on a light page",
    "blurred": "blurred",
    "strokes": "their skeletons, drawn with one pen",
    "permuted": "their 64 pixels permuted, alike in every picture",
}

BUNDLED_DATASETS: Mapping[str, BundledDataset] = {
    "digits": BundledDataset(
        "image-classification",
        "1,797 handwritten digits of 8 x 8 pixels, 10 classes; fixed split",
        read_digits,
        num_labels=10,
    ),
    **{
        f"digits-{word}": BundledDataset(
            "image-classification",
            f"the digits, {summary}; same rows and split",
            functools.partial(_read_rendition, word),
            num_labels=10,
        )
        for word, summary in _RENDITION_SUMMARIES.items()
    },
    "glyphs": BundledDataset(
        "image-classification",
        f"{NUM_GLYPH_LABELS} letters and signs of 8 x 8 pixels; test split: fonts held out",
        read_glyphs,
        num_labels=NUM_GLYPH_LABELS,
    ),
    "motion": BundledDataset(
        "video-classification",
        f"clips of 8 frames of 16 x 16; class = one of {len(MOTIONS)} motions; made here",
        read_motion,
        num_labels=len(MOTIONS),
    ),
    "docstrings": BundledDataset(
        "text-classification",
        "documentation of installed packages; class = package, natural client = module",
        read_docstrings,
    ),
}
"""By the name that `data.source` takes."""
