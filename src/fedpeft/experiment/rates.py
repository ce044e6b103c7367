"""The local learning rate of an experiment, and its defaults."""

from __future__ import annotations

from fedpeft.experiment import tables
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.read import read_toml

__all__ = ["BUNDLED_MODEL", "learning_rate"]


BUNDLED_MODEL = "vit-glyphs-8"


def learning_rate(experiment: Experiment) -> float:
    """Return the local learning rate: the given one, else the searched one, else the paper's."""
    lr, method = experiment.client.lr, experiment.tuning.method
    if isinstance(lr, float | int):
        return float(lr)
    searched = read_toml(None)["client"]["lr"] if experiment.model.name == BUNDLED_MODEL else {}
    table = {**tables.PAPER_LR, **searched, **(lr or {})}
    return float(table.get(method, table["bias"]))
