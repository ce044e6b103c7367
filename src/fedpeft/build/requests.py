"""From an experiment's tables to the plain values that models, tuning, data and clients take."""

from __future__ import annotations

from collections.abc import Mapping

from fedpeft.build.privacy_of_run import PrivacyOfRun
from fedpeft.client.local import LocalSettings
from fedpeft.client.optimizers import OptimizerSettings
from fedpeft.data.request import Columns, DataRequest, TransformSpec
from fedpeft.data.schemes import PartitionRequest
from fedpeft.experiment.rates import learning_rate
from fedpeft.experiment.resolve import Resolved
from fedpeft.models.source import ModelRequest
from fedpeft.models.tasks import Task
from fedpeft.tuning.methods import TuningRequest

__all__ = ["data_request", "local_settings", "model_request", "tuning_request"]


def model_request(resolved: Resolved, num_labels: int | None) -> ModelRequest:
    """Return the request for an experiment's model, with so many labels."""
    experiment = resolved.experiment
    model = experiment.model
    return ModelRequest(
        name=model.name,
        task=resolved.task,
        num_labels=num_labels,
        config=model.config,
        revision=model.revision,
        head_init=experiment.tuning.head_init,
        seed=experiment.seed,
    )


def tuning_request(resolved: Resolved) -> TuningRequest:
    """Return the request for an experiment's tuning method."""
    tuning, seed = resolved.experiment.tuning, resolved.experiment.seed
    blocks = (tuning.blocks[0], tuning.blocks[1]) if tuning.blocks else None
    return TuningRequest(tuning.method, tuning.options, blocks, seed, resolved.method)


def data_request(resolved: Resolved, task: str | Task) -> DataRequest:
    """Return the request for an experiment's data, for a task.

    Each key of `[data]` is the field of that name in `DataRequest` or one of its parts.
    """
    seed = resolved.experiment.seed
    keys = resolved.experiment.data.model_dump(exclude={"num_examples"})
    transforms, partition = keys.pop("transforms"), keys.pop("partition")
    columns = {name: keys.pop(name) for name in ("image", "text", "label", "client", "video")}
    if isinstance(given := transforms["normalize"], Mapping):
        transforms["normalize"] = (tuple(given["mean"]), tuple(given["std"]))
    partition |= {"min_examples": partition["min_examples"] or 1}
    return DataRequest(
        **keys,
        task=task,
        seed=seed,
        columns=Columns(**columns),
        transforms=TransformSpec(**transforms),
        partition=PartitionRequest(**partition, seed=seed, rule=resolved.partition),
    )


def local_settings(resolved: Resolved) -> LocalSettings:
    """Return how an experiment's clients train."""
    experiment = resolved.experiment
    client, engine = experiment.client, experiment.engine
    return LocalSettings(
        epochs=client.epochs,
        batch_size=client.batch_size,
        optimizer=OptimizerSettings(
            name=client.optimizer,
            lr=learning_rate(experiment),
            momentum=client.momentum,
            nesterov=client.nesterov,
            weight_decay=client.weight_decay,
        ),
        prox_mu=client.prox_mu or 0.0,
        device=engine.device,
        precision=engine.precision,
        privacy=PrivacyOfRun(experiment).gradient,
    )
