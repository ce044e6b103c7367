"""Which engine a run gets, by `engine.name`."""

from __future__ import annotations

from fedpeft.build.client_side import take
from fedpeft.core.errors import ConfigError
from fedpeft.data.examples import Federated
from fedpeft.engines.flower.engine import FlowerEngine, FlowerSettings, reply_limit
from fedpeft.engines.flower.messages import require_flower
from fedpeft.engines.flower.simulation import Doors, Resources, Simulation
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.read import dump_experiment
from fedpeft.rounds.job import RunEngine
from fedpeft.tuning.tuned import TunedModel

__all__ = ["foreign_engine", "payload_bytes"]

_WINDOW = 64


def foreign_engine(experiment: Experiment, tuned: TunedModel, data: Federated) -> RunEngine | None:
    """Return the engine of a run that is built here; None for the local one.

    Args:
      experiment: resolved, with its number of labels.
      tuned: the server's model.
      data: of all clients.

    Raises:
      ConfigError: for a deployment, whose server runs elsewhere.
      EngineError: if Flower is not installed here.
    """
    if experiment.engine.name == "local":
        return None
    if experiment.engine.name != "flower-simulation":
        raise ConfigError(
            f"engine.name: found {experiment.engine.name!r}; only `fedpeft run` and `fedpeft "
            "handshake` work with a deployment. Use 'local' or 'flower-simulation' here"
        )
    require_flower(simulation=True)
    return _simulated(experiment, tuned, data)


def payload_bytes(tuned: TunedModel) -> int:
    """Return the bytes of one client's payload, one way, before any stage."""
    return tuned.spec.num_bytes + tuned.buffer_spec.num_bytes


def _simulated(experiment: Experiment, tuned: TunedModel, data: Federated) -> FlowerEngine:

    engine = experiment.engine
    window = max(1, min(_WINDOW, len(data.clients)))
    resources = Resources(
        engine.workers or 1, engine.client_cpus or 1.0, engine.client_gpus or 0.0, engine.ray
    )
    simulation = Simulation(take, resources, window)
    return FlowerEngine(
        simulation.open,
        Doors(tuple(data.clients), simulation.nodes),
        FlowerSettings(
            experiment=dump_experiment(experiment),
            run_id="simulation",
            limit=reply_limit(payload_bytes(tuned)),
            deadline=engine.deadline,
            poll=0.02,
            window=window,
            keeps_memories=True,
        ),
        alive=simulation.alive,
        on_close=simulation.close,
    )
