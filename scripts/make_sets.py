"""Make the bundled data sets again: the files of `src/fedpeft/data/sets`, byte by byte.

    python scripts/make_sets.py               # all of them, some minutes
    python scripts/make_sets.py digits        # one

A file holds `SPLIT.image` (or `SPLIT.video`) and `SPLIT.label` for each split, `names` of the
classes, and `full_scale`, the pixel value of white. Nothing in it is pickled.
"""

from __future__ import annotations

import argparse
import functools
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from characters import SETTINGS, read_characters
from fedpeft.data.renditions import render
from fedpeft.data.tables import Splits, Table
from glyphs import read_glyphs
from motion import read_motion
from pretraining_pictures import read_new_glyphs, read_pretraining_pictures
from renditions import RENDITIONS

__all__ = ["SETS", "draw_digits_split", "packed", "read_digits"]

FOLDER = Path(__file__).resolve().parent.parent / "src" / "fedpeft" / "data" / "sets"


def read_digits() -> Splits:
    """Read the digits from scikit-learn: `image` uint8 [8, 8] of 0 to 16, and `label`."""
    from sklearn.datasets import load_digits

    pictures, labels = load_digits(return_X_y=True)
    images = pictures.reshape(-1, 8, 8).astype(np.uint8)
    names = {"label": tuple(str(digit) for digit in range(10))}
    tables = {
        split: Table({"image": images[rows], "label": labels[rows].astype(np.int64)}, names)
        for split, rows in draw_digits_split(labels).items()
    }
    return Splits(tables, full_scale=16)


def draw_digits_split(labels: npt.NDArray[np.int64]) -> dict[str, list[int]]:
    """Draw the digits' split: of each class 20 % test, 10 % validation, the rest training.

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


def packed(splits: Splits) -> bytes:
    """Return the bytes of a set's file."""
    first = next(iter(splits.tables.values()))
    arrays = {"full_scale": np.uint8(splits.full_scale), "names": np.array(first.names["label"])}
    for split, table in splits.tables.items():
        for column, values in table.columns.items():
            kind = np.uint16 if column == "label" else np.uint8
            arrays[f"{split}.{column}"] = np.asarray(values).astype(kind)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def _rendition(word: str) -> Splits:
    return render(read_digits(), RENDITIONS[word])


SETS: Mapping[str, Callable[[], Splits]] = {
    "digits": read_digits,
    **{f"digits-{word}": functools.partial(_rendition, word) for word in RENDITIONS},
    **{name: functools.partial(read_characters, name) for name in SETTINGS},
    "glyphs": read_glyphs,
    "glyphs-28": read_pretraining_pictures,
    "glyphs-new": read_new_glyphs,
    "motion": read_motion,
}
"""By the name that `data.source` takes."""


def main() -> None:
    """Write the sets that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*SETS, []], help="which; all if none is named")
    for name in parser.parse_args().names or SETS:
        content = packed(SETS[name]())
        (FOLDER / f"{name}.npz").write_bytes(content)
        print(f"{name}.npz  {len(content):,} bytes")


if __name__ == "__main__":
    main()
