from __future__ import annotations

import dataclasses
import json

import pytest

from fedpeft.core.errors import ConfigError
from fedpeft.core.metrics import ACCURACY, METRICS, PERPLEXITY, Metric, metric_in, metric_named

MAE = Metric("mae", "min", lambda loss, count, correct: loss / count, label="MAE", digits=3)
R2 = Metric("r2", "max", lambda loss, count, correct: 1 - loss, highest=1.0)
ALL = (*METRICS.values(), MAE, R2)
FIGURES = [0.25, 0.5, 0.125, 0.75]


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_the_best_figure_reaches_all_others(metric):
    best = metric.best(FIGURES)
    assert all(metric.reaches(best, figure) for figure in FIGURES)
    assert best == sorted(FIGURES, key=lambda figure: metric.sign * figure)[-1]
    turned = dataclasses.replace(metric, better="min" if metric.better == "max" else "max")
    assert not all(turned.reaches(best, figure) for figure in FIGURES)
    assert metric.best([]) is None


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_a_folder_keeps_all_but_the_function(metric):
    kept = json.loads(json.dumps(metric.as_json(), allow_nan=False))
    assert dataclasses.replace(metric_in([], kept), from_sums=metric.from_sums) == metric
    assert metric_in([], {**kept, "of_a_later_version": 1}).name == metric.name


def test_figures_tell_a_known_metric():
    assert metric_in([{"loss": 1.0}, {"loss": 1.0, "perplexity": 3.0}]) is PERPLEXITY
    assert metric_in([{"loss": 1.0, "accuracy": 0.5}]) is ACCURACY
    assert metric_in([{"loss": 1.0}]) is METRICS["loss"]
    assert metric_in([{}]) is ACCURACY


def test_figures_are_written_as_the_metric_says():
    assert ACCURACY.text(0.8512) + ACCURACY.unit == "85.1 %"
    assert (MAE.text(0.8512) + MAE.unit, MAE.title) == ("0.851", "MAE")
    assert (ACCURACY.tick(0.07), PERPLEXITY.tick(20_000)) == ("7 %", "20000")


def test_intervals_end_where_figures_do():
    assert (ACCURACY.bounded(-0.5), ACCURACY.bounded(1.5)) == (0.0, 1.0)
    assert (R2.bounded(-0.5), R2.bounded(1.5)) == (-0.5, 1.0)
    assert PERPLEXITY.bounded(1e9) == 1e9


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Metric("F 1", "max"), r"metric 'F 1': allowed are lower-case letters"),
        (lambda: Metric("f1", "up"), r"better is 'up'; allowed are 'min' and 'max'"),
        (lambda: metric_named("mae", where="task 'x'"), r"task 'x': metric 'mae' is unknown; choo"),
        (
            lambda: metric_named(Metric("mae", "min"), where="task 'x'"),
            r"task 'x': metric 'mae' has no from_sums; give it a function",
        ),
    ],
)
def test_a_metric_that_cannot_be_used_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        wrong()
