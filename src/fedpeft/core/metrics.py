"""Metrics: the figure by which a task, and a finished run, is judged.

    sums over a test set ──from_sums──> figure ──text──> 85.1 %
    loss 6.2, count 40, correct 34      0.851

A metric states in which direction it improves and how it is formatted, so that tables, reports and
model cards work for any metric. A run folder records all of it except `from_sums`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from fedpeft.core.errors import ConfigError

FromSums: TypeAlias = Callable[..., float]
"""(summed loss, number of predictions > 0, number of correct ones) over a test set -> figure. Where
a task's scores have tallies, their sums follow as further arguments."""


@dataclass(frozen=True)
class Metric:
    """A figure by which models are compared.

    Attributes:
      name: name in records and JSON, such as `mae`; the best figure of a run is `best_mae`.
      better: whether a larger (`max`) or a smaller (`min`) figure is better.
      from_sums: computes the figure; with worker processes it must be a module-level function. None
        for a finished run that was read back: its figures are in its records.
      label: name in text; "" is the capitalised name.
      percent: whether it is a share, 0 to 1, that is written in percent.
      digits: decimal places in text (of the percentage, with `percent`).
      lowest: smallest possible figure; None if unbounded.
      highest: largest possible figure; None if unbounded.
      log: whether figures are drawn on a logarithmic axis; they must be positive.
      about: a description in one sentence.

    Raises:
      ConfigError: if the name or the direction is not allowed.

    Example:
      >>> import fedpeft
      >>> mae = fedpeft.Metric("mae", "min", lambda loss, count, correct: loss / count)
      >>> mae.best([0.5, 0.25, 0.75]), mae.text(0.25)
      (0.25, '0.25')
    """

    name: str
    better: Literal["min", "max"]
    from_sums: FromSums | None = None
    label: str = ""
    percent: bool = False
    digits: int = 2
    lowest: float | None = None
    highest: float | None = None
    log: bool = False
    about: str = ""

    def __post_init__(self) -> None:
        if not (self.name.isidentifier() and self.name.islower()):
            raise ConfigError(
                f"metric {self.name!r}: allowed are lower-case letters, digits and _, as in 'mae'"
            )
        if self.better not in ("min", "max"):
            raise ConfigError(
                f"metric {self.name!r}: better is {self.better!r}; allowed are 'min' and 'max'"
            )

    @property
    def title(self) -> str:
        """Name in tables, axes and headings."""
        return self.label or self.name.capitalize()

    @property
    def sign(self) -> int:
        """1 if larger is better, else -1: figures times this rise as a model improves."""
        return 1 if self.better == "max" else -1

    @property
    def scale(self) -> int:
        """Factor on formatted figures: 100 for percent, else 1."""
        return 100 if self.percent else 1

    @property
    def unit(self) -> str:
        """Unit after a formatted figure."""
        return " %" if self.percent else ""

    def text(self, value: float) -> str:
        """Format a figure, without its unit."""
        return f"{value * self.scale:.{self.digits}f}"

    def tick(self, value: float) -> str:
        """Format a figure as a label on an axis, with its unit."""
        return f"{value * self.scale:.6g}{self.unit}"

    def best(self, values: Iterable[float]) -> float | None:
        """Return the best of some figures; None if there are none."""
        return max(values, key=lambda value: self.sign * value, default=None)

    def reaches(self, value: float, target: float) -> bool:
        """Whether a figure is at least as good as a target."""
        return self.sign * value >= self.sign * target

    def bounded(self, value: float) -> float:
        """Clamp a figure, such as the end of an interval, to its possible range."""
        low = -math.inf if self.lowest is None else self.lowest
        return min(max(low, value), math.inf if self.highest is None else self.highest)

    def as_json(self) -> dict[str, Any]:
        """Return the fields that a run folder records; `metric_in` reads them."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {key: value for key, value in found.items() if key != "from_sums"}


def _accuracy(loss: float, count: float, correct: float, *tallies: float) -> float:
    return correct / count


def _perplexity(loss: float, count: float, correct: float) -> float:
    return math.exp(min(loss / count, 700.0))


def _loss(loss: float, count: float, correct: float) -> float:
    return loss / count


def _rmse(loss: float, count: float, *tallies: float) -> float:
    return math.sqrt(loss / count)


def _mae(loss: float, count: float, correct: float, error: float, *tallies: float) -> float:
    """From the summed absolute errors."""
    return error / count


def _r2(
    loss: float, count: float, correct: float, error: float, total: float, squares: float
) -> float:
    """From the sums of the targets and of their squares; NaN where all targets are equal."""
    spread = squares - total * total / count
    return 1 - loss / spread if spread > 0 else math.nan


def _f1(
    loss: float, count: float, correct: float, hits: float, false: float, missed: float
) -> float:
    """From the numbers of classes found, wrongly found and missed; 1 where there are none."""
    wrong = false + missed
    return 2 * hits / (2 * hits + wrong) if hits or wrong else 1.0


ACCURACY = Metric(
    "accuracy",
    "max",
    _accuracy,
    percent=True,
    digits=1,
    lowest=0.0,
    highest=1.0,
    about="Share of the server's whole evaluation set that the model gets right after a round.",
)
PERPLEXITY = Metric(
    "perplexity",
    "min",
    _perplexity,
    lowest=0.0,
    log=True,
    about=(
        "exp of the mean loss, in nats, over the predicted tokens of the server's whole evaluation "
        "set; 1 is perfect."
    ),
)
RMSE = Metric(
    "rmse",
    "min",
    _rmse,
    label="RMSE",
    digits=3,
    lowest=0.0,
    about="Root of the mean squared error over the server's whole evaluation set.",
)
MAE = Metric("mae", "min", _mae, label="MAE", digits=3, lowest=0.0, about="Mean absolute error.")
R2 = Metric(
    "r2", "max", _r2, label="R2", digits=3, highest=1.0, about="Share of explained variance."
)
F1 = Metric(
    "f1",
    "max",
    _f1,
    label="F1",
    percent=True,
    digits=1,
    lowest=0.0,
    highest=1.0,
    about=(
        "Harmonic mean of precision and recall over all classes together (micro), on the server's "
        "whole evaluation set."
    ),
)
EXACT = Metric(
    "exact_match",
    "max",
    _accuracy,
    label="Exact match",
    percent=True,
    digits=1,
    lowest=0.0,
    highest=1.0,
    about="Share of the examples of which every class is right.",
)
LOSS = Metric(
    "loss",
    "min",
    _loss,
    digits=4,
    about="Mean of the task's own loss over the server's whole evaluation set.",
)
METRICS: Mapping[str, Metric] = {row.name: row for row in (PERPLEXITY, ACCURACY, LOSS)}
"""Name -> metric. `loss` is last because every task reports it too."""


def metric_named(metric: str | Metric, *, where: str) -> Metric:
    """Return the metric of a task, and check that it can be computed.

    Args:
      metric: the name of a row of `METRICS`, or a custom metric.
      where: start of an error message.

    Raises:
      ConfigError: if the name is unknown, or the metric has no `from_sums`.
    """
    known = metric in METRICS if isinstance(metric, str) else isinstance(metric, Metric)
    if not known:
        raise ConfigError(
            f"{where}: metric {metric!r} is unknown; choose loss, accuracy or perplexity, or give "
            "a fedpeft.Metric with from_sums"
        )
    found = METRICS[metric] if isinstance(metric, str) else metric
    if found.from_sums is None:
        raise ConfigError(f"{where}: metric {found.name!r} has no from_sums; give it a function")
    return found


def metric_in(
    figures: Iterable[Mapping[str, object]], recorded: Mapping[str, Any] | None = None
) -> Metric:
    """Return the metric by which a run was judged.

    Args:
      figures: figures of its rounds, or its summary: name -> value.
      recorded: the metric recorded in the run folder (`environment.json`), if any.

    Returns:
      The recorded metric; else the first row of `METRICS` among the figures; else accuracy.
    """
    if recorded:
        known = {field.name for field in dataclasses.fields(Metric)}
        own = Metric(**{key: value for key, value in recorded.items() if key in known})
        return METRICS.get(own.name, own)
    seen = {name for each in figures for name in each}
    return next((row for name, row in METRICS.items() if name in seen), ACCURACY)
