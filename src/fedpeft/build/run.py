"""From an experiment to the parts of a run: model, data, engine, plan.

resolve        all defaults explicit
sketch_run     shapes only, for `plan`: no weights, data or network
build_start    the tuned model of a run, without its data
build_run      everything
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedpeft.answers.judge import Exam
from fedpeft.build.client_side import client_side
from fedpeft.build.engine import BuildEngine, engine_builder
from fedpeft.build.judging import build_exam
from fedpeft.build.model import (
    build_start,
    check_device,
    fit_labels,
    fit_privacy,
    load_run_data,
    up_stages,
)
from fedpeft.build.prefix import PrefixNote
from fedpeft.build.privacy_of_run import PrivacyOfRun
from fedpeft.client.evaluate import Evaluation
from fedpeft.client.settings import LocalSettings
from fedpeft.core.errors import ConfigError
from fedpeft.data.drawn import Sizes
from fedpeft.data.examples import Federated
from fedpeft.experiment.callbacks import Callback
from fedpeft.experiment.experiment import Experiment, StabilityConfig
from fedpeft.experiment.resolve import Resolved, requested_clients
from fedpeft.models.tasks import Task
from fedpeft.rounds.attendance import Buffering
from fedpeft.rounds.job import RunEngine
from fedpeft.rounds.round_plan import RoundPlan
from fedpeft.rounds.sizes import TYPICAL_NOTES, wire_bytes
from fedpeft.server.availability import Conditions
from fedpeft.server.clock import Costs, Stragglers
from fedpeft.server.state import ServerState
from fedpeft.server.traces import PHONES, Trace, phones, read_trace
from fedpeft.server.weights import Weights
from fedpeft.tuning.tuned import TunedModel, move, read_buffers, read_delta


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
      score: from a state to the scores of each example of the server's test set; the newest are
        kept.
      evaluate: from a state to metrics on the server's test set.
      evaluate_clients: from a state to the headline metric of each client: None for a client
        whose test examples, or one of whose classes, the test set lacks. The whole is None where
        figures of clients are not reported.
      prefix: the decision on the frozen prefix.
      callbacks: functions to call around rounds.
      exam: what a language model is asked before round 1 and at the end; None where nothing is.
    """

    experiment: Experiment
    privacy: PrivacyOfRun
    tuned: TunedModel
    data: Federated
    plan: RoundPlan
    engine: RunEngine
    settings: LocalSettings
    start: ServerState
    score: Callable[[ServerState], Evaluation]
    evaluate: Callable[[ServerState], Mapping[str, float]]
    evaluate_clients: Callable[[ServerState], Mapping[str, float | None]] | None
    prefix: PrefixNote
    callbacks: tuple[Callback, ...] = ()
    exam: Exam | None = None


def build_run(resolved: Resolved) -> BuiltRun:
    """Load model and data, tune, start the engine.

    Raises:
      ConfigError: if data, model and federation do not fit.
    """
    build_engine = engine_builder(resolved.experiment)
    check_device(resolved.experiment)
    data = load_run_data(resolved)
    resolved = fit_labels(resolved, data)
    tuned = build_start(resolved, resolved.experiment.model.num_labels)
    return assemble(resolved, tuned, data, build_engine)


def assemble(
    resolved: Resolved,
    tuned: TunedModel,
    data: Federated,
    build_engine: BuildEngine,
    announced: Mapping[str, int] | None = None,
) -> BuiltRun:
    """Put a tuned model and a data set together with federation, client, wire and engine.

    Args:
      resolved: the experiment; its model, tuning and data parts are not read.
      tuned: the model; the run owns it from here on.
      data: of all clients.
      build_engine: builds the engine from the client's side of the run.
      announced: client -> number of its examples, where `data` does not hold them; a client that is
        not in it announced none.
    """
    resolved = fit_privacy(resolved, data)
    privacy = PrivacyOfRun(resolved.experiment)
    privacy.refuse_shared(data.clients)
    weights = Weights(
        Sizes(data.clients) if announced is None else announced,
        constant=privacy.private,
        max_share=resolved.experiment.federation.max_weight_share,
    )
    exam = build_exam(resolved, tuned, data)
    plan = dataclasses.replace(_round_plan(resolved, privacy, tuned, data), weights=weights)
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
        score,
        lambda state: tuned.loaded.task.metrics(*score(state).sums()),
        (lambda state: score_clients(score(state), tuned.loaded.task, data))
        if resolved.experiment.federation.evaluate_clients
        else None,
        side.prefix,
        resolved.callbacks,
        exam,
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
        conditions=_conditions(resolved, tuned, data),
        buffering=_buffering(resolved),
        metrics=frozenset() if privacy.private else frozenset({"loss"}),
    )


def _conditions(resolved: Resolved, tuned: TunedModel, data: Federated) -> Conditions | None:
    """Build the conditions of a run; None without a `[stability]` table.

    Raises:
      ConfigError: if the trace cannot be read.
    """
    experiment = resolved.experiment
    stability = experiment.stability
    if stability is None:
        return None
    client = experiment.client
    most = client.max_steps and client.max_steps * client.accumulation * client.batch_size
    return Conditions(
        seed=experiment.seed,
        examples=Sizes(data.clients, client.epochs, most),
        bytes_up=wire_bytes(tuned, resolved.up, TYPICAL_NOTES),
        costs=Costs(
            rate=stability.examples_per_second,
            down=stability.bytes_down_per_second,
            up=stability.bytes_up_per_second,
            speed_spread=stability.speed_spread,
            link_spread=stability.link_spread,
            stragglers=Stragglers(stability.stragglers, stability.straggler_shape),
        ),
        dropout=stability.dropout,
        deadline=stability.deadline,
        enough=experiment.federation.clients_per_round if stability.over_selection > 1 else None,
        trace=_trace(stability, tuple(data.clients), experiment.seed),
        from_available=stability.choose_from == "available",
    )


def _trace(stability: StabilityConfig, clients: tuple[str, ...], seed: int) -> Trace | None:
    if stability.trace is None:
        return None
    if stability.trace == PHONES:
        return phones(clients, seed=seed)
    return read_trace(Path(stability.trace), clients, stability.trace_period)


def _buffering(resolved: Resolved) -> Buffering | None:
    """Build the options of buffered training; None where rounds are synchronous."""
    federation = resolved.experiment.federation
    if federation.mode != "buffered":
        return None
    options, cohort = federation.buffered, federation.clients_per_round
    return Buffering(
        size=options.size or cohort,
        concurrency=options.concurrency or cohort,
        exponent=options.exponent,
        max_staleness=options.max_staleness,
    )


def scored_once(score: Callable[[ServerState], Evaluation]) -> Callable[[ServerState], Evaluation]:
    """Keep the newest evaluation: figures of the whole set and of the clients come from one."""
    last: list[tuple[ServerState, Evaluation]] = []

    def scored(state: ServerState) -> Evaluation:
        if not last or last[0][0] is not state:
            last[:] = [(state, score(state))]
        return last[0][1]

    return scored


def score_clients(evaluation: Evaluation, task: Task, data: Federated) -> dict[str, float | None]:
    """Score each client: on its own test rows, or by class in the client's own proportions.

    Returns:
      client -> headline metric; None where nothing is known: a client without test rows, a class
      without test examples, data without labels.
    """

    def scored(rows: list[int]) -> float:
        return task.metrics(*evaluation.sums(rows))[task.headline.name]

    def known(figure: float) -> float | None:
        return figure if math.isfinite(figure) else None

    if data.test_clients:
        return {client: known(scored(rows.tolist())) for client, rows in data.test_clients.items()}
    if data.labels is None or data.num_labels is None:
        return dict.fromkeys(data.clients)
    by_class = [
        scored((evaluation.label_N == label).nonzero().flatten().tolist())
        for label in range(data.num_labels)
    ]
    return {
        client: known(sum(by_class[label] for label in data.labels[rows]) / len(rows))
        for client, rows in data.clients.items()
    }
