"""The local learning rate of an experiment that names none."""

from __future__ import annotations

from fedpeft.experiment import tables
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.read import read_toml

__all__ = ["BUNDLED_MODEL", "learning_rate"]


BUNDLED_MODEL = "vit-glyphs-8"


def learning_rate(experiment: Experiment) -> float:
    """Return the local learning rate: as given, else the searched table, else the paper's."""
    lr, method = experiment.client.lr, experiment.tuning.method
    if isinstance(lr, float | int):
        return float(lr)
    defaults = tables.PAPER_LR
    if experiment.model.name == BUNDLED_MODEL:
        defaults = {**defaults, **read_toml(None)["client"]["lr"]}
    table = {**defaults, **(lr or {})}
    return float(table.get(method, table["bias"]))
