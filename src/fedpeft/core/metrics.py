"""Metrics: the one figure by which a task, and a finished run, is judged.

    sums over a test set ──from_sums──> figure ──text──> 85.1 %
    loss 6.2, count 40, correct 34      0.851

A metric knows in which direction it improves and how it is written, so that tables, pages and model
cards need not know any metric by name. A run folder keeps all of it but `from_sums`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from fedpeft.core.errors import ConfigError

__all__ = ["ACCURACY", "METRICS", "PERPLEXITY", "FromSums", "Metric", "metric_in", "metric_named"]

FromSums: TypeAlias = Callable[[float, float, float], float]
"""(summed loss, number of predictions > 0, summed right predictions) over a test set -> figure."""


@dataclass(frozen=True)
class Metric:
    """A figure by which models are compared.

    Attributes:
      name: in records and JSON, as `mae`; the best figure of a run is `best_mae`.
      better: whether a larger (`max`) or a smaller (`min`) figure is better.
      from_sums: works the figure out; a function of a module, where worker processes are used. None
        where a finished run was read back: its figures are in its records.
      label: what texts call it; "" is the name with a capital.
      percent: whether it is a share, 0 to 1, that is written in percent.
      digits: decimal places in texts, of percent where these are written.
      lowest: smallest possible figure; None where there is no bound.
      highest: largest possible figure; None where there is no bound.
      log: whether figures are drawn on a logarithmic axis; they must be positive.
      about: what it is, in a sentence.

    Raises:
      ConfigError: if the name or the direction is not allowed.
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
                f"metric {self.name!r}: allowed is a name of small letters, digits and _, as 'mae'"
            )
        if self.better not in ("min", "max"):
            raise ConfigError(
                f"metric {self.name!r}: better is {self.better!r}; allowed are 'min' and 'max'"
            )

    @property
    def title(self) -> str:
        """What tables, axes and headings call it."""
        return self.label or self.name.capitalize()

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is: figures times this rise as a model improves."""
        return 1 if self.better == "max" else -1

    @property
    def scale(self) -> int:
        """What figures are multiplied by where they are written: 100 for percent."""
        return 100 if self.percent else 1

    @property
    def unit(self) -> str:
        """What follows a written figure."""
        return " %" if self.percent else ""

    def text(self, value: float) -> str:
        """Write a figure for people, without its unit."""
        return f"{value * self.scale:.{self.digits}f}"

    def tick(self, value: float) -> str:
        """Write a figure beside an axis, with its unit."""
        return f"{value * self.scale:.6g}{self.unit}"

    def best(self, values: Iterable[float]) -> float | None:
        """Return the best of some figures; None for none."""
        return max(values, key=lambda value: self.sign * value, default=None)

    def reaches(self, value: float, target: float) -> bool:
        """Whether a figure is at least as good as a target."""
        return self.sign * value >= self.sign * target

    def bounded(self, value: float) -> float:
        """Cut a figure, such as the end of an interval, to what is possible."""
        low = -math.inf if self.lowest is None else self.lowest
        return min(max(low, value), math.inf if self.highest is None else self.highest)

    def as_json(self) -> dict[str, Any]:
        """Return what a run folder keeps of it; see `metric_in`."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {key: value for key, value in found.items() if key != "from_sums"}


def _accuracy(loss: float, count: float, correct: float) -> float:
    return correct / count


def _perplexity(loss: float, count: float, correct: float) -> float:
    return math.exp(min(loss / count, 700.0))


def _loss(loss: float, count: float, correct: float) -> float:
    return loss / count


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
LOSS = Metric(
    "loss",
    "min",
    _loss,
    digits=4,
    about="Mean of the task's own loss over the server's whole evaluation set.",
)
METRICS: Mapping[str, Metric] = {row.name: row for row in (PERPLEXITY, ACCURACY, LOSS)}
"""By name. Every task reports `loss` too, so that it comes last."""


def metric_named(metric: str | Metric, *, where: str) -> Metric:
    """Return the metric that a task names, ready to be worked out.

    Args:
      metric: the name of a row of `METRICS`, or a metric of the user's own.
      where: begins the message of an error.

    Raises:
      ConfigError: if the name is unknown, or the metric has no `from_sums`.
    """
    if isinstance(metric, str) and metric not in METRICS:
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
    """Tell by which metric a run was judged.

    Args:
      figures: of its rounds, or its summary: name -> value.
      recorded: the metric as the run's folder keeps it (`environment.json`), where it does.

    Returns:
      the recorded metric; else the first row of `METRICS` that the figures have; else accuracy.
    """
    if recorded:
        known = {field.name for field in dataclasses.fields(Metric)}
        own = Metric(**{key: value for key, value in recorded.items() if key in known})
        return METRICS.get(own.name, own)
    seen = {name for each in figures for name in each}
    return next((row for name, row in METRICS.items() if name in seen), ACCURACY)
