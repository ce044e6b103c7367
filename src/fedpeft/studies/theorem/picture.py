"""The picture of Theorem 1 on a run: the bound over the loss, and what the bound is made of.

loss │ ╭── bound        size │ ╭─── P_delta, slack
     │─╯░░ slack             │ ├─── |remainder|
     │╲___ loss              │─╯
     └───── round            └───── round
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedpeft.pictures.style import LIGHT, Picture, new_figure, picture_of


def draw_theorem(result: Mapping[str, Any]) -> Picture:
    """Draw loss and bound, and the parts of P beside what they bound.

    Args:
      result: as `check_theorem` returns it.
    """
    rows = result["rounds"]
    rounds = [row["round"] for row in rows]
    holds = "the loss stays under the bound" if result["holds"] else "the bound is VIOLATED"
    with new_figure(5.4, 6.4, constrained=True) as figure:
        upper, lower = figure.subplots(2, 1)
        _curves(upper, rounds, rows, (("bound", "bound", "s1"), ("loss_end", "loss", "s0")))
        ends = [[row[key] for row in rows] for key in ("loss_end", "bound")]
        upper.fill_between(rounds, *ends, color=LIGHT["s1"], alpha=0.12, linewidth=0, label="slack")
        upper.set_title(f"{result['method']}: {holds}, nats", loc="left")
        _curves(lower, rounds, rows, _parts(result))
        lower.set_title("what the bound adds to the linear part, nats", loc="left")
        lower.set_yscale("log")
        lower.yaxis.set_major_formatter("{x:g}")
        lower.yaxis.set_minor_formatter("")
        for axes in (upper, lower):
            axes.set_xlabel("round")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(fontsize=8, frameon=False)
        figure.supxlabel(_control(result), fontsize=7.5, color=LIGHT["soft"])
        return picture_of(figure, title="Theorem 1: the bound and the loss")


def _parts(result: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    frozen = result["theta_is_frozen"]
    of_frozen = " (of the frozen backbone: 0)" if frozen else ""
    return (
        *(() if frozen else (("p_theta", "P of the backbone", "s1"),)),
        ("p_delta", f"P of the delta{of_frozen}", "s2"),
        ("remainder", "|loss - linear part|", "s0"),
        ("slack", "slack: bound - loss", "s4"),
    )


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
