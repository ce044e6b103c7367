"""From an experiment to the things that run: model, data, engine, plan.

resolve        all defaults explicit
sketch_run     shapes only, for `plan`: no weights, data or network
build_tuned    the tuned model of a run, without its data
build_run      everything
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedpeft.build.client_side import client_side
from fedpeft.build.engine import BuildEngine, engine_builder
from fedpeft.build.model import (
    build_tuned,
    check_device,
    fit_labels,
    load_run_data,
    up_stages,
)
from fedpeft.build.prefix import PrefixNote
from fedpeft.build.score import score_clients, scored_once
from fedpeft.build.stability import make_buffering, make_conditions
from fedpeft.client.local import LocalSettings
from fedpeft.core.errors import ConfigError
from fedpeft.data.examples import Federated
from fedpeft.experiment import tables
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.privacy import is_private
from fedpeft.experiment.resolve import asked_clients, resolve
from fedpeft.rounds.job import RunEngine
from fedpeft.rounds.round import RoundPlan
from fedpeft.server.sampling import fixed_cohort
from fedpeft.server.state import ServerState
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

__all__ = ["BuiltRun", "assemble", "build_run"]


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


def build_run(experiment: Experiment) -> BuiltRun:
    """Load model and data, tune, start the engine.

    Raises:
      ConfigError: if data, model and federation do not fit.
    """
    experiment = resolve(experiment)
    build_engine = engine_builder(experiment)
    check_device(experiment)
    data = load_run_data(experiment)
    experiment = fit_labels(experiment, data)
    tuned = build_tuned(experiment, experiment.model.num_labels)
    return assemble(experiment, tuned, data, build_engine)


def assemble(
    experiment: Experiment, tuned: TunedModel, data: Federated, build_engine: BuildEngine
) -> BuiltRun:
    """Put a tuned model and a data set together with federation, client, wire and engine.

    Args:
      experiment: resolved; its model, tuning and data parts are not read.
      tuned: the model; the run owns it from here on.
      data: of all clients.
      build_engine: builds where the clients live, from the client's side of the run.
    """
    plan = _round_plan(experiment, tuned, data)
    start = plan.algorithm.init(read_delta(tuned), read_buffers(tuned))
    if experiment.privacy.mode == "central":
        simulated = experiment.seed if experiment.privacy.reproducible_noise else None
        start = with_server_root(start, seed=simulated)
    side = client_side(experiment, tuned, data)
    engine = build_engine(side)
    move(tuned, side.settings.device)
    score = scored_once(lambda state: engine.evaluate(state.delta, state.buffers))
    return BuiltRun(
        side.experiment,
        tuned,
        data,
        plan,
        engine,
        side.settings,
        start,
        lambda state: tuned.loaded.task.metrics(*score(state).sums()),
        (lambda state: score_clients(score(state), tuned, data))
        if experiment.federation.evaluate_clients
        else None,
        side.prefix,
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
