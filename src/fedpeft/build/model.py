"""From a resolved experiment to its model, its data and the settings of its clients.

The rooms below take plain values: requests and settings are made from the experiment's tables here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch

from fedpeft.build.privacy_of_run import PrivacyOfRun
from fedpeft.client.optimizers import OptimizerSettings
from fedpeft.client.schedules import Schedule
from fedpeft.client.settings import LocalSettings
from fedpeft.core.errors import ConfigError
from fedpeft.data.bundled import BUNDLED_DATASETS
from fedpeft.data.drawn import Sizes
from fedpeft.data.examples import Federated
from fedpeft.data.load import load_data
from fedpeft.data.request import Columns, DataRequest, TransformSpec
from fedpeft.data.schemes import PartitionRequest
from fedpeft.experiment.epsilon import is_settled, with_examples
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.resolve import Resolved, learning_rate, resolve
from fedpeft.experiment.starting import find_adapter
from fedpeft.models.source import ModelRequest, load_model, sketch_model
from fedpeft.models.stored import num_weights
from fedpeft.models.tasks import Task
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.start import start_from
from fedpeft.tuning.tuned import TunedModel
from fedpeft.wire.stages import Stage


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
    """Load a run's model and apply its tuning method; the delta is a new one."""
    loaded = load_model(model_request(resolved, num_labels))
    return tune(loaded, tuning_request(resolved))


def build_start(resolved: Resolved, num_labels: int | None) -> TunedModel:
    """Build a run's tuned model as it is before round 1: with the adapter that it starts from.

    Raises:
      ModelError: if there is no such adapter, or it does not fit the model.
    """
    tuned = build_tuned(resolved, num_labels)
    adapter = find_adapter(resolved.experiment.tuning)
    if adapter is not None:
        start_from(tuned, adapter)
    return tuned


def sketch_run(experiment: Experiment, num_labels: int | None = None) -> Sketch:
    """Build the shapes of a run on the `meta` device.

    Args:
      experiment: resolved or not.
      num_labels: number of classes of the data, where they were read; `model.num_labels` goes
        before it. Without either, the checkpoint's own head counts.
    """
    resolved = resolve(experiment)
    bundled = BUNDLED_DATASETS.get(resolved.experiment.data.source)
    known = bundled.num_labels if bundled else None
    num_labels = resolved.experiment.model.num_labels or num_labels or known
    tuned = tune(sketch_model(model_request(resolved, num_labels)), tuning_request(resolved))
    privacy = PrivacyOfRun(resolved.experiment)
    privacy.refuse_model(tuned)
    total = num_weights(tuned.model)
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
    return resolved.changed(model={"num_labels": labels})


def fit_privacy(resolved: Resolved, data: Federated) -> Resolved:
    """Take the public number of examples of a client from the data, where privacy needs it."""
    if is_settled(resolved.experiment):
        return resolved
    total = sum(Sizes(data.clients).values())
    return replace(
        resolved, experiment=with_examples(resolved.experiment, total, len(data.clients))
    )


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
        pooling=model.pooling,
        dtype=model.dtype,
        quantization=model.quantization,
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
    columns = {each.name: keys.pop(each.name) for each in fields(Columns)}
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
        max_steps=client.max_steps,
        accumulation=client.accumulation,
        gradient_clip=client.gradient_clip,
        schedule=Schedule(client.schedule, client.warmup),
        round_schedule=Schedule(client.round_schedule, client.round_warmup, client.round_final),
        rounds=experiment.federation.rounds,
        by_length=client.by_length,
        checkpointing=client.gradient_checkpointing,
    )
