"""From a resolved experiment to its model, its data and its client half."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedpeft.build.privacy_of_run import PrivacyOfRun
from fedpeft.build.requests import data_request, model_request, tuning_request
from fedpeft.core.errors import ConfigError
from fedpeft.data.bundled import BUNDLED_DATASETS
from fedpeft.data.examples import Federated
from fedpeft.data.load import load_data
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.resolve import Resolved, resolve
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
    "payload_bytes",
    "sketch_run",
    "up_stages",
]


@dataclass(frozen=True)
class Sketch:
    """The shapes of a run, without weights, for `plan`.

    Attributes:
      resolved: the experiment.
      tuned: the tuned model on the `meta` device.
      total_parameters: number of parameters of the whole tuned model.
      privacy: of the run.
    """

    resolved: Resolved
    tuned: TunedModel
    total_parameters: int
    privacy: PrivacyOfRun

    @property
    def experiment(self) -> Experiment:
        """The experiment, with all defaults explicit."""
        return self.resolved.experiment


def build_tuned(resolved: Resolved, num_labels: int | None) -> TunedModel:
    """Load a run's model and apply its tuning method; the delta is the one before round 1."""
    loaded = load_model(model_request(resolved, num_labels))
    return tune(loaded, tuning_request(resolved))


def sketch_run(experiment: Experiment) -> Sketch:
    """Build the shapes of a run on the `meta` device."""
    resolved = resolve(experiment)
    bundled = BUNDLED_DATASETS.get(resolved.experiment.data.source)
    known = bundled.num_labels if bundled else None
    num_labels = resolved.experiment.model.num_labels or known
    tuned = tune(sketch_model(model_request(resolved, num_labels)), tuning_request(resolved))
    privacy = PrivacyOfRun(resolved.experiment)
    privacy.refuse_model(tuned)
    total = sum(parameter.numel() for parameter in tuned.model.parameters())
    return Sketch(resolved, tuned, total, privacy)


def payload_bytes(tuned: TunedModel) -> int:
    """Return the bytes of one client's payload, one way, before any stage."""
    return tuned.spec.num_bytes + tuned.buffer_spec.num_bytes


def up_stages(resolved: Resolved) -> tuple[Stage, ...]:
    """Build a run's stages from client to server: privacy first."""
    return (*PrivacyOfRun(resolved.experiment).stages, *resolved.up)


def load_run_data(resolved: Resolved) -> Federated:
    """Load and partition a run's data, for the inputs that its model takes.

    Raises:
      ConfigError: if the data set or the partition is not possible.
    """
    num_labels = resolved.experiment.model.num_labels
    shape = sketch_model(model_request(resolved, num_labels or 2))
    return load_data(data_request(resolved, shape.task), shape.inputs)


def fit_labels(resolved: Resolved, data: Federated) -> Resolved:
    """Take the number of labels from the data, or compare it with the experiment's."""
    experiment = resolved.experiment
    given = experiment.model.num_labels
    if data.num_labels is None or given == data.num_labels:
        return resolved
    if given is not None and given < data.num_labels:
        raise ConfigError(
            f"model.num_labels: found {given}; {experiment.data.source} has {data.num_labels} "
            "labels. Leave the key out, or set it to at least that"
        )
    labels = given or data.num_labels
    return resolved.changed(model=experiment.model.model_copy(update={"num_labels": labels}))


def check_device(experiment: Experiment) -> None:
    """Refuse a device that torch cannot use here.

    Raises:
      ConfigError: naming the device.
    """
    device = experiment.engine.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"engine.device: found {device!r}, but torch {torch.__version__} sees no GPU here. "
            "Use 'cpu', or install a CUDA build of torch"
        )
