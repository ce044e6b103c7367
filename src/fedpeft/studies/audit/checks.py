"""The checks of a mechanism: what each compares, at what level, and what was found.

    check               a sound mechanism                        found
    noise_too_small     noise of deviation z C                     less of it, or none
    noise_too_large     the same                                   more of it: noted, not a fault
    noise_repeated      fresh in every release and step            copies, scaled, of another sign
    noise_alike         independent between coordinates            one draw used twice in a release
    noise_predictable   from a secret drawn for each run           the noise of another run
    clip                one contribution of norm <= C in all       no clip, a looser one, by tensor
    denominator         sum / expected number                      divided by those who answered

Each has the level FAMILY_LEVEL / number of checks, so that a sound mechanism is accused by any of
them with a probability of at most FAMILY_LEVEL. `noise_tests` has the p-values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fedpeft.studies.audit import noise_tests
from fedpeft.studies.audit.statistics import Floats

FAMILY_LEVEL = 0.001
"""The probability, at most, with which a sound mechanism is accused by any of the checks."""

UNSEEN = (
    "a fault that depends on the data, the round or the client, and spares the probes",
    "noise that is a little too small, or too small in a few coordinates without being absent",
    "noise that follows another rule: only copies and the noise of a second run are compared",
    "how cohorts and batches are drawn: at which rate, independently; the accountant's arithmetic",
    "what leaves beside the releases: records, logs, timing, failures, files",
    "machines: only this process was tested, not the software of other sites",
)
"""What an audit cannot see."""

EXACT = 1e-3
"""The relative difference that rounding may cause where nothing is random."""


@dataclass(frozen=True)
class Observed:
    """What was seen of a mechanism, in units in which a sound one is standard.

    T releases, P coordinates.

    Attributes:
      noise_TP: releases to which nobody contributed: standard Gaussian by claim.
      sizes: number of coordinates of each tensor, in their order.
      other_TP: the same releases of a second run, with a secret of its own; None where noise comes
        from the seed.
      again_TP: noise of the first round, repeated with the same secrets and other contributions,
        which are subtracted (up to rounding); None where noise comes from the seed.
      sums_TP: sums of the noise of several steps, over the root of their number; None where a
        release has one step.
      clip_scores: (projection - number of contributions) / deviation, each with mean <= 0.
      clip_norms: norms of single contributions, seen without noise, in clip bounds.
      least_norm: the norm of a contribution, in clip bounds, that would be found.
      denominator_scores: projections, on the contributions, of what was released minus what was
        contributed over the expected number; mean 0, deviation 1.
      denominator_errors: the same where nothing is random, as relative differences.
      few_TP: releases without contributions for which few answered, or few examples were in the
        batch; None where that number cannot vary.
      many_TP: the same with many.
    """

    noise_TP: Floats
    sizes: tuple[int, ...]
    other_TP: Floats | None = None
    again_TP: Floats | None = None
    sums_TP: Floats | None = None
    clip_scores: tuple[float, ...] = ()
    clip_norms: tuple[float, ...] = ()
    least_norm: float = math.inf
    denominator_scores: tuple[float, ...] = ()
    denominator_errors: tuple[float, ...] = ()
    few_TP: Floats | None = None
    many_TP: Floats | None = None


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
      name: key of `CHECKS`.
      question: what is compared.
      level: probability, at most, with which a sound mechanism is accused by this check.
      p_value: of a sound mechanism for something as strange as this; None: the check did not run.
      result: `passed`, `found` (a fault), `noted` (strange, but no fault) or `not run`.
      detail: the figures, in words.
    """

    name: str
    question: str
    level: float
    p_value: float | None
    result: str
    detail: str


@dataclass(frozen=True)
class _Row:
    """A check: its question, its p-value (None: it cannot run), its figures in words."""

    question: str
    p_value: Callable[[Observed], float | None]
    detail: Callable[[Observed], str]
    fault: bool = True


def judge(seen: Observed) -> tuple[Check, ...]:
    """Run all checks, each at its level."""
    return tuple(_checked(name, row, seen) for name, row in CHECKS.items())


def _checked(name: str, row: _Row, seen: Observed) -> Check:
    level = FAMILY_LEVEL / len(CHECKS)
    p = row.p_value(seen)
    if p is None:
        result = "not run"
    elif p > level:
        result = "passed"
    else:
        result = "found" if row.fault else "noted"
    detail = row.detail(seen)
    if p is None and not seen.noise_TP.any():
        detail = "there is no noise"
    return Check(name, row.question, level, p, result, detail)


def _repeated(seen: Observed) -> float | None:
    if not seen.noise_TP.any():
        return None
    copies = noise_tests.repeated(_releases(seen))
    if seen.sums_TP is None:
        return copies
    return min(1.0, 2 * min(copies, noise_tests.spread_unequal(seen.sums_TP, seen.noise_TP)))


def _releases(seen: Observed) -> Floats:
    """Return the noise of all releases of one run [T, P]."""
    again = [] if seen.again_TP is None else [seen.again_TP]
    return np.concatenate([seen.noise_TP, *again])


def _alike(seen: Observed) -> float | None:
    return noise_tests.alike_within(seen.noise_TP, seen.sizes) if seen.noise_TP.any() else None


def _predictable(seen: Observed) -> float | None:
    if seen.other_TP is None or not seen.noise_TP.any():
        return None
    return noise_tests.repeated_across(seen.noise_TP, seen.other_TP)


def _clip(seen: Observed) -> float | None:
    if not seen.clip_scores and not seen.clip_norms:
        return None
    if any(norm > 1 + EXACT for norm in seen.clip_norms):
        return 0.0
    return noise_tests.above(score / _spread(seen) for score in seen.clip_scores)


def _denominator(seen: Observed) -> float | None:
    found = []
    if seen.few_TP is not None and seen.many_TP is not None:
        found.append(noise_tests.spread_unequal(seen.few_TP, seen.many_TP))
    if seen.denominator_scores:
        spread = _spread(seen)
        found.append(noise_tests.off(score / spread for score in seen.denominator_scores))
    if seen.denominator_errors:
        found.append(0.0 if max(seen.denominator_errors) > EXACT else 1.0)
    return min(1.0, len(found) * min(found)) if found else None


def _spread(seen: Observed) -> float:
    """Return the deviation by which scores are divided: that of the noise where it is too large."""
    return max(1.0, _deviation(seen))


def _deviation(seen: Observed) -> float:
    return float(np.sqrt((seen.noise_TP**2).mean()))


def _noise_words(seen: Observed) -> str:
    count, width = seen.noise_TP.shape
    least = noise_tests.smallest_seen((count, width), FAMILY_LEVEL / len(CHECKS))
    return (
        f"{_deviation(seen):.4g} of the claimed deviation over {count} x {width:,} numbers; below "
        f"{least:.3g} is found"
    )


def _pairs_words(seen: Observed) -> str:
    count = len(_releases(seen))
    steps = "" if seen.sums_TP is None else "; sums of steps against single steps"
    return f"{count * (count - 1) // 2} pairs of releases, moved round by every place{steps}"


def _predictable_words(seen: Observed) -> str:
    if seen.other_TP is None:
        return "privacy.reproducible_noise draws the noise from the seed: not private"
    return f"{len(seen.noise_TP) * len(seen.other_TP)} pairs with the releases of a second run"


def _clip_words(seen: Observed) -> str:
    largest = f"largest seen {max(seen.clip_norms):.4g}; " if seen.clip_norms else ""
    return f"{largest}a contribution of norm {seen.least_norm:.4g} C would be found"


def _denominator_words(seen: Observed) -> str:
    if _denominator(seen) is None:
        return "a shuffled batch of one example has no smaller one"
    scores = [*seen.denominator_scores, *seen.denominator_errors]
    return f"largest deviation {max(map(abs, scores)):.3g}" if scores else "noise of few and many"


CHECKS: Mapping[str, _Row] = {
    "noise_too_small": _Row(
        "is there as much noise as claimed",
        lambda seen: noise_tests.too_little(seen.noise_TP, seen.sizes),
        _noise_words,
    ),
    "noise_too_large": _Row(
        "is there more noise than claimed (no fault)",
        lambda seen: noise_tests.too_much(seen.noise_TP),
        _noise_words,
        fault=False,
    ),
    "noise_repeated": _Row("is the noise fresh in every release", _repeated, _pairs_words),
    "noise_alike": _Row(
        "is the noise of coordinates independent",
        _alike,
        lambda seen: "halves, even and odd places, a constant, starts of tensors",
    ),
    "noise_predictable": _Row(
        "does another run have other noise", _predictable, _predictable_words
    ),
    "clip": _Row("is a contribution at most C long, over all tensors", _clip, _clip_words),
    "denominator": _Row(
        "is the sum divided by the expected number", _denominator, _denominator_words
    ),
}
"""Name of a check -> the check, in the order of the output."""
