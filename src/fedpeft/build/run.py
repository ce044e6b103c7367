"""From an experiment to the things that run: model, data, engine, plan.

resolve        all defaults explicit
sketch_run     shapes only, for `plan`: no weights, data or network
build_tuned    the tuned model of a run, without its data
build_run      everything
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedpeft.build.engine import foreign_engine
from fedpeft.build.passes import num_together, resolve_passes
from fedpeft.build.prefix import PrefixNote, with_prefix
from fedpeft.build.requests import (
    data_request,
    learning_rate,
    local_settings,
    model_request,
    tuning_request,
)
from fedpeft.build.score import score_clients, scored_once
from fedpeft.build.stability import (
    asked_clients,
    make_buffering,
    make_conditions,
    resolve_stability,
)
from fedpeft.client.evaluate import Evaluation
from fedpeft.client.local import LocalSettings
from fedpeft.client.passes.many import many_trainer
from fedpeft.core.errors import ConfigError
from fedpeft.data.bundled import BUNDLED_DATASETS
from fedpeft.data.examples import Federated
from fedpeft.data.load import load_data
from fedpeft.engines.kinds import RunEngine
from fedpeft.engines.local import LocalEngine, block_size
from fedpeft.engines.scoring import make_scorer, score_all
from fedpeft.experiment import tables
from fedpeft.experiment.check import num_clients
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.privacy import (
    is_private,
    private_stages,
    refuse_model,
    resolve_privacy,
)
from fedpeft.models.locate import BUNDLED
from fedpeft.models.source import load_model, sketch_model
from fedpeft.rounds.client_half import ClientHalf
from fedpeft.rounds.round import RoundPlan
from fedpeft.server.sampling import fixed_cohort
from fedpeft.server.state import ServerState
from fedpeft.tuning.methods import resolve_options, tune
from fedpeft.tuning.tuned import (
    TunedModel,
    move,
    read_buffers,
    read_delta,
)
from fedpeft.wire.privacy import (
    SERVER_ROOT,
    constant_denominator,
    poisson_cohort,
    with_server_root,
)
from fedpeft.wire.stages import Stage

__all__ = [
    "BuiltRun",
    "Sketch",
    "assemble",
    "build_run",
    "build_tuned",
    "check_device",
    "fit_labels",
    "load_run_data",
    "make_half",
    "resolve",
    "sketch_run",
    "up_stages",
]


@dataclass(frozen=True)
class BuiltRun:
    """Everything that a run needs.

    Attributes:
      experiment: resolved.
      tuned: the server's own model, for evaluation and export.
      data: of all clients, and the test set.
      plan: of every round.
      engine: where the clients live; to be closed.
      settings: of local training; evaluation takes device and precision from them.
      start: the state before round 1.
      evaluate: from a state to metrics on the server's test set.
      evaluate_clients: from a state to a metric a client; None where it was not asked for.
      prefix: what is kept of the frozen layers below all that trains.
    """

    experiment: Experiment
    tuned: TunedModel
    data: Federated
    plan: RoundPlan
    engine: RunEngine
    settings: LocalSettings
    start: ServerState
    evaluate: Callable[[ServerState], Mapping[str, float]]
    evaluate_clients: Callable[[ServerState], Mapping[str, float]] | None
    prefix: PrefixNote


@dataclass(frozen=True)
class Sketch:
    """What `plan` needs: shapes, no weights.

    Attributes:
      experiment: resolved.
      tuned: the tuned model on the `meta` device.
      total_parameters: of the whole tuned model.
      up: stages from client to server.
      down: stages from server to client.
    """

    experiment: Experiment
    tuned: TunedModel
    total_parameters: int
    up: Sequence[Stage]
    down: Sequence[Stage]


def resolve(experiment: Experiment) -> Experiment:
    """Make every default explicit that depends on other keys.

    Raises:
      ConfigError: if an option is wrong.
    """
    tuning, data, client = experiment.tuning, experiment.data, experiment.client
    partition, federation = data.partition, experiment.federation
    smallest = 1 if data.source in BUNDLED_DATASETS else 10
    options = tables.algorithm_options(federation.algorithm, federation.options)
    partition = partition.model_copy(
        update={
            "min_examples": partition.min_examples or smallest,
            "clients": num_clients(experiment) or partition.clients,
        }
    )
    model = experiment.model.model_copy(update={"name": _absolute(experiment.model.name)})
    data = data.model_copy(update={"source": _absolute(data.source)})
    resolved = experiment.model_copy(
        update={
            "model": model,
            "tuning": tuning.model_copy(
                update={"options": resolve_options(tuning.method, tuning.options)}
            ),
            "data": data.model_copy(update={"partition": partition}),
            "client": client.model_copy(update={"lr": learning_rate(experiment)}),
            **resolve_stability(experiment, options),
            "engine": experiment.engine.model_copy(update={"workers": _workers(experiment)}),
            "sweep": [],
        }
    )
    return resolve_privacy(resolved)


def _absolute(name: str) -> str:
    """Make a local path independent of the folder that a command is called from."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() and not _is_bundled(name) else name


def _is_bundled(name: str) -> bool:
    return name in BUNDLED_DATASETS or name in BUNDLED


def build_tuned(experiment: Experiment, num_labels: int | None) -> TunedModel:
    """Load a run's model and apply its tuning method; the delta is the one before round 1."""
    loaded = load_model(model_request(experiment, num_labels))
    return tune(loaded, tuning_request(experiment))


def sketch_run(experiment: Experiment) -> Sketch:
    """Build the shapes of a run on the `meta` device."""
    experiment = resolve(experiment)
    num_labels = experiment.model.num_labels or _known_labels(experiment)
    tuned = tune(sketch_model(model_request(experiment, num_labels)), tuning_request(experiment))
    refuse_model(experiment, tuned)
    return Sketch(
        experiment,
        tuned,
        sum(parameter.numel() for parameter in tuned.model.parameters()),
        tables.make_stages(experiment.wire.up, "wire.up"),  # privacy changes no size
        tables.make_stages(experiment.wire.down, "wire.down"),
    )


def up_stages(experiment: Experiment) -> tuple[Stage, ...]:
    """Build a resolved experiment's stages from client to server: privacy first."""
    return (*private_stages(experiment), *tables.make_stages(experiment.wire.up, "wire.up"))


def load_run_data(experiment: Experiment) -> Federated:
    """Load and partition a resolved experiment's data, for the inputs that its model takes.

    Raises:
      ConfigError: if the data set or the partition is not possible.
    """
    shape = sketch_model(model_request(experiment, experiment.model.num_labels or 2))
    return load_data(data_request(experiment, shape.task.name), shape.inputs)


def build_run(experiment: Experiment) -> BuiltRun:
    """Load model and data, tune, start the engine.

    Raises:
      ConfigError: if data, model and federation do not fit.
    """
    experiment = resolve(experiment)
    check_device(experiment)
    data = load_run_data(experiment)
    experiment = fit_labels(experiment, data)
    tuned = build_tuned(experiment, experiment.model.num_labels)
    return assemble(experiment, tuned, data, foreign_engine(experiment, tuned, data))


def assemble(
    experiment: Experiment, tuned: TunedModel, data: Federated, engine: RunEngine | None = None
) -> BuiltRun:
    """Put a tuned model and a data set together with federation, client, wire and engine.

    Args:
      experiment: resolved; its model, tuning and data parts are not read.
      tuned: the model; the run owns it from here on.
      data: of all clients.
      engine: where the clients live; None starts the local engine.
    """
    refuse_model(experiment, tuned)
    settings = local_settings(experiment)
    plan = _round_plan(experiment, tuned, data)
    start = plan.algorithm.init(read_delta(tuned), read_buffers(tuned))
    if experiment.privacy.mode == "central":
        simulated = experiment.seed if experiment.privacy.reproducible_noise else None
        start = with_server_root(start, seed=simulated)
    prefixed = with_prefix(experiment, tuned, data, settings)
    experiment = resolve_passes(experiment, prefixed.tuned, prefixed.data, settings)
    half = functools.partial(make_half, prefixed.tuned, settings, experiment)
    workers = experiment.engine.workers or 1
    scorer = make_scorer(prefixed.tuned, prefixed.data.test, settings)
    evaluate: Callable[[Tensor, Tensor], Evaluation] = functools.partial(score_all, scorer)
    if engine is None:
        engine = local = LocalEngine(
            half,
            prefixed.data,
            num_workers=workers,
            block=block_size(tuned.spec.num_bytes, workers),
            clients_per_pass=num_together(experiment),
            scorer=scorer,
        )
        evaluate = local.evaluate
    move(tuned, settings.device)
    score = scored_once(lambda state: evaluate(state.delta, state.buffers))
    return BuiltRun(
        experiment,
        tuned,
        data,
        plan,
        engine,
        settings,
        start,
        lambda state: tuned.loaded.task.metrics(*score(state).sums()),
        (lambda state: score_clients(score(state), tuned, data))
        if experiment.federation.evaluate_clients
        else None,
        prefixed.note,
    )


def make_half(tuned: TunedModel, settings: LocalSettings, experiment: Experiment) -> ClientHalf:
    """Build the client half of a resolved experiment."""
    return ClientHalf(
        many_trainer(tuned, settings, clients_per_pass=num_together(experiment)),
        up_stages(experiment),
        tables.make_stages(experiment.wire.down, "wire.down"),
        tuned.spec,
        is_private(experiment),
    )


def _round_plan(experiment: Experiment, tuned: TunedModel, data: Federated) -> RoundPlan:
    federation = experiment.federation
    if federation.clients_per_round > len(data.clients):
        raise ConfigError(
            f"federation.clients_per_round: found {federation.clients_per_round}; allowed is at "
            f"most {len(data.clients)} (the clients that data.source gives)"
        )
    algorithm = tables.make_algorithm(federation.algorithm, federation.options)
    private = is_private(experiment)
    at_client_level = private and experiment.privacy.mode != "example"
    probability = federation.clients_per_round / len(data.clients)
    asked = asked_clients(experiment, len(data.clients))
    return RoundPlan(
        algorithm=constant_denominator(algorithm, tuned.spec) if private else algorithm,
        sampler=lambda clients, number: fixed_cohort(
            clients, min(asked, len(clients)), seed=experiment.seed, round=number
        ),
        spec=tuned.spec,
        buffer_spec=tuned.buffer_spec,
        seed=experiment.seed,
        expected_cohort=float(federation.clients_per_round),
        up=up_stages(experiment),
        down=tables.make_stages(experiment.wire.down, "wire.down"),
        min_replies=0 if at_client_level else federation.min_replies,
        secret_sampler=(
            lambda clients, number, memory: poisson_cohort(
                clients, probability, root=memory[SERVER_ROOT], round=number
            )
        )
        if federation.sampling == "poisson"
        else None,
        conditions=make_conditions(experiment, tuned, data),
        buffering=make_buffering(experiment),
    )


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


def _workers(experiment: Experiment) -> int:
    engine = experiment.engine
    if engine.device != "cpu" and engine.name == "local":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return engine.workers or max(1, min(cores or 1, experiment.federation.clients_per_round))


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
