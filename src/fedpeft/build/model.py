"""From a resolved experiment to its model, its data and its client half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedpeft.build.privacy_of_run import PrivacyOfRun
from fedpeft.build.requests import data_request, model_request, tuning_request
from fedpeft.core.errors import ConfigError
from fedpeft.data.bundled import BUNDLED_DATASETS
from fedpeft.data.examples import Federated
from fedpeft.data.load import load_data
from fedpeft.experiment import tables
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.plugins import installed
from fedpeft.experiment.resolve import resolve
from fedpeft.models.source import load_model, sketch_model
from fedpeft.tuning.methods import tune
from fedpeft.tuning.tuned import TunedModel
from fedpeft.wire.stages import Stage

__all__ = [
    "Sketch",
    "build_tuned",
    "check_device",
    "fit_labels",
    "load_run_data",
    "sketch_run",
    "up_stages",
]


@dataclass(frozen=True)
class Sketch:
    """What `plan` needs: shapes, no weights.

    Attributes:
      experiment: resolved.
      tuned: the tuned model on the `meta` device.
      total_parameters: of the whole tuned model.
      up: stages from client to server, without those of privacy, which change no size.
      down: stages from server to client.
      privacy: of the run.
    """

    experiment: Experiment
    tuned: TunedModel
    total_parameters: int
    up: Sequence[Stage]
    down: Sequence[Stage]
    privacy: PrivacyOfRun


def build_tuned(experiment: Experiment, num_labels: int | None) -> TunedModel:
    """Load a run's model and apply its tuning method; the delta is the one before round 1."""
    loaded = load_model(model_request(experiment, num_labels))
    return tune(loaded, tuning_request(experiment))


def sketch_run(experiment: Experiment) -> Sketch:
    """Build the shapes of a run on the `meta` device."""
    experiment = resolve(experiment)
    num_labels = experiment.model.num_labels or _known_labels(experiment)
    tuned = tune(sketch_model(model_request(experiment, num_labels)), tuning_request(experiment))
    privacy = PrivacyOfRun(experiment)
    privacy.refuse_model(tuned)
    return Sketch(
        experiment,
        tuned,
        sum(parameter.numel() for parameter in tuned.model.parameters()),
        tables.make_stages(experiment.wire.up, "wire.up", installed()),
        tables.make_stages(experiment.wire.down, "wire.down", installed()),
        privacy,
    )


def up_stages(experiment: Experiment) -> tuple[Stage, ...]:
    """Build a resolved experiment's stages from client to server: privacy first."""
    private = PrivacyOfRun(experiment).stages
    return (*private, *tables.make_stages(experiment.wire.up, "wire.up", installed()))


def load_run_data(experiment: Experiment) -> Federated:
    """Load and partition a resolved experiment's data, for the inputs that its model takes.

    Raises:
      ConfigError: if the data set or the partition is not possible.
    """
    shape = sketch_model(model_request(experiment, experiment.model.num_labels or 2))
    return load_data(data_request(experiment, shape.task.name), shape.inputs)


def fit_labels(experiment: Experiment, data: Federated) -> Experiment:
    """Take the number of labels from the data, or compare it with what the file says."""
    said = experiment.model.num_labels
    if data.num_labels is None or said == data.num_labels:
        return experiment
    if said is not None and said < data.num_labels:
        raise ConfigError(
            f"model.num_labels: found {said}; {experiment.data.source} has {data.num_labels} "
            "labels. Leave the key out, or set it to at least that"
        )
    labels = said or data.num_labels
    model = experiment.model.model_copy(update={"num_labels": labels})
    return experiment.model_copy(update={"model": model})


def _known_labels(experiment: Experiment) -> int | None:
    row = BUNDLED_DATASETS.get(experiment.data.source)
    return row.num_labels if row else None


def check_device(experiment: Experiment) -> None:
    """Refuse a device that torch does not see here.

    Raises:
      ConfigError: naming the device.
    """
    device = experiment.engine.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"engine.device: found {device!r}, but torch {torch.__version__} sees no GPU here. "
            "Use 'cpu', or install a CUDA build of torch"
        )
