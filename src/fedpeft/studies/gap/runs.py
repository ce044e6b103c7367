"""Features of finished runs: the same test examples through each run's own tuned model.

    test set ──> run 1's model ──> features, label "bias"    ┐
             ──> run 2's model ──> features, label "full"    ├──> LDA, label = run
             ──> run 3's model ──> features, label "prompt"  ┘

Runs of one backbone on one data set can be compared; the distances show how differently tuning
methods have changed the input of the head. Head-tuning leaves the backbone's own features.

Reference: Fig. 4 of Sun et al., Exploring Parameter-Efficient Fine-Tuning to Enable Foundation
Models in Federated Learning, IEEE BigData 2024; the procedure is our reading of their code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpeft.build.model import load_run_data
from fedpeft.core import seeds
from fedpeft.core.errors import ConfigError
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.resolve import Resolved
from fedpeft.runs.folder import RunFolder, stored_experiment
from fedpeft.runs.load import load_run
from fedpeft.studies.gap.features import SPLITS, check_option, features_of, sample_of

__all__ = ["RunFeatures", "RunsRequest", "label_runs", "read_run_features"]

_FREE = {"partition", "budget", "num_examples"}
"""Keys of `[data]` that do not change the test examples."""


@dataclass(frozen=True)
class RunsRequest:
    """The runs of an analysis.

    Attributes:
      runs: label -> run folder.
      split: `test` or `train`.
      sample: largest number of examples, the same for every run; None takes all.
      seed: seed of the sample.
    """

    runs: Mapping[str, Path]
    split: str = "test"
    sample: int | None = None
    seed: int = 1


@dataclass(frozen=True)
class RunFeatures:
    """Features of the same examples in several runs.

    Attributes:
      rows: label -> features [N, D].
      methods: label -> tuning method.
      model: as in `model.name`.
      source: as in `data.source`.
    """

    rows: Mapping[str, NDArray[np.float64]]
    methods: Mapping[str, str]
    model: str
    source: str


def label_runs(texts: Sequence[str]) -> dict[str, Path]:
    """Read `[NAME=]DIR`; an unnamed run takes its folder's name.

    Raises:
      ConfigError: if two runs would have one label.
    """
    runs: dict[str, Path] = {}
    for text in texts:
        name, sign, folder = text.partition("=")
        named = bool(sign) and not Path(text).exists()
        label, path = (name, Path(folder)) if named else (Path(text).name, Path(text))
        label = label or path.resolve().name
        if label in runs:
            raise ConfigError(
                f"gap: two runs are called {label!r} ({runs[label]} and {path}); "
                "give one of them a name: NAME=DIR"
            )
        runs[label] = path
    return runs


def read_run_features(request: RunsRequest) -> RunFeatures:
    """Load every run's final model and compute the features of the runs' common examples.

    Raises:
      ConfigError: if an option is wrong, or the runs differ in model or data.
      RunFolderError: if a folder is not a finished run.
    """
    check_option("--split", request.split, SPLITS)
    if not request.runs:
        raise ConfigError("gap: found no runs; name three run folders or more")
    experiments = {
        label: stored_experiment(RunFolder(folder)) for label, folder in request.runs.items()
    }
    named, first = next(iter(experiments.items()))
    for label, experiment in experiments.items():
        _check_alike((named, first), (label, experiment))
    data = load_run_data(Resolved(first))
    examples = data.test if request.split == "test" else data.train
    rows = sample_of(len(examples), request.sample, seeds.derive(request.seed, "gap", "sample"))
    features = {}
    for label, folder in request.runs.items():
        tuned = load_run(folder).tuned
        loaded = dataclasses.replace(tuned.loaded, module=tuned.model.eval())
        features[label] = features_of(loaded, examples, rows)
    methods = {label: experiment.tuning.method for label, experiment in experiments.items()}
    return RunFeatures(features, methods, first.model.name, first.data.source)


def _check_alike(first: tuple[str, Experiment], other: tuple[str, Experiment]) -> None:
    """Compare the settings that decide the examples and the width of the features."""
    parts = [
        {"model.name": experiment.model.name, **experiment.data.model_dump(exclude=_FREE)}
        for _, experiment in (first, other)
    ]
    for key, value in parts[0].items():
        if parts[1][key] != value:
            where = key if "." in key else f"data.{key}"
            raise ConfigError(
                f"gap: runs can be compared on one backbone and the same examples only: {where} "
                f"is {value!r} in {first[0]!r} and {parts[1][key]!r} in {other[0]!r}; "
                "leave one of them out"
            )
