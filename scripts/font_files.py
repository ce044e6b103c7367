"""Which font files are drawn from, and which characters of each.

    matplotlib_fonts   the fonts that matplotlib ships: `glyphs`, and the models for 8 x 8 pixels
    noto_fonts         those, and Noto's fonts of other scripts: the model for 28 x 28 pixels

Fonts beyond matplotlib's come from Debian packages, which `apt-get install` puts below
`/usr/share/fonts`; no font file is part of this project. `BED_SCRIPTS` are kept for the data sets
`characters` and `characters-hard`: no model is pretrained on a character of them.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "BED_FONTS",
    "BED_SCRIPTS",
    "FONTS",
    "FontPackage",
    "charmap",
    "matplotlib_fonts",
    "missing_packages",
    "noto_fonts",
    "script_of",
]

FONTS = Path("/usr/share/fonts/truetype")
"""Where Debian puts fonts."""
BED_SCRIPTS = frozenset(["DEVANAGARI", "KANNADA", "MALAYALAM", "TAMIL", "TELUGU", "THAI"])
"""First words of the Unicode names of the characters of the test beds."""


@dataclass(frozen=True)
class FontPackage:
    """Fonts of one Debian package.

    Attributes:
      package: its name.
      version: the version that the bundled data sets were drawn with.
      licence: of the fonts.
      files: paths below `FONTS`.
    """

    package: str
    version: str
    licence: str
    files: Sequence[str]


def _noto(*families: str) -> list[str]:
    return [
        f"noto/Noto{family}-{style}.ttf" for family in families for style in ("Regular", "Bold")
    ]


_OFL = "OFL-1.1"
BED_FONTS: Sequence[FontPackage] = [
    FontPackage(
        "fonts-noto-core",
        "20201225-1",
        _OFL,
        [
            *_noto("SansDevanagari", "SerifDevanagari", "SansKannada", "SerifKannada"),
            *_noto(
                "SansMalayalam", "SerifMalayalam", "SansTamil", "SerifTamil", "SerifTamilSlanted"
            ),
            *_noto("SansTelugu", "SerifTelugu", "SansThai", "SerifThai", "LoopedThai"),
        ],
    ),
    FontPackage("fonts-lohit-deva", "2.95.4-5", _OFL, ["lohit-devanagari/Lohit-Devanagari.ttf"]),
    FontPackage("fonts-lohit-knda", "2.5.4-3", _OFL, ["lohit-kannada/Lohit-Kannada.ttf"]),
    FontPackage("fonts-lohit-mlym", "2.92.2-2", _OFL, ["lohit-malayalam/Lohit-Malayalam.ttf"]),
    FontPackage("fonts-lohit-taml", "2.91.3-2", _OFL, ["lohit-tamil/Lohit-Tamil.ttf"]),
    FontPackage("fonts-lohit-telu", "2.5.5-2", _OFL, ["lohit-telugu/Lohit-Telugu.ttf"]),
    FontPackage("fonts-navilu", "1.2-4", _OFL, ["Navilu/Navilu.ttf"]),
    FontPackage("fonts-sil-annapurna", "1.204-2", _OFL, ["annapurna/AnnapurnaSIL-Regular.ttf"]),
    FontPackage("fonts-smc-karumbi", "1.1.2-2", _OFL, ["malayalam/Karumbi-Regular.ttf"]),
    FontPackage("fonts-smc-meera", "7.0.3-1", _OFL, ["malayalam/Meera-Regular.ttf"]),
    FontPackage("fonts-smc-rachana", "7.0.2-1", _OFL, ["malayalam/Rachana-Regular.ttf"]),
    FontPackage("fonts-smc-uroob", "2.0.2-1", _OFL, ["malayalam/Uroob-Regular.ttf"]),
]
"""The fonts of the data sets `characters` and `characters-hard`."""
_TEX_FONTS = ["cmr10", "cmb10", "cmmi10", "cmss10", "cmti10", "cmtt10"]
_STYLES = ("-Regular", "-Bold")
_NO_SCRIPT = (
    "NotoSans-",
    "NotoSerif-",
    "Display",
    "Math",
    "Music",
    "Symbols",
    "SignWriting",
    "UI-",
)


def script_of(char: str) -> str:
    """Return the first word of a character's Unicode name: for letters, their script."""
    return unicodedata.name(char, "").split(" ")[0]


def missing_packages() -> list[str]:
    """Return the Debian packages of `BED_FONTS` that are not installed."""
    return [row.package for row in BED_FONTS if not all((FONTS / f).exists() for f in row.files)]


def charmap(path: Path) -> list[str]:
    """List the characters that a font has a glyph for, by code point."""
    from matplotlib.ft2font import FT2Font

    return [chr(code) for code in sorted(FT2Font(str(path)).get_charmap()) if code < 0x110000]


def matplotlib_fonts() -> Iterator[tuple[Path, Sequence[str]]]:
    """Yield each font file with its characters; TeX encodings fit ASCII letters only."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for path in sorted([*folder.glob("DejaVu*.ttf"), *folder.glob("STIXGeneral*.ttf")]):
        if "Display" not in path.stem:
            yield path, charmap(path)
    for stem in _TEX_FONTS:
        yield folder / f"{stem}.ttf", string.ascii_letters


def noto_fonts() -> Iterator[tuple[Path, Sequence[str]]]:
    """Yield matplotlib's fonts, then the regular and bold ones of `fonts-noto-core` by script.

    Characters of `BED_SCRIPTS` are left out, of all fonts.

    Raises:
      SystemExit: if the Debian package is not installed.
    """
    folder = FONTS / "noto"
    paths = [
        path
        for path in sorted(folder.glob("Noto*.ttf"))
        if path.stem.endswith(_STYLES) and not any(word in path.stem for word in _NO_SCRIPT)
    ]
    if not paths:
        raise SystemExit(f"{folder}: no fonts; run: apt-get install fonts-noto-core")
    for path, chars in [*matplotlib_fonts(), *((path, charmap(path)) for path in paths)]:
        yield path, [char for char in chars if script_of(char) not in BED_SCRIPTS]
