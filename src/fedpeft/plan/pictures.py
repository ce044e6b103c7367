"""Two figures of the methods, from plans and tuned modules: bytes sent, and trained parts.

    cost    one bar a method: bytes that one client sends in one round, one way
    layer   one block a method, [CLS | patches | prompts] -> attention -> MLP -> adapter, with a
            mark on every part that has a tensor in the delta

Marks follow from the names in the delta alone, not from a description of the methods.

Reference: the figures follow Figs. 1 and 2 of Sun et al., Exploring Parameter-Efficient Fine-Tuning
to Enable Foundation Models in Federated Learning, IEEE BigData 2024.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from fedpeft.build.model import sketch_run
from fedpeft.core.errors import ConfigError
from fedpeft.experiment.experiment import Experiment
from fedpeft.pictures.style import LIGHT, Picture, new_figure, picture_of, strokes, write_picture
from fedpeft.plan.plan import make_plan

_COSTS = ("full", "head", "bias", "adapter", "prompt")
_LAYERS = ("bias", "adapter", "prompt")
_PARTS = (
    ("norm1", "LayerNorm", (5.0, 2.2), 4.6),
    ("attn.q", "q", (3.0, 3.2), 1.6),
    ("attn.k", "k", (5.0, 3.2), 1.6),
    ("attn.v", "v", (7.0, 3.2), 1.6),
    ("attn.out", "projection", (5.0, 4.2), 4.6),
    ("norm2", "LayerNorm", (5.0, 5.9), 4.6),
    ("mlp.fc1", "linear 1, GELU", (5.0, 6.9), 4.6),
    ("mlp.fc2", "linear 2", (5.0, 7.9), 4.6),
)
"""Part of a block, text in its box, middle of the box, its width."""

_FROZEN = "#eceff2"


def write_figures(experiment: Experiment, out: Path) -> list[Path]:
    """Draw both figures for an experiment's model, as SVG and PNG.

    Args:
      experiment: its model is used; its tuning method is not.
      out: a folder, made if need be; files of the same names are replaced.

    Returns:
      The files.

    Raises:
      ConfigError: if the model is not a vision transformer, or its shapes cannot be built.
    """
    layer = draw_layer(experiment)  # refuses other models than vision transformers
    pictures = {"fig1-cost": draw_cost(experiment), "fig2-layer": layer}
    out.mkdir(parents=True, exist_ok=True)
    files = [write_picture(picture, out / name) for name, picture in pictures.items()]
    return [file for pair in files for file in pair]


def _with(experiment: Experiment, method: str) -> Experiment:
    tuning = experiment.tuning.model_copy(update={"method": method, "options": {}})
    return experiment.model_copy(update={"tuning": tuning, "sweep": []})


def draw_cost(experiment: Experiment) -> Picture:
    """Draw what one client sends in one round, by method, on a logarithmic axis."""
    plans = {method: make_plan(_with(experiment, method)).figures for method in _COSTS}
    sizes = {method: int(str(plan["payload_bytes"])) for method, plan in plans.items()}
    largest, least = sizes["full"], min(sizes.values()) / 8
    with new_figure(7.2, 2.9, constrained=True) as figure:
        axes = figure.add_subplot()
        for place, (stroke, size) in enumerate(zip(strokes(_COSTS), sizes.values(), strict=True)):
            axes.barh(-place, size - least, left=least, height=0.62, color=stroke.colour)
            axes.text(size * 1.15, -place, _cost_words(size, largest), va="center", fontsize=8.5)
        axes.set(xscale="log", xlim=(least, largest * 90), yticks=[-i for i in range(len(sizes))])
        axes.set_yticklabels(_COSTS, color=LIGHT["ink"])
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        axes.set_xticks([])
        axes.minorticks_off()
        axes.set_title(
            f"What one client sends in one round ({experiment.model.name})", loc="left", fontsize=10
        )
        axes.set_xlabel("bytes one way, 4 a parameter; logarithmic bars", loc="left", fontsize=8)
        return picture_of(figure, title="Bytes a client sends in a round, by method")


def _cost_words(size: int, largest: int) -> str:
    small = size < 1e5
    decimal = f"{size / 1e3:,.3g} kB" if small else f"{size / 1e6:,.3g} MB"
    words = f"{decimal} = " + (f"{size / 2**10:,.3g} KiB" if small else f"{size / 2**20:,.3g} MiB")
    return words if size == largest else f"{words},  {largest / size:,.0f} times less"


def draw_layer(experiment: Experiment) -> Picture:
    """Draw one block for each of bias, adapter and prompt tuning, with what each trains."""
    _names(experiment, "head")  # fits every family, so that the family is what is refused
    with new_figure(9.6, 4.1, constrained=True) as figure:
        for axes, method in zip(figure.subplots(1, len(_LAYERS)), _LAYERS, strict=True):
            _draw_block(axes, _names(experiment, method), method)
        return picture_of(figure, title="Trained parts of one transformer block")


def _names(experiment: Experiment, method: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a method's delta by name; refuse a model that cannot be drawn."""
    tuned = sketch_run(_with(experiment, method)).tuned
    if tuned.loaded.family.name != "vit":
        raise ConfigError(
            f"model.name: {experiment.model.name!r} is of the family "
            f"{tuned.loaded.family.name!r}; figures need a vision transformer (vit)"
        )
    return dict(zip(tuned.spec.names, tuned.spec.shapes, strict=True))


def _draw_block(axes: Axes, names: Mapping[str, tuple[int, ...]], method: str) -> None:
    colour = strokes([method])[0].colour
    axes.set(xlim=(0, 10), ylim=(-0.5, 11.6), aspect="equal")
    axes.axis("off")
    axes.set_title(method, color=colour, fontsize=11, fontweight="bold")
    _lines(axes)
    _tokens(axes, names, colour)
    for part, label, middle, width in _PARTS:
        _box(axes, middle, (width, 0.66), label, None)
        if f"blocks.0.{part}.bias" in names:
            bubble = {"boxstyle": "circle,pad=0.18", "fc": colour, "ec": "none"}
            at = middle[0] + width / 2 - 0.05, middle[1]
            axes.text(
                *at, "b", ha="center", va="center", bbox=bubble,
                color="white", fontsize=7.5, fontweight="bold",
            )  # fmt: skip
    down = next((name for name in names if name.endswith("adapter.down.weight")), None)
    if down is not None:
        _box(axes, (5.0, 8.9), (4.6, 0.66), f"adapter, {names[down][0]} wide", colour)
        where = "one a block" if down.startswith("blocks.") else "one for\nall blocks"
        axes.text(7.5, 8.9, where, fontsize=7, va="center", color=colour)
    _joins(axes)
    total = sum(math.prod(shape) for name, shape in names.items() if not name.startswith("head."))
    axes.text(
        5, -0.35, f"trains {total:,} parameters and the head", ha="center", fontsize=8, color=colour
    )


def _lines(axes: Axes) -> None:
    """Draw the path of the tokens, and the two skips around attention and MLP."""
    soft = LIGHT["soft"]
    axes.add_patch(
        FancyArrowPatch((5, 0.9), (5, 11.4), arrowstyle="-|>", mutation_scale=9, color=soft)
    )
    for low, high in ((1.55, 5.05), (5.3, 9.75)):
        axes.plot([5, 0.9, 0.9, 4.8], [low, low, high, high], color=soft, linewidth=1)


def _joins(axes: Axes) -> None:
    for height in (5.05, 9.75):
        bubble = {"boxstyle": "circle,pad=0.12", "fc": LIGHT["page"], "ec": LIGHT["soft"]}
        axes.text(5, height, "+", ha="center", va="center", fontsize=9, bbox=bubble)
    axes.text(5.4, 10.7, "next block", fontsize=8, color=LIGHT["soft"], va="center")


def _tokens(axes: Axes, names: Mapping[str, tuple[int, ...]], colour: str) -> None:
    """Draw the input of the block: CLS, patches and, where the delta has them, prompts."""
    tokens = next((shape for name, shape in names.items() if name.endswith("prompt.tokens")), None)
    _box(axes, (1.6, 0.6), (1.3, 0.6), "CLS", None)
    _box(axes, (3.9, 0.6), (3.0, 0.6), "patches", None)
    if tokens is not None:
        _box(axes, (7.5, 0.6), (3.8, 0.6), f"{tokens[-2]} prompts", colour)
        where = f"new in each of {tokens[0]} blocks" if len(tokens) == 3 else "cut off at the end"
        axes.text(7.5, 1.1, where, fontsize=7, ha="center", color=colour)


def _box(
    axes: Axes, middle: tuple[float, float], size: tuple[float, float], label: str, fill: str | None
) -> None:
    corner = middle[0] - size[0] / 2, middle[1] - size[1] / 2
    style = "round,pad=0,rounding_size=0.12"
    edge = LIGHT["grid"] if fill is None else fill
    axes.add_patch(
        FancyBboxPatch(corner, *size, boxstyle=style, fc=fill or _FROZEN, ec=edge, zorder=3)
    )
    ink = "white" if fill else LIGHT["ink"]
    axes.text(*middle, label, ha="center", va="center", fontsize=8, color=ink, zorder=4)
