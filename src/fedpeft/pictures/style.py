"""How the figures of a report look: one palette, one type size, SVG that follows light and dark.

Colours are those of Okabe and Ito, darkened where a thin line on white needs it; they stay apart
under the common colour-vision deficiencies, and line styles repeat the message. A method has one
colour in every figure. An inlined picture uses the page's own colours (CSS variables), so that it
is readable on a light page, on a dark one and on paper; a picture in a file has fixed ones.

Reference: Okabe, Ito, Color Universal Design, 2008.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DARK", "LIGHT", "Picture", "Stroke", "picture_of", "strokes", "styled"]

LIGHT = {
    "ink": "#1c1f23",
    "soft": "#5c6570",
    "grid": "#d9dde2",
    "page": "#ffffff",
    "wash": "#f3f5f7",
    "s0": "#0072b2",
    "s1": "#c75300",
    "s2": "#00875f",
    "s3": "#b0528a",
    "s4": "#b37700",
    "s5": "#2e8ec9",
    "s6": "#6b7280",
}
"""Colours on a white page, by the name of their CSS variable."""

DARK = {
    "ink": "#e8eaed",
    "soft": "#a4adb8",
    "grid": "#363c44",
    "page": "#15181c",
    "wash": "#1e2329",
    "s0": "#4aa8e8",
    "s1": "#ff8a3d",
    "s2": "#2fc49a",
    "s3": "#e79cc4",
    "s4": "#f0b429",
    "s5": "#9ad7f7",
    "s6": "#9aa3af",
}
"""The same on a dark page."""

_FILED = 4.0  # inches; pages alone show what is narrower
_SLOTS = {
    "bias": 0,
    "full": 1,
    "adapter": 2,
    "lora": 3,
    "prompt": 4,
    "head": 5,
    "scratch": 6,
}
_DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))


@dataclass(frozen=True)
class Stroke:
    """How one group is drawn: a colour of the palette and a line style of matplotlib."""

    slot: str
    dash: object

    @property
    def colour(self) -> str:
        """The colour on a white page."""
        return LIGHT[self.slot]


@dataclass(frozen=True)
class Picture:
    """One figure in three forms.

    Attributes:
      svg: a file of its own, on white.
      png: the same as pixels; empty for a picture of a phone's width, which stands in pages alone.
      inline: markup for a page that defines the CSS variables of `LIGHT` and `DARK`.
    """

    svg: str
    png: bytes
    inline: str


def strokes(methods: Sequence[str]) -> list[Stroke]:
    """Choose a stroke for each group, by its method; groups of one method differ in line style."""
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
def styled() -> Iterator[None]:
    """Draw in the house style inside the block; the settings of matplotlib are restored after."""
    import matplotlib

    with matplotlib.rc_context(
        {
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            "font.size": 9,
            "text.color": LIGHT["ink"],
            "axes.labelcolor": LIGHT["soft"],
            "axes.edgecolor": LIGHT["soft"],
            "axes.linewidth": 0.7,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.spines.left": False,
            "axes.grid": True,
            "axes.grid.axis": "y",
            "axes.axisbelow": True,
            "grid.color": LIGHT["grid"],
            "grid.linewidth": 0.7,
            "xtick.color": LIGHT["soft"],
            "ytick.color": LIGHT["soft"],
            "ytick.major.size": 0,
            "ytick.minor.size": 0,
            "xtick.minor.size": 0,
            "lines.linewidth": 1.8,
            "lines.solid_capstyle": "round",
            "svg.fonttype": "none",
            "svg.hashsalt": "fedpeft",
            "figure.facecolor": LIGHT["page"],
            "axes.facecolor": "none",
            "savefig.facecolor": LIGHT["page"],
        }
    ):
        yield


def picture_of(figure: Figure, *, name: str, title: str, text: str = "") -> Picture:
    """Save a figure as SVG text, as PNG at 200 dots an inch, and as markup to inline.

    Args:
      figure: drawn; not used afterwards.
      name: short and unique on a page; goes into the ids of the markup.
      title: what the picture shows, for readers who do not see it.
      text: what can be read off it, for the same readers.
    """
    drawn, pixels = io.StringIO(), io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    if figure.get_figwidth() >= _FILED:
        figure.savefig(pixels, format="png", dpi=200, metadata={"Software": None, "Title": title})
    svg = drawn.getvalue()
    return Picture(svg, pixels.getvalue(), _inline(svg, name, (title, text or title)))


def _inline(svg: str, name: str, told: tuple[str, str]) -> str:
    """Fit an SVG file into a page: own ids, the page's font and colours, scalable, labelled."""
    import html

    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<title>.*?</title>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub(r"'?DejaVu Sans'?(, sans-serif)?", "inherit", body)
    for variable, colour in LIGHT.items():
        body = re.sub(colour, f"var(--{variable})", body, flags=re.IGNORECASE)
    body = _shorter(body)
    width, height = re.findall(r'(?:width|height)="([\d.]+)pt"', body)[:2]
    pixels = f'width="{float(width) * 4 / 3:.0f}" height="{float(height) * 4 / 3:.0f}"'
    body = re.sub(r'(<svg[^>]*?)height="[\d.]+pt"([^>]*?)width="[\d.]+pt"', rf"\1{pixels}\2", body)
    body = re.sub(r'(<svg[^>]*?)width="[\d.]+pt"([^>]*?)height="[\d.]+pt"', rf"\1{pixels}\2", body)
    named = f'role="img" aria-labelledby="{name}-title" aria-describedby="{name}-desc"'
    said = "".join(
        f'<{tag} id="{name}-{tag}">{html.escape(words)}</{tag}>'
        for tag, words in zip(("title", "desc"), told, strict=True)
    )
    return re.sub(r"<svg([^>]*)>", lambda m: f"<svg {named}{m.group(1)}>{said}", body, count=1)


def _shorter(svg: str) -> str:
    """Drop what no reader sees: long decimals, names of groups, rotations by nothing, line ends."""
    svg = re.sub(r"(\d\.\d\d)\d+", r"\1", svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*"', "", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    svg = re.sub(r"> <", "><", svg)
    svg = svg.replace("font-family: inherit; ", "")
    svg = re.sub(r'(?<= d=")[^"]*', _shorter_path, svg)
    svg = re.sub(_ALIKE, _joined, svg)
    while (less := re.sub(r"<g>((?:(?!</?g).)*)</g>", r"\1", svg)) != svg:
        svg = less
    return svg


_ALIKE = r'<path d="[^"]*"((?: clip-path="[^"]*")? style="fill: [^"]*")/>(?:<path d="[^"]*"\1/>)+'
"""Neighbours that are filled alike, as the cells of a picture of a partition are."""


def _shorter_path(found: re.Match[str]) -> str:
    return re.sub(r" ?([MLQCz]) ?", r"\1", re.sub(r"(\d\.\d)\d+", r"\1", found.group()))


def _joined(found: re.Match[str]) -> str:
    shapes = "\n".join(re.findall(r' d="([^"]*)"', found.group()))
    return f'<path d="{shapes}"{found.group(1)}/>'
