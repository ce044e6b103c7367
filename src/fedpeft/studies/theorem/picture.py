"""The picture of Theorem 1 on a run: the bound over the loss, and what the bound is made of.

loss │ ╭── bound        size │ ╭─── P_delta, slack
     │─╯░░ slack             │ ├─── |remainder|
     │╲___ loss              │─╯
     └───── round            └───── round
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedpeft.pictures.style import LIGHT, Picture, picture_of, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_theorem"]


def draw_theorem(result: Mapping[str, Any]) -> Picture:
    """Draw loss and bound, and the parts of P beside what they bound.

    Args:
      result: as `check_theorem` returns it.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    rows = result["rounds"]
    rounds = [row["round"] for row in rows]
    with styled():
        figure = Figure(figsize=(5.4, 6.4), layout="constrained")
        upper, lower = figure.subplots(2, 1)
        _curves(upper, rounds, rows, (("bound", "bound", "s1"), ("loss_end", "loss", "s0")))
        ends = [[row[key] for row in rows] for key in ("loss_end", "bound")]
        upper.fill_between(rounds, *ends, color=LIGHT["s1"], alpha=0.12, linewidth=0, label="slack")
        upper.set_title(f"{result['method']}: the loss stays under the bound, nats", loc="left")
        if not result["holds"]:
            upper.set_title(f"{result['method']}: the bound is VIOLATED, nats", loc="left")
        _curves(lower, rounds, rows, _parts(result))
        lower.set_title("what the bound adds to the linear part, nats", loc="left")
        lower.set_yscale("log")
        lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        lower.yaxis.set_minor_formatter(lambda *_: "")
        for axes in (upper, lower):
            axes.set_xlabel("round")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(fontsize=8, frameon=False)
        figure.supxlabel(_control(result), fontsize=7.5, color=LIGHT["soft"])
        return picture_of(figure, name="theorem", title="Theorem 1: the bound and the loss")


def _parts(result: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    lines = [("p_delta", "P of the delta", "s2"), ("remainder", "|loss - linear part|", "s0")]
    if result["theta_is_frozen"]:
        lines[0] = ("p_delta", "P of the delta (of the frozen backbone: 0)", "s2")
    else:
        lines.insert(0, ("p_theta", "P of the backbone", "s1"))
    return (*lines, ("slack", "slack: bound - loss", "s4"))


def _curves(
    axes: Axes,
    rounds: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    lines: Sequence[tuple[str, str, str]],
) -> None:
    for (key, label, colour), marker in zip(lines, "os^D", strict=False):
        values = [abs(row[key]) for row in rows]
        axes.plot(rounds, values, marker=marker, markersize=4, color=LIGHT[colour], label=label)


def _control(result: Mapping[str, Any]) -> str:
    caught = "violates" if not result["control"]["hundredth_holds"] else "does NOT violate"
    return (
        "The constant is estimated on the segment: a check, not a proof.\n"
        f"Control: a hundredth of it {caught} the bound on a quadratic."
    )
