"""From an experiment's tables to the plain values that the layers take."""

from __future__ import annotations

from fedpeft.build.privacy_of_run import PrivacyOfRun
from fedpeft.client.local import LocalSettings
from fedpeft.client.optimizers import OptimizerSettings
from fedpeft.data.request import Columns, DataRequest, TransformSpec
from fedpeft.data.schemes import PartitionRequest
from fedpeft.experiment import tables
from fedpeft.experiment.experiment import Experiment, Normalization
from fedpeft.experiment.plugins import installed
from fedpeft.experiment.rates import learning_rate
from fedpeft.models.source import ModelRequest
from fedpeft.tuning.methods import TuningRequest

__all__ = ["data_request", "local_settings", "model_request", "tuning_request"]


def model_request(experiment: Experiment, num_labels: int | None) -> ModelRequest:
    """Say what model an experiment wants, with so many labels."""
    model = experiment.model
    return ModelRequest(
        name=model.name,
        task=model.task,
        num_labels=num_labels,
        config=model.config,
        revision=model.revision,
        head_init=experiment.tuning.head_init,
        seed=experiment.seed,
    )


def tuning_request(experiment: Experiment) -> TuningRequest:
    """Say how an experiment tunes its model."""
    tuning = experiment.tuning
    blocks = (tuning.blocks[0], tuning.blocks[1]) if tuning.blocks else None
    rule = tables.method_rule(tuning.method, installed())
    return TuningRequest(tuning.method, tuning.options, blocks, experiment.seed, rule)


def data_request(experiment: Experiment, task: str) -> DataRequest:
    """Say what data a resolved experiment wants, for a task."""
    data, partition = experiment.data, experiment.data.partition
    given = data.transforms.normalize
    by_hand = (tuple(given.mean), tuple(given.std)) if isinstance(given, Normalization) else None
    return DataRequest(
        source=data.source,
        task=task,
        subset=data.subset,
        revision=data.revision,
        train_split=data.train_split,
        test_split=data.test_split,
        columns=Columns(data.image, data.text, data.label, data.client, data.video),
        max_length=data.max_length,
        budget=data.budget,
        fidelity=data.fidelity,
        evaluate_on=data.evaluate_on,
        seed=experiment.seed,
        transforms=TransformSpec(
            normalize=by_hand or str(given),
            resize=data.transforms.resize,
            random_crop=data.transforms.random_crop,
            flip=data.transforms.flip,
            frame_offset=data.transforms.frame_offset,
        ),
        partition=PartitionRequest(
            scheme=partition.scheme,
            clients=partition.clients,
            alpha=partition.alpha,
            min_examples=partition.min_examples or 1,
            seed=experiment.seed,
            classes_per_client=partition.classes_per_client,
            examples_per_client=partition.examples_per_client,
            options=partition.options,
            rule=tables.partition_rule(partition.scheme, installed()),
        ),
    )


def local_settings(experiment: Experiment) -> LocalSettings:
    """Say how an experiment's clients train."""
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
