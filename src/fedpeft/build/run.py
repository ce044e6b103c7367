"""From an experiment to the parts of a run: model, data, engine, plan.

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
from fedpeft.build.model import build_tuned, check_device, fit_labels, load_run_data, up_stages
from fedpeft.build.prefix import PrefixNote
from fedpeft.build.privacy_of_run import PrivacyOfRun
from fedpeft.build.score import score_clients, scored_once
from fedpeft.build.stability import make_buffering, make_conditions
from fedpeft.client.local import LocalSettings
from fedpeft.core.errors import ConfigError
from fedpeft.data.examples import Federated
from fedpeft.experiment.callbacks import Callback
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.resolve import Resolved, requested_clients
from fedpeft.rounds.job import RunEngine
from fedpeft.rounds.round_plan import RoundPlan
from fedpeft.server.state import ServerState
from fedpeft.tuning.tuned import TunedModel, move, read_buffers, read_delta

__all__ = ["BuiltRun", "assemble", "build_run"]


@dataclass(frozen=True)
class BuiltRun:
    """All parts of a run.

    Attributes:
      experiment: resolved.
      privacy: of the run.
      tuned: the server's own model, for evaluation and export.
      data: of all clients, and the test set.
      plan: of every round.
      engine: runs the clients; to be closed.
      settings: of local training; evaluation takes device and precision from them.
      start: the state before round 1.
      evaluate: from a state to metrics on the server's test set.
      evaluate_clients: from a state to the headline metric of each client; None where it is not
        reported.
      prefix: the decision on the frozen prefix.
      callbacks: functions to call around rounds.
    """

    experiment: Experiment
    privacy: PrivacyOfRun
    tuned: TunedModel
    data: Federated
    plan: RoundPlan
    engine: RunEngine
    settings: LocalSettings
    start: ServerState
    evaluate: Callable[[ServerState], Mapping[str, float]]
    evaluate_clients: Callable[[ServerState], Mapping[str, float]] | None
    prefix: PrefixNote
    callbacks: tuple[Callback, ...] = ()


def build_run(resolved: Resolved) -> BuiltRun:
    """Load model and data, tune, start the engine.

    Raises:
      ConfigError: if data, model and federation do not fit.
    """
    build_engine = engine_builder(resolved.experiment)
    check_device(resolved.experiment)
    data = load_run_data(resolved)
    resolved = fit_labels(resolved, data)
    tuned = build_tuned(resolved, resolved.experiment.model.num_labels)
    return assemble(resolved, tuned, data, build_engine)


def assemble(
    resolved: Resolved, tuned: TunedModel, data: Federated, build_engine: BuildEngine
) -> BuiltRun:
    """Put a tuned model and a data set together with federation, client, wire and engine.

    Args:
      resolved: the experiment; its model, tuning and data parts are not read.
      tuned: the model; the run owns it from here on.
      data: of all clients.
      build_engine: builds the engine from the client's side of the run.
    """
    privacy = PrivacyOfRun(resolved.experiment)
    plan = _round_plan(resolved, privacy, tuned, data)
    start = privacy.start(plan.algorithm.init(read_delta(tuned), read_buffers(tuned)))
    side = client_side(resolved, tuned, data)
    engine = build_engine(side)
    move(tuned, side.settings.device)
    score = scored_once(lambda state: engine.evaluate(state.delta, state.buffers))
    return BuiltRun(
        side.resolved.experiment,
        privacy,
        tuned,
        data,
        plan,
        engine,
        side.settings,
        start,
        lambda state: tuned.loaded.task.metrics(*score(state).sums()),
        (lambda state: score_clients(score(state), tuned, data))
        if resolved.experiment.federation.evaluate_clients
        else None,
        side.prefix,
        resolved.callbacks,
    )


def _round_plan(
    resolved: Resolved, privacy: PrivacyOfRun, tuned: TunedModel, data: Federated
) -> RoundPlan:
    experiment, federation = resolved.experiment, resolved.experiment.federation
    if federation.clients_per_round > len(data.clients):
        raise ConfigError(
            f"federation.clients_per_round: found {federation.clients_per_round}; allowed is at "
            f"most {len(data.clients)} (the clients that data.source gives)"
        )
    return RoundPlan(
        algorithm=privacy.algorithm(resolved.algorithm, tuned.spec),
        sampler=privacy.secret_sampler(len(data.clients)) or resolved.sampler,
        cohort_size=requested_clients(experiment, len(data.clients)),
        spec=tuned.spec,
        buffer_spec=tuned.buffer_spec,
        seed=experiment.seed,
        expected_cohort=float(federation.clients_per_round),
        up=up_stages(resolved),
        down=resolved.down,
        min_replies=privacy.min_replies,
        conditions=make_conditions(resolved, tuned, data),
        buffering=make_buffering(resolved),
    )
