"""Choose the letters of `characters.CLASSES`: nothing that a model was pretrained on, no two alike.

    python scripts/choose_characters.py        # prints them; takes some minutes

A letter of a script of `BED_SCRIPTS` is taken, in the order of code points, if every font of the
script in `BED_FONTS` has it and if its look is further than `_LEAST_DISTANCE` from every glyph that
a bundled model is trained or measured on, and from the letters taken before. For 28 x 28 pixels,
twice as many classes of each script are kept away as are trained on, so that there is room for a
larger model. A look is a blurred, evenly thick picture of a size-normalised glyph; distances are
cosine distances.
"""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from font_files import BED_FONTS, BED_SCRIPTS, FONTS, charmap, script_of
from glyphs import CHOICES, find_glyphs, is_wanted, looks, open_font, render_glyph

__all__ = ["candidates", "choose", "trained_looks"]

_LEAST_DISTANCE = 0.05
_PER_SCRIPT = 17


def main() -> None:
    """Print the letters as one string."""
    print(choose(trained_looks()))


def trained_looks() -> NDArray[np.float32]:
    """Return the looks that no letter may have: [G, F]; takes some minutes."""
    choices = (CHOICES[8], replace(CHOICES[28], most_per_script=20))
    return np.concatenate([_unit_looks(find_glyphs(choice=choice).ink_GHW) for choice in choices])


def choose(trained_GF: NDArray[np.float32]) -> str:
    """Choose letters whose look is far from these looks and from each other's."""
    taken_GF, chosen = trained_GF, ""
    for script in sorted(BED_SCRIPTS):
        letters = candidates(script)
        picked = ""
        for letter, look_F in zip(letters, _first_looks(script, letters), strict=True):
            if (taken_GF @ look_F).max() < 1 - _LEAST_DISTANCE and len(picked) < _PER_SCRIPT:
                taken_GF = np.concatenate([taken_GF, look_F[None]])
                picked += letter
        chosen += picked
    return chosen


def candidates(script: str) -> str:
    """Return the letters of a script that all its fonts in `BED_FONTS` have a glyph for."""
    shared = set.intersection(*(set(_letters(path, script)) for path in _fonts(script)))
    faces = [open_font(path) for path in _fonts(script)]
    return "".join(
        c for c in sorted(shared) if all(render_glyph(face, c) is not None for face in faces)
    )


def _unit_looks(ink_GHW: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the looks of bitmaps as vectors of length 1: [G, F]."""
    found_GF = looks(ink_GHW)
    return np.asarray(found_GF / np.linalg.norm(found_GF, axis=1, keepdims=True), np.float32)


def _fonts(script: str) -> list[Path]:
    paths = [FONTS / file for row in BED_FONTS for file in row.files]
    return [path for path in paths if len(_letters(path, script)) >= _PER_SCRIPT]


def _letters(path: Path, script: str) -> list[str]:
    return [
        char
        for char in charmap(path)
        if script_of(char) == script and unicodedata.category(char) == "Lo" and is_wanted(char)
    ]


def _first_looks(script: str, letters: str) -> NDArray[np.float32]:
    """Return the looks of letters in the first font of their script."""
    face = open_font(_fonts(script)[0])
    bitmaps = [bitmap for char in letters if (bitmap := render_glyph(face, char)) is not None]
    return _unit_looks(np.stack(bitmaps))


if __name__ == "__main__":
    main()
