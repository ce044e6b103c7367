"""The style of all figures: one palette, one font size, SVG for light and for dark pages.

    with new_figure(6.4, 3.7) as figure:      the style applies inside the block
        axes = figure.add_subplot()
        ...
        return picture_of(figure, title=..., text=...)

Colours are those of Okabe and Ito, some darkened for thin lines on white; they can be told apart
with the common colour-vision deficiencies, and groups also differ in line style. A method has the
same colour in every figure. An inlined picture uses the page's own colours (CSS variables), so that
it is readable on a light page, on a dark one and on paper; a picture in a file has fixed colours.

Reference: Okabe, Ito, Color Universal Design, 2008.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fedpeft.core.errors import ConfigError
from fedpeft.core.storage import about

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_PALETTE = {
    "ink": ("#1c1f23", "#e8eaed"),
    "soft": ("#5c6570", "#a4adb8"),
    "grid": ("#d9dde2", "#363c44"),
    "page": ("#ffffff", "#15181c"),
    "wash": ("#f3f5f7", "#1e2329"),
    "s0": ("#0072b2", "#4aa8e8"),
    "s1": ("#c75300", "#ff8a3d"),
    "s2": ("#00875f", "#2fc49a"),
    "s3": ("#b0528a", "#e79cc4"),
    "s4": ("#b37700", "#f0b429"),
    "s5": ("#2e8ec9", "#9ad7f7"),
    "s6": ("#6b7280", "#9aa3af"),
}
"""Name of a CSS variable -> its colours on a white and on a dark page."""

LIGHT: Mapping[str, str] = {name: light for name, (light, _) in _PALETTE.items()}
"""Colours on a white page, by the name of their CSS variable."""

DARK: Mapping[str, str] = {name: dark for name, (_, dark) in _PALETTE.items()}
"""Colours on a dark page, by the name of their CSS variable."""

_FILED = 4.0  # inches; narrower pictures are shown in pages only
_SLOTS = {"bias": 0, "full": 1, "adapter": 2, "lora": 3, "prompt": 4, "head": 5, "scratch": 6}
_DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
_STYLE: Mapping[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": LIGHT["ink"],
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "grid.color": LIGHT["grid"],
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "fedpeft",
    **dict.fromkeys(("axes.labelcolor", "axes.edgecolor"), LIGHT["soft"]),
    **dict.fromkeys(("xtick.color", "ytick.color"), LIGHT["soft"]),
    **dict.fromkeys(("figure.facecolor", "savefig.facecolor"), LIGHT["page"]),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left"), False),
    **dict.fromkeys(("axes.linewidth", "grid.linewidth"), 0.7),
    **dict.fromkeys(("ytick.major.size", "ytick.minor.size", "xtick.minor.size"), 0),
}
"""Settings of matplotlib."""


@dataclass(frozen=True)
class Stroke:
    """The stroke of one group: a colour of the palette and a line style of matplotlib."""

    slot: str
    dash: object

    @property
    def colour(self) -> str:
        """The colour on a white page."""
        return LIGHT[self.slot]


@dataclass(frozen=True)
class Picture:
    """One figure.

    Attributes:
      svg: a complete SVG file, on white.
      png: the same as PNG; empty for pictures that are only shown in pages, as narrow ones are.
      title: what the picture shows, for screen readers.
      text: the values that can be read off it, for screen readers.
    """

    svg: str
    png: bytes
    title: str
    text: str

    def inline(self, name: str) -> str:
        """Return markup for a page that defines the CSS variables of `LIGHT` and `DARK`.

        Args:
          name: short and unique on the page; prefix of the ids in the markup.
        """
        body = self.svg[self.svg.index("<svg") :]
        colours = ((re.escape(colour), f"var(--{slot})") for slot, colour in LIGHT.items())
        for pattern, new in (*_FITTED, *colours, *_SHORTER):
            body = re.sub(pattern, new, body, flags=re.DOTALL | re.IGNORECASE)
        body = re.sub(r'(?<= d=")[^"]*', _shorter_path, body)
        body = re.sub(_ALIKE, _joined, body)
        while (less := re.sub(r"<g>((?:(?!</?g).)*)</g>", r"\1", body)) != body:
            body = less
        body = re.sub(r'\bid="|url\(#|href="#', rf"\g<0>{name}-", body)
        body = re.sub(r'\b(width|height)="([\d.]+)pt"', _in_pixels, body, count=2)
        texts = "".join(
            f'<{tag} id="{name}-{tag}">{html.escape(words)}</{tag}>'
            for tag, words in (("title", self.title), ("desc", self.text))
        )
        named = f'role="img" aria-labelledby="{name}-title" aria-describedby="{name}-desc"'
        return re.sub(r"<svg([^>]*)>", lambda m: f"<svg {named}{m[1]}>{texts}", body, count=1)


def strokes(methods: Sequence[str]) -> list[Stroke]:
    """Return a stroke for each group by its method; groups of one method differ in line style."""
    slots = dict(_SLOTS)
    free = [slot for slot in range(7) if slot not in {slots.get(name) for name in methods}]
    for name in dict.fromkeys(methods):
        if name not in slots:
            slots[name] = free.pop(0) if free else len(slots) % 7
    used: dict[int, int] = {}
    chosen = []
    for name in methods:
        turn = used.get(slots[name], 0)
        used[slots[name]] = turn + 1
        chosen.append(Stroke(f"s{slots[name]}", _DASHES[turn % len(_DASHES)]))
    return chosen


@contextmanager
def new_figure(width: float, height: float, *, constrained: bool = False) -> Iterator[Figure]:
    """Yield a figure to draw on; the style applies inside the block.

    Args:
      width: in inches.
      height: in inches.
      constrained: whether matplotlib fits the axes and their texts into the figure.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(dict(_STYLE)):
        yield Figure(figsize=(width, height), layout="constrained" if constrained else None)


def note(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    shift: tuple[float, float] = (0, 0),
    **look: object,
) -> None:
    """Write a text beside a row of a figure, possibly outside the axes.

    Args:
      axes: the axes of the row.
      text: the text.
      at: a fraction of the axes' width, and a height in data coordinates.
      shift: offset from there to the right and up, in points.
      **look: properties of matplotlib's text.
    """
    axes.annotate(
        text,
        at,
        shift,
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        annotation_clip=False,
        **cast(dict[str, Any], {"va": "center", "color": LIGHT["ink"], **look}),
    )


def picture_of(figure: Figure, *, title: str, text: str = "", png: bool = True) -> Picture:
    """Save a figure as SVG text and as PNG at 200 dots an inch.

    Args:
      figure: a finished figure, inside the block of `new_figure`.
      title: as in `Picture`.
      text: as in `Picture`; "" takes the title.
      png: whether a wide picture is drawn as PNG too, which takes most of the time.
    """
    drawn, pixels = io.StringIO(), io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    if png and figure.get_figwidth() >= _FILED:
        figure.savefig(pixels, format="png", dpi=200, metadata={"Software": _MARK, "Title": title})
    return Picture(drawn.getvalue(), pixels.getvalue(), title, text or title)


def write_picture(picture: Picture, stem: Path) -> list[Path]:
    """Write a picture as SVG and PNG.

    Args:
      picture: a picture with PNG.
      stem: the files' path without suffix; its folder must exist.

    Returns:
      The paths of the files.

    Raises:
      ConfigError: if one of them exists and is no picture of ours; nothing is written.
    """
    marked = f"{picture.svg.rstrip()}\n<!-- {_MARK} -->\n".encode()
    files = {f"{stem}.svg": marked, f"{stem}.png": picture.png}
    with about(stem.parent):
        for name in files:
            file = Path(name)
            if file.exists() and not (file.is_file() and _MARK.encode() in file.read_bytes()):
                raise ConfigError(
                    f"{file}: found a file that is no picture of fedpeft, and only such pictures "
                    "are replaced. Move it away, or choose another place"
                )
        for name, content in files.items():
            Path(name).write_bytes(content)
    return [Path(name) for name in files]


_MARK = "drawn by fedpeft"
"""In every picture that is written: only files with it are replaced."""

_FITTED = (
    (r"<metadata>.*?</metadata>\s*|<title>.*?</title>\s*", ""),
    (r"'?DejaVu Sans'?(, sans-serif)?", "inherit"),
)
"""Replacements: the page's own font, and no second title."""

_SHORTER = (
    (r"(\d\.\d\d)\d+", r"\1"),
    (r'<g id="[^"]*">', "<g>"),
    (r' transform="rotate\(-?0 [^"]*"', ""),
    (r"\s*\n\s*", " "),
    (r"> <", "><"),
    (r"font-family: inherit; ", ""),
)
"""Replacements without visible effect: long decimals, group ids, rotations by 0, line ends."""

_ALIKE = r'<path d="[^"]*"((?: clip-path="[^"]*")? style="fill: [^"]*")/>(?:<path d="[^"]*"\1/>)+'
"""Neighbouring paths with the same fill, such as the cells of a partition's picture."""


def _shorter_path(found: re.Match[str]) -> str:
    return re.sub(r" ?([MLQCz]) ?", r"\1", re.sub(r"(\d\.\d)\d+", r"\1", found.group()))


def _joined(found: re.Match[str]) -> str:
    shapes = "\n".join(re.findall(r' d="([^"]*)"', found.group()))
    return f'<path d="{shapes}"{found.group(1)}/>'


def _in_pixels(found: re.Match[str]) -> str:
    return f'{found[1]}="{float(found[2]) * 4 / 3:.0f}"'
