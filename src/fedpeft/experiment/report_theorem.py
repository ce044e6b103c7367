"""The picture of Theorem 1 on a run: the bound over the loss, and what the bound is made of.

loss │ ╭── bound        size │ ╭─── P_delta
     │─╯                     │ ├─── |remainder|
     │╲___ loss              │─╯
     └───── round            └───── round
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedpeft.experiment.report_style import LIGHT, Picture, picture_of, styled

__all__ = ["draw_theorem"]


def draw_theorem(result: Mapping[str, Any]) -> Picture:
    """Draw loss and bound, and the parts of P beside what they bound.

    Args:
      result: as `check_theorem` returns it.
    """
    from matplotlib.figure import Figure

    rows = result["rounds"]
    rounds = [row["round"] for row in rows]
    with styled():
        figure = Figure(figsize=(8.4, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for key, label, colour in (("bound", "bound", "s1"), ("loss_end", "loss", "s0")):
            values = [row[key] for row in rows]
            left.plot(rounds, values, marker="o", markersize=3, color=LIGHT[colour], label=label)
        left.set(xlabel="Round", title=f"{result['method']}: loss on a sample, nats")
        lines = [("p_delta", "P, delta", "s2"), ("remainder", "|loss - linear part|", "s0")]
        if not result["theta_is_frozen"]:
            lines.insert(0, ("p_theta", "P, theta", "s1"))
        for key, label, colour in lines:
            values = [max(abs(row[key]), 1e-12) for row in rows]
            right.plot(rounds, values, marker="o", markersize=3, color=LIGHT[colour], label=label)
        right.set(xlabel="Round", title="What the bound is made of, nats (log scale)")
        right.set_yscale("log")
        for axes in (left, right):
            axes.legend(fontsize=8, frameon=False)
        return picture_of(figure, name="theorem", title="Theorem 1: the bound and the loss")
