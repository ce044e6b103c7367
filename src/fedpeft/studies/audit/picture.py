"""The pictures of an audit, of one run and of several seeds.

one run                                        several seeds

 count │ absent   present    accountant ────┤    epsilon │ - - - - - - accountant
       │ ▁▄█▄▁   ▁▄█▄▁       estimate   ─┼─              │  .  .   .    estimate
       │                     bound   ├>                  │ ^ ^ ^ ^ ^    lower bound
       └──── cosine          └── epsilon                 └── seed
 checks: name, p-value, level, result
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


def draw_audit(found: Mapping[str, Any]) -> Picture:
    """Draw one audit: the cosines of canaries, the values of epsilon, and the checks.

    Args:
      found: as `audit` returns it.
    """
    with new_figure(9.0, 5.6 if found["canaries"] else 2.8, constrained=True) as figure:
        if found["canaries"]:
            grid = figure.add_gridspec(2, 2, width_ratios=(1.25, 1), height_ratios=(3.5, 2.1))
            _histogram(figure.add_subplot(grid[0, 0]), found)
            _intervals(figure.add_subplot(grid[0, 1]), found)
            _checks(figure.add_subplot(grid[1, :]), found)
        else:
            _checks(figure.subplots(), found)
        figure.suptitle(_heading(found), fontsize=10, x=0.01, ha="left")
        return picture_of(figure, title=_heading(found))


def draw_seeds(found: Mapping[str, Any]) -> Picture:
    """Draw the three values of epsilon seed by seed.

    Args:
      found: as `audit_seeds` returns it.
    """
    runs, first = found["runs"], found["runs"][0]
    if not first["canaries"]:
        return _draw_faults(found)
    places = range(len(runs))
    with new_figure(9.0, 3.8, constrained=True) as figure:
        axes = figure.subplots()
        for key, label, mark, colour in (
            ("epsilon", "accountant: at most this", "_", "ink"),
            ("epsilon_estimate", "estimate from canaries", "o", "s0"),
            ("epsilon_lower_bound", _bound_text(first), "^", "s1"),
        ):
            values = [math.nan if run[key] is None else run[key] for run in runs]
            (line,) = axes.plot(places, values, mark, color=LIGHT[colour], label=label, mew=1.8)
            line.set_markersize(14 if mark == "_" else 5)
        axes.set_xticks(places, [str(run["seed"]) for run in runs])
        axes.set_xlabel("Seed")
        highest = max(run[key] for run in runs for key in ("epsilon", "epsilon_lower_bound"))
        finite = [v for run in runs if (v := run["epsilon_estimate"]) is not None]
        if max(finite, default=0.0) > 50:  # far above everything else
            axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(-0.05 * highest, 1.3 * max(highest, *finite, 0.1))
        axes.set_title(f"Epsilon at delta {first['delta']:g}", fontsize=9, loc="left")
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        verdict = (
            f"{found['exceeded']} of {len(runs)} lower bounds exceed the accountant "
            f"({found['allowed_failures']} allowed by chance); {_faulty(found)}"
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
        if deviation == 0:  # no noise: all cosines are equal
            continue
        points = np.linspace(bins[0], bins[-1], 400)
        height = len(values) * (bins[1] - bins[0]) * norm.pdf(points, mean, deviation)
        axes.plot(points, height, color=LIGHT[colour], linewidth=1.6, label=fitted)
    axes.set_xlabel("Cosine of a canary's direction with what was released")
    axes.set_title("Canaries", fontsize=9, loc="left")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.3)
    axes.legend(fontsize=7.5, frameon=False, ncols=2, loc="upper left")


def _draw_faults(found: Mapping[str, Any]) -> Picture:
    """Draw how often each check found a fault, where there are no canaries."""
    names = [check["name"] for check in found["runs"][0]["checks"]]
    counts = [sum(name in run["faults"] for run in found["runs"]) for name in names]
    with new_figure(9.0, 3.0, constrained=True) as figure:
        axes = figure.subplots()
        axes.barh(names[::-1], counts[::-1], color=LIGHT["s1"], height=0.5)
        axes.set_xlim(0, len(found["runs"]))
        axes.set_xlabel("Audits in which the check found a fault")
        title = f"{_heading(found['runs'][0])}\n{_faulty(found)}"
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
        return picture_of(figure, title=title.replace("\n", ": "))


def _faulty(found: Mapping[str, Any]) -> str:
    return f"checks found a fault in {found['with_faults']} of {len(found['runs'])} audits"


def _intervals(axes: Axes, found: Mapping[str, Any]) -> None:
    """Draw the accountant's upper bound, the estimate and the lower bound.

    The lower bound is a mark with an arrow: nothing is known of what lies above it.
    """
    estimate, (low, high) = found["epsilon_estimate"], found["epsilon_estimate_interval"]
    epsilon, bound = found["epsilon"], found["epsilon_lower_bound"]
    end = 1.25 * max(epsilon, bound, *(v for v in (low, high, estimate) if v is not None))
    axes.plot([0, epsilon], [2, 2], color=LIGHT["ink"], linewidth=5, solid_capstyle="butt")
    left, right = (end if v is None else v for v in (low, high))
    axes.plot([left, right], [1, 1], color=LIGHT["s0"], linewidth=2)
    axes.plot([end if estimate is None else estimate], [1], "o", color=LIGHT["s0"], clip_on=False)
    axes.plot([bound], [0], "|", color=LIGHT["s1"], markersize=14, markeredgewidth=3, clip_on=False)
    arrow = {"arrowstyle": "->", "color": LIGHT["s1"], "linewidth": 1.5}
    axes.annotate("", (bound + 0.07 * end, 0), (bound, 0), arrowprops=arrow)
    axes.axvline(epsilon, color=LIGHT["soft"], linewidth=0.8, linestyle=(0, (3, 3)), zorder=0)
    about = "over 1e6" if estimate is None else f"{estimate:.3g}"
    texts = (
        (2, f"accountant: at most {epsilon:.3g}", "ink"),
        (1, f"estimate from canaries: about {about}", "s0"),
        (0, f"{_bound_text(found)}: at least {bound:.3g}", "s1"),
    )
    for place, words, colour in texts:
        label = axes.text(0, place + 0.22, words, color=LIGHT[colour], fontsize=8.5)
        label.set_bbox({"facecolor": LIGHT["page"], "edgecolor": "none", "pad": 1.5})
    axes.set_yticks([])
    axes.set_ylim(-0.4, 2.6)
    axes.set_xlim(0, end)
    axes.grid(visible=False)
    axes.set_xlabel(f"Epsilon at delta {found['delta']:g}")
    verdict = "nothing against the promise"
    if found["violated"] or found["faults"]:
        verdict = "the promise is broken"
    axes.set_title(f"Epsilon: {verdict}", fontsize=9, loc="left")


def _checks(axes: Axes, found: Mapping[str, Any]) -> None:
    """Write a line for each check."""
    colours = {"found": "s1", "noted": "s0", "passed": "ink", "not run": "soft"}
    checks = found["checks"]
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(-len(checks) + 0.5, 0.5)
    for place, check in enumerate(checks):
        p = "" if check["p_value"] is None else f"p = {check['p_value']:.2g}"
        cells = ((0.0, check["result"]), (0.09, f"{check['question']}?"), (0.6, p))
        for left, words in cells:
            colour = LIGHT[colours[check["result"]]]
            axes.text(left, -place, words, color=colour, fontsize=8.5, va="center")
    level = f"a fault is found at p below {checks[0]['level']:.2g}"
    axes.set_title(f"Checks of the mechanism; {level}", fontsize=9, loc="left")


def _bound_text(found: Mapping[str, Any]) -> str:
    return f"lower bound at {100 * found['confidence']:g} % confidence"


def _heading(found: Mapping[str, Any]) -> str:
    noise = (
        "noise left out on purpose"
        if found["noise_left_out"]
        else f"noise multiplier {found['noise_multiplier']:.3g}"
    )
    canaries = f"{found['canaries']} canaries" if found["canaries"] else "no canaries"
    return (
        f"Audit of mode {found['mode']}, {found['sampling']} sampling, {noise}: "
        f"{found['rounds']} rounds, {canaries}"
    )
