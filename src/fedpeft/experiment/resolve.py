"""Every default of an experiment made explicit."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

from fedpeft.core.cores import num_cores
from fedpeft.core.errors import ConfigError
from fedpeft.data.bundled import BUNDLED_DATASETS
from fedpeft.experiment import tables
from fedpeft.experiment.engines import ENGINES
from fedpeft.experiment.epsilon import resolve_privacy
from fedpeft.experiment.experiment import Experiment, StabilityConfig, num_clients
from fedpeft.experiment.plugins import installed
from fedpeft.experiment.rates import learning_rate
from fedpeft.models.locate import BUNDLED
from fedpeft.server.traces import PHONES
from fedpeft.tuning.methods import resolve_options

__all__ = ["asked_clients", "planned_turns", "resolve", "resolve_stability"]


def resolve(experiment: Experiment) -> Experiment:
    """Make every default explicit that depends on other keys.

    Raises:
      ConfigError: if an option is wrong.
    """
    tuning, data, client = experiment.tuning, experiment.data, experiment.client
    partition, federation = data.partition, experiment.federation
    smallest = 1 if data.source in BUNDLED_DATASETS else 10
    plugins = installed()
    options = tables.algorithm_options(federation.algorithm, federation.options, plugins)
    algorithm = tables.make_algorithm(federation.algorithm, federation.options, plugins)
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
                update={
                    "options": resolve_options(
                        tuning.method, tuning.options, tables.method_rule(tuning.method, plugins)
                    )
                }
            ),
            "data": data.model_copy(update={"partition": partition}),
            "client": client.model_copy(
                update={
                    "lr": learning_rate(experiment),
                    "prox_mu": algorithm.prox_mu if client.prox_mu is None else client.prox_mu,
                }
            ),
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


def _workers(experiment: Experiment) -> int:
    most = max(1, min(num_cores(), experiment.federation.clients_per_round))
    return ENGINES[experiment.engine.name].workers(experiment.engine, most)


def resolve_stability(experiment: Experiment, options: Mapping[str, object]) -> dict[str, object]:
    """Make the defaults of `[federation]` and `[stability]` explicit.

    Args:
      experiment: checked.
      options: of the algorithm, complete.

    Returns:
      both tables by name; buffered training always has a `[stability]` table.

    Raises:
      ConfigError: if the trace's file is not the one that the experiment began with.
    """
    federation, stability = experiment.federation, experiment.stability
    changes: dict[str, object] = {"options": dict(options)}
    if federation.mode == "buffered":
        buffered, cohort = federation.buffered, federation.clients_per_round
        sizes = {
            "size": buffered.size or cohort,
            "concurrency": buffered.concurrency or cohort,
        }
        changes["buffered"] = buffered.model_copy(update=sizes)
        stability = stability or StabilityConfig()
    resolved: dict[str, object] = {"federation": federation.model_copy(update=changes)}
    if stability is not None:
        resolved["stability"] = stability.model_copy(update=_trace_file(stability))
    return resolved


def _trace_file(stability: StabilityConfig) -> dict[str, object]:
    """Name a trace's file wherever a command is called from, and its content."""
    if stability.trace in (None, PHONES):
        return {}
    file = Path(str(stability.trace)).expanduser().resolve()
    if not file.is_file():
        return {}  # a plan needs no trace; a run says that it is missing
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if stability.trace_sha256 not in (None, digest):
        raise ConfigError(
            f"stability.trace: {file} has changed: its SHA-256 is {digest}, the experiment began "
            f"with {stability.trace_sha256}. Put the file back, or leave stability.trace_sha256 out"
        )
    return {"trace": str(file), "trace_sha256": digest}


def asked_clients(experiment: Experiment, num_clients: int) -> int:
    """Return how many clients a synchronous round asks; more than it uses with over-selection."""
    cohort, stability = experiment.federation.clients_per_round, experiment.stability
    factor = stability.over_selection if stability else 1.0
    return min(num_clients, math.ceil(cohort * factor - 1e-9))


def planned_turns(experiment: Experiment) -> tuple[int, int]:
    """Return how many replies a round of a resolved experiment uses, and how many clients it asks.

    Nobody fails in a plan.
    """
    federation = experiment.federation
    if federation.mode == "buffered":
        size = federation.buffered.size or federation.clients_per_round
        return size, size
    clients = experiment.data.partition.clients or federation.clients_per_round
    return federation.clients_per_round, asked_clients(experiment, clients)
