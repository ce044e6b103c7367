"""From an engine's name to its builder, for engines whose rounds run in this process.

    engine.name -> BUILDERS -> (client's side) -> RunEngine

Deployments, whose rounds run elsewhere, are submitted by `launch/start.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from fedpeft.build.client_side import ClientSide, take
from fedpeft.build.model import payload_bytes
from fedpeft.core.errors import ConfigError
from fedpeft.engines.flower.engine import FlowerEngine, FlowerSettings, reply_limit
from fedpeft.engines.flower.messages import require_flower
from fedpeft.engines.flower.simulation import Resources, Simulation, VirtualNodes
from fedpeft.engines.local import LocalEngine, block_size
from fedpeft.engines.scoring import Scorer, make_scorer
from fedpeft.experiment.experiment import Experiment, num_together
from fedpeft.experiment.read import dump_experiment
from fedpeft.rounds.job import RunEngine

BuildEngine: TypeAlias = Callable[[ClientSide], RunEngine]

_WINDOW = 64


def engine_builder(experiment: Experiment) -> BuildEngine:
    """Return the builder of an experiment's engine.

    Raises:
      ConfigError: for a deployment, whose server runs elsewhere.
    """
    name = experiment.engine.name
    if name not in BUILDERS:
        raise ConfigError(
            f"engine.name: found {name!r}; only `fedpeft run` and `fedpeft handshake` work with a "
            f"deployment. Use {' or '.join(map(repr, BUILDERS))} here"
        )
    return BUILDERS[name]


def scorer_of(side: ClientSide) -> Scorer:
    """Return the scorer of a run's test set."""
    return make_scorer(side.tuned, side.data.test, side.settings)


def _local(side: ClientSide) -> LocalEngine:
    workers = side.resolved.experiment.engine.workers or 1
    return LocalEngine(
        side.half,
        side.data,
        num_workers=workers,
        block=block_size(side.tuned.spec.num_bytes, workers),
        clients_per_pass=num_together(side.resolved.experiment),
        scorer=scorer_of(side),
    )


def _simulated(side: ClientSide) -> FlowerEngine:
    require_flower(simulation=True)
    engine, clients = side.resolved.experiment.engine, side.data.clients
    window = max(1, min(_WINDOW, len(clients)))
    resources = Resources(
        engine.workers or 1, engine.client_cpus or 1.0, engine.client_gpus or 0.0, engine.ray
    )
    simulation = Simulation(take, resources, window)
    return FlowerEngine(
        simulation.open,
        VirtualNodes(tuple(clients), simulation.nodes),
        FlowerSettings(
            experiment=dump_experiment(side.resolved.experiment),
            run_id="simulation",
            limit=reply_limit(payload_bytes(side.tuned)),
            deadline=engine.deadline,
            poll=0.02,
            window=window,
            keeps_memories=True,
        ),
        alive=simulation.alive,
        on_close=simulation.close,
        scorer=scorer_of(side),
    )


BUILDERS: Mapping[str, BuildEngine] = {"local": _local, "flower-simulation": _simulated}
