"""From names to builders: the only place where a word of an experiment file meets code.

    federation.algorithm -> ALGORITHMS    wire.up / wire.down -> STAGES

Engines have theirs in `experiment/engines.py`, and tuning methods, models, data sets and partitions
in their own packages.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedpeft.core.errors import ConfigError
from fedpeft.core.words import nearest
from fedpeft.server import algorithms
from fedpeft.server.algorithms import ServerSettings
from fedpeft.server.state import Algorithm
from fedpeft.wire import stages
from fedpeft.wire.stages import Stage

__all__ = [
    "ALGORITHMS",
    "PAPER_LR",
    "STAGES",
    "AlgorithmEntry",
    "algorithm_options",
    "make_algorithm",
    "make_stages",
]


@dataclass(frozen=True)
class AlgorithmEntry:
    """One federated algorithm.

    Attributes:
      build: from the server's settings to the algorithm.
      summary: one line.
      options: names and defaults; `mu` goes to the clients, the others to the server.
    """

    build: Callable[[ServerSettings], Algorithm]
    summary: str
    options: Mapping[str, float] = field(default_factory=dict)


_ADAPTIVE = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3}

ALGORITHMS: Mapping[str, AlgorithmEntry] = {
    "fedavg": AlgorithmEntry(
        algorithms.fedavg, "weighted mean of updates (McMahan et al. 2017)", {"lr": 1.0}
    ),
    "fedprox": AlgorithmEntry(
        algorithms.fedavg,
        "FedAvg with a proximal term of weight mu at the clients (Li et al. 2020)",
        {"lr": 1.0, "mu": 0.01},
    ),
    "fedavgm": AlgorithmEntry(
        algorithms.fedavgm,
        "FedAvg with server momentum (Hsu et al. 2019)",
        {"lr": 1.0, "momentum": 0.9},
    ),
    "fedadam": AlgorithmEntry(
        algorithms.fedadam, "Adam at the server (Reddi et al. 2021)", _ADAPTIVE
    ),
    "fedyogi": AlgorithmEntry(
        algorithms.fedyogi, "Yogi at the server (Reddi et al. 2021)", _ADAPTIVE
    ),
    "fedadagrad": AlgorithmEntry(
        algorithms.fedadagrad,
        "Adagrad at the server (Reddi et al. 2021)",
        {"lr": 0.01, "beta1": 0.0, "tau": 1e-3},
    ),
}

STAGES: Mapping[str, Callable[..., Stage]] = {
    "float16": stages.float16,
    "int8": stages.int8,
    "top_k": stages.top_k,
}

PAPER_LR: Mapping[str, float] = {
    "full": 1e-3,
    "scratch": 1e-2,
    "head": 5e-3,
    "bias": 1e-2,
    "adapter": 5e-3,
    "prompt": 1e-2,
}
"""Learning rates of the paper's scripts for CIFAR-100; `peft` types take bias's."""


def algorithm_options(name: str, options: Mapping[str, Any]) -> dict[str, float]:
    """Return an algorithm's options, complete.

    Raises:
      ConfigError: for an unknown algorithm, option or a value out of range.
    """
    if name not in ALGORITHMS:
        raise ConfigError(f"federation.algorithm: {name!r} is unknown; {nearest(name, ALGORITHMS)}")
    known = ALGORITHMS[name].options
    for key, value in options.items():
        where = f"federation.options.{key}"
        if key not in known:
            raise ConfigError(f"{where}: {name} has no such option; {nearest(key, known)}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{where}: found {value!r}; allowed is a number")
        low, high = _RANGES[key]
        if not low <= value < high or (value == 0 and key in ("lr", "tau")):
            raise ConfigError(
                f"{where}: found {value}; allowed is {low} up to {high}, without {high}"
            )
    return {key: float(options.get(key, default)) for key, default in known.items()}


_INF = float("inf")
_RANGES = {
    "lr": (0.0, _INF),
    "mu": (0.0, _INF),
    "tau": (0.0, _INF),
    "momentum": (0.0, 1.0),
    "beta1": (0.0, 1.0),
    "beta2": (0.0, 1.0),
}


def make_algorithm(name: str, options: Mapping[str, Any]) -> Algorithm:
    """Build an algorithm by name.

    Raises:
      ConfigError: as `algorithm_options`.
    """
    chosen = algorithm_options(name, options)
    server = {key: value for key, value in chosen.items() if key != "mu"}
    return ALGORITHMS[name].build(ServerSettings(**server))


def make_stages(specs: Sequence[Mapping[str, Any]], where: str) -> tuple[Stage, ...]:
    """Build stages from `{ name = "...", option = value }` tables, in order.

    Raises:
      ConfigError: for an unknown stage or option.
    """
    return tuple(_make_stage(spec, f"{where}[{i}]") for i, spec in enumerate(specs))


def _make_stage(spec: Mapping[str, Any], where: str) -> Stage:
    name = str(spec.get("name", ""))
    if name not in STAGES:
        raise ConfigError(f"{where}: stage {name!r} is unknown; {nearest(name, STAGES)}")
    build = STAGES[name]
    options = {key: value for key, value in spec.items() if key != "name"}
    known = inspect.signature(build).parameters
    for key, value in options.items():
        if key not in known:
            raise ConfigError(f"{where}.{key}: {name} has no such option; {nearest(key, known)}")
        default = known[key].default
        if isinstance(value, bool) or not isinstance(
            value, int if isinstance(default, int) else (int, float)
        ):
            raise ConfigError(f"{where}.{key}: found {value!r}; allowed is a number like {default}")
    return build(**options)
