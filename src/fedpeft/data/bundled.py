"""The bundled data sets, which need no network.

    digits       1,797 pictures, 8 x 8, of handwritten digits (UCI)
    digits-*     the same digits inverted, blurred, as strokes, permuted
    characters   102 letters of six scripts in clutter, 28 x 28 pixels; also characters-hard
    characters-* the same letters inverted, blurred, permuted
    glyphs       letters and signs of the fonts that come with matplotlib
    glyphs-28    letters and signs in a hand, 28 x 28, as vit-glyphs-28 was pretrained on
    glyphs-new   60 classes that were kept from that pretraining, drawn without clutter
    motion       clips of a figure that moves in one of eight ways
    docstrings   first paragraphs of the documentation of installed packages; see `docstrings.py`
    docstring-questions   what they do, asked and answered; see `docstring_questions.py`

All but those two and the renditions of `characters`, which `renditions.py` computes from that set,
are files in `sets/`; the README there names their sources, and `scripts/make_sets.py` makes them
again, byte by byte. Their splits do not depend on an experiment's
seed: of each class of the digits, 20 % are for testing, 10 % for validation, the rest for training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources

import numpy as np
import numpy.typing as npt

from fedpeft.data.docstring_questions import read_questions
from fedpeft.data.docstrings import read_docstrings
from fedpeft.data.renditions import Images, blur, invert, permute, render
from fedpeft.data.tables import Splits, Table


@dataclass(frozen=True)
class BundledDataset:
    """One row of `BUNDLED_DATASETS`.

    Attributes:
      task: name of the task that the data set is for.
      summary: one line for `fedpeft list datasets`.
      read: function that returns its tables.
      num_labels: number of classes; None where it is not known before reading.
    """

    task: str
    summary: str
    read: Callable[[], Splits]
    num_labels: int | None = None


def read_set(name: str) -> Splits:
    """Read a set of `sets/`: `image` uint8 [H, W] or `video` uint8 [T, H, W], and `label` int64."""
    file = resources.files(__package__ or "").joinpath("sets", f"{name}.npz")
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    names = {"label": tuple(arrays.pop("names").tolist())}
    full_scale = int(arrays.pop("full_scale"))
    splits: dict[str, dict[str, npt.NDArray[np.generic]]] = {}
    for key, array in arrays.items():
        split, column = key.split(".")
        values = array.astype(np.int64) if column == "label" else array
        splits.setdefault(split, {})[column] = values
    return Splits({s: Table(columns, names) for s, columns in splits.items()}, full_scale)


def read_rendition(name: str, change: Callable[[Images], Images]) -> Splits:
    """Read a set of `sets/` with every picture changed, as `fedpeft.data.renditions.render`."""
    return render(read_set(name), change)


@functools.lru_cache
def num_train(name: str) -> int | None:
    """Return the number of training examples of a fixed set; None for other data."""
    row = BUNDLED_DATASETS.get(name)
    return len(row.read().tables["train"]) if row and row.num_labels is not None else None


_SAME = "same rows and split"
_SETS = {
    "digits": (10, "1,797 handwritten digits of 8 x 8 pixels, 10 classes; fixed split"),
    "digits-inverted": (10, f"the digits, dark ink on a light page; {_SAME}"),
    "digits-blurred": (10, f"the digits, blurred; {_SAME}"),
    "digits-strokes": (10, f"the digits, their skeletons, drawn with one pen; {_SAME}"),
    "digits-permuted": (
        10,
        f"the digits, their 64 pixels permuted, alike in every picture; {_SAME}",
    ),
    "characters": (102, "letters of six scripts in clutter, 28 x 28 pixels, for vit-glyphs-28"),
    "characters-hard": (102, "the same letters, more distorted and more cluttered"),
    "glyphs": (757, "757 letters and signs of 8 x 8 pixels; test split: fonts held out"),
    "glyphs-28": (
        1382,
        "letters and signs of 28 x 28 pixels as vit-glyphs-28 was pretrained on; test split: "
        "fonts held out",
    ),
    "glyphs-new": (60, "60 such letters and signs that the pretraining left out; 28 x 28 pixels"),
    "motion": (8, "clips of 8 frames of 16 x 16; class = one of 8 motions; made here"),
}
"""Each file of `sets/` with its number of classes and its summary."""

_RENDITIONS: Mapping[str, tuple[Callable[[Images], Images], str]] = {
    "inverted": (invert, "dark ink on a light page"),
    "blurred": (blur, "blurred"),
    "permuted": (permute, "their 784 pixels permuted, alike in every picture"),
}
"""By the word after `characters-`: how the pictures are changed, in code and in words."""

BUNDLED_DATASETS: Mapping[str, BundledDataset] = {
    **{
        name: BundledDataset(
            "video-classification" if name == "motion" else "image-classification",
            summary,
            functools.partial(read_set, name),
            num_labels,
        )
        for name, (num_labels, summary) in _SETS.items()
    },
    **{
        f"characters-{word}": BundledDataset(
            "image-classification",
            f"the letters of characters, {words}; {_SAME}",
            functools.partial(read_rendition, "characters", change),
            _SETS["characters"][0],
        )
        for word, (change, words) in _RENDITIONS.items()
    },
    "docstrings": BundledDataset(
        "text-classification",
        "documentation of installed packages; class = package, natural client = module",
        read_docstrings,
    ),
    "docstring-questions": BundledDataset(
        "causal-lm",
        "questions about installed packages, answered by their documentation; client = package",
        read_questions,
    ),
}
"""The bundled data sets, by the name that `data.source` takes."""
