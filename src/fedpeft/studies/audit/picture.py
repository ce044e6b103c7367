"""The pictures of an audit, of one run and of several seeds.

one run                                        several seeds

 count │ absent   present    accountant ────┤    epsilon │ - - - - - - accountant
       │ ▁▄█▄▁   ▁▄█▄▁       estimate   ─┼─              │  .  .   .    estimate
       │                     bound   ├───                │ ^ ^ ^ ^ ^    lower bound
       └──── cosine          └── epsilon                 └── seed
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy.stats import norm

from fedpeft.experiment.privacy import PRIVACY_MODES
from fedpeft.pictures.style import LIGHT, Picture, new_figure, picture_of

__all__ = ["draw_audit", "draw_seeds"]


def draw_audit(found: Mapping[str, Any]) -> Picture:
    """Draw one audit: the cosines of canaries, and the three values of epsilon.

    Args:
      found: as `audit` returns it.
    """
    with new_figure(9.0, 3.7, constrained=True) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        _histogram(left, found)
        _intervals(right, found)
        figure.suptitle(_heading(found), fontsize=10, x=0.01, ha="left")
        return picture_of(figure, title=_heading(found))


def draw_seeds(found: Mapping[str, Any]) -> Picture:
    """Draw the three values of epsilon seed by seed.

    Args:
      found: as `audit_seeds` returns it.
    """
    runs, first = found["runs"], found["runs"][0]
    places = range(len(runs))
    with new_figure(9.0, 3.8, constrained=True) as figure:
        axes = figure.subplots()
        for key, label, mark, colour in (
            ("epsilon", "accountant: at most this", "_", "ink"),
            ("epsilon_estimate", "estimate from canaries", "o", "s0"),
            ("epsilon_lower_bound", _bound_text(first), "^", "s1"),
        ):
            values = [run[key] for run in runs]
            (line,) = axes.plot(places, values, mark, color=LIGHT[colour], label=label, mew=1.8)
            line.set_markersize(14 if mark == "_" else 5)
        axes.set_xticks(places, [str(run["seed"]) for run in runs])
        axes.set_xlabel("Seed")
        if max(run["epsilon_estimate"] for run in runs) > 50:  # far above everything else
            axes.set_yscale("symlog", linthresh=1)
        highest = max(run[key] for run in runs for key in ("epsilon", "epsilon_lower_bound"))
        finite = [v for run in runs if math.isfinite(v := run["epsilon_estimate"])]
        axes.set_ylim(-0.05 * highest, 1.3 * max(highest, *finite, 0.1))
        axes.set_title(f"Epsilon at delta {first['delta']:g}", fontsize=9, loc="left")
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        verdict = (
            f"{found['exceeded']} of {len(runs)} lower bounds exceed the accountant "
            f"({found['allowed_failures']} allowed by chance)"
        )
        figure.suptitle(f"{_heading(first)}\n{verdict}", fontsize=10, x=0.01, ha="left")
        return picture_of(figure, title=f"{_heading(first)}: {verdict}")


def _histogram(axes: Axes, found: Mapping[str, Any]) -> None:
    opposite = PRIVACY_MODES[found["mode"]].hides_which
    cosines = {key: np.asarray(values) for key, values in found["cosines"].items()}
    bins = np.histogram_bin_edges(np.concatenate([*cosines.values()]), 30).tolist()
    rows = (
        ("absent", "opposite sent" if opposite else "absent canaries", "s6"),
        ("present", "direction sent" if opposite else "canaries that took part", "s1"),
    )
    for key, label, colour in rows:
        values = cosines[key]
        axes.hist(values, bins, color=LIGHT[colour], alpha=0.45, label=f"{label} ({len(values)})")
        mean, deviation = float(values.mean()), float(values.std(ddof=1))
        fitted = "fitted Gaussian"
        if key == "absent" and not opposite:
            mean, deviation = found["null"]["mean"], found["null"]["deviation"]
            fitted = "Gaussian of variance 1/d"
        points = np.linspace(bins[0], bins[-1], 400)
        height = len(values) * (bins[1] - bins[0]) * norm.pdf(points, mean, deviation)
        axes.plot(points, height, color=LIGHT[colour], linewidth=1.6, label=fitted)
    axes.set_xlabel("Cosine of a canary's direction with what was released")
    axes.set_title("Canaries", fontsize=9, loc="left")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.3)
    axes.legend(fontsize=7.5, frameon=False, ncols=2, loc="upper left")


def _intervals(axes: Axes, found: Mapping[str, Any]) -> None:
    low, high = found["epsilon_estimate_interval"]
    epsilon, bound = found["epsilon"], found["epsilon_lower_bound"]
    estimate = found["epsilon_estimate"]
    end = 1.25 * max(epsilon, high, bound, estimate)
    axes.plot([0, epsilon], [2, 2], color=LIGHT["ink"], linewidth=5, solid_capstyle="butt")
    axes.plot([low, high], [1, 1], color=LIGHT["s0"], linewidth=2)
    axes.plot([estimate], [1], "o", color=LIGHT["s0"])
    axes.plot([bound, end], [0, 0], color=LIGHT["s1"], linewidth=5, solid_capstyle="butt")
    axes.axvline(epsilon, color=LIGHT["soft"], linewidth=0.8, linestyle=(0, (3, 3)), zorder=0)
    texts = (
        (2, "accountant: at most", epsilon, "ink"),
        (1, "estimate from canaries: about", estimate, "s0"),
        (0, f"{_bound_text(found)}: at least", bound, "s1"),
    )
    for place, words, value, colour in texts:
        label = axes.text(
            0, place + 0.18, f"{words} {value:.3g}", color=LIGHT[colour], fontsize=8.5
        )
        label.set_bbox({"facecolor": LIGHT["page"], "edgecolor": "none", "pad": 1.5})
    axes.set_yticks([])
    axes.set_ylim(-0.4, 2.6)
    axes.set_xlim(0, end)
    axes.grid(visible=False)
    axes.set_xlabel(f"Epsilon at delta {found['delta']:g}")
    verdict = "the promise is broken" if found["violated"] else "nothing against the promise"
    axes.set_title(f"Epsilon: {verdict}", fontsize=9, loc="left")


def _bound_text(found: Mapping[str, Any]) -> str:
    return f"lower bound at {100 * found['confidence']:g} % confidence"


def _heading(found: Mapping[str, Any]) -> str:
    noise = (
        "noise left out on purpose"
        if found["noise_left_out"]
        else f"noise multiplier {found['noise_multiplier']:.3g}"
    )
    return (
        f"Audit of mode {found['mode']}, {found['sampling']} sampling, {noise}: "
        f"{found['rounds']} rounds, {found['canaries']} canaries"
    )
