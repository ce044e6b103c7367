"""From names to builders: the only place where a word of an experiment file meets code.

    federation.algorithm -> ALGORITHMS     wire.up / wire.down -> STAGES
    federation.sampling  -> SAMPLERS       run.callbacks       -> CALLBACKS

A builder is a function whose keyword arguments are the options, each with its default; it refuses
values out of range. Engines have their table in `engines.py`, privacy modes in `privacy.py`, and
tuning methods, tasks, data sets and partitions in their own rooms. What installed packages add
(`plugins.py`) is looked up beside ours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fedpeft.core.errors import ConfigError, FedpeftError
from fedpeft.core.words import nearest
from fedpeft.data.schemes import PARTITIONS, Partition
from fedpeft.experiment.callbacks import Callback
from fedpeft.experiment.plugins import Plugins
from fedpeft.models.tasks import TASKS, Task
from fedpeft.server import algorithms, sampling
from fedpeft.server.sampling import Sampler
from fedpeft.server.state import Algorithm
from fedpeft.tuning.methods import METHODS, TuningMethod
from fedpeft.wire import stages
from fedpeft.wire.stages import Stage

__all__ = [
    "ALGORITHMS",
    "CALLBACKS",
    "PAPER_LR",
    "SAMPLERS",
    "STAGES",
    "algorithm_options",
    "is_ours",
    "make_algorithm",
    "make_callbacks",
    "make_sampler",
    "make_stages",
    "method_rule",
    "options_of",
    "partition_rule",
    "summary_of",
    "task_rule",
]

T = TypeVar("T")

ALGORITHMS: Mapping[str, Callable[..., Algorithm]] = {
    "fedavg": algorithms.fedavg,
    "fedprox": algorithms.fedprox,
    "fedavgm": algorithms.fedavgm,
    "fedadam": algorithms.fedadam,
    "fedyogi": algorithms.fedyogi,
    "fedadagrad": algorithms.fedadagrad,
}

STAGES: Mapping[str, Callable[..., Stage]] = {
    "float16": stages.float16,
    "int8": stages.int8,
    "top_k": stages.top_k,
}

SAMPLERS: Mapping[str, Callable[..., Sampler]] = {"fixed": sampling.fixed}

CALLBACKS: Mapping[str, Callable[..., Callback]] = {}

PAPER_LR: Mapping[str, float] = {
    "full": 1e-3,
    "scratch": 1e-2,
    "head": 5e-3,
    "bias": 1e-2,
    "adapter": 5e-3,
    "prompt": 1e-2,
}
"""Learning rates of the paper's scripts for CIFAR-100; `peft` types take bias's."""


def make_algorithm(name: str, options: Mapping[str, Any], plugins: Plugins) -> Algorithm:
    """Build an algorithm by name.

    Raises:
      ConfigError: for an unknown algorithm or option, or a value out of range.
    """
    found = _find(ALGORITHMS, "algorithms", name, "federation.algorithm: ", plugins)
    return _build(found, name, options, "federation.options", Algorithm)


def algorithm_options(name: str, options: Mapping[str, Any], plugins: Plugins) -> dict[str, object]:
    """Return an algorithm's options, complete.

    Raises:
      ConfigError: as `make_algorithm`.
    """
    make_algorithm(name, options, plugins)
    known = options_of(_find(ALGORITHMS, "algorithms", name, "", plugins))
    return {key: _as_default(options.get(key, default), default) for key, default in known.items()}


def make_sampler(name: str, options: Mapping[str, Any], plugins: Plugins) -> Sampler:
    """Build a sampler by name.

    Raises:
      ConfigError: for an unknown sampler or option, or a value out of range.
    """
    found = _find(SAMPLERS, "samplers", name, "federation.sampling: ", plugins)
    return _build(found, name, options, "federation.sampling_options", Sampler)


def make_callbacks(specs: Sequence[Mapping[str, Any]], plugins: Plugins) -> tuple[Callback, ...]:
    """Build callbacks from `{ name = "...", option = value }` tables, in order.

    Raises:
      ConfigError: for an unknown callback or option, or a value out of range.
    """
    return _make_all(CALLBACKS, "callbacks", specs, "run.callbacks", Callback, plugins)


def make_stages(
    specs: Sequence[Mapping[str, Any]], where: str, plugins: Plugins
) -> tuple[Stage, ...]:
    """Build stages from `{ name = "...", option = value }` tables, in order.

    Raises:
      ConfigError: for an unknown stage or option, or a value out of range.
    """
    return _make_all(STAGES, "stages", specs, where, Stage, plugins)


_OURS: Mapping[str, Mapping[str, object]] = {
    "algorithms": ALGORITHMS,
    "callbacks": CALLBACKS,
    "methods": METHODS,
    "partitions": PARTITIONS,
    "samplers": SAMPLERS,
    "stages": STAGES,
    "tasks": TASKS,
}


def is_ours(group: str, name: str) -> bool:
    """Whether a name of a group is one of this package's own."""
    return name in _OURS[group]


def method_rule(name: str, plugins: Plugins) -> TuningMethod | None:
    """Return the tuning method of a plug-in; None for one of ours, or an unknown one."""
    return _row(METHODS, "methods", name, TuningMethod, plugins)


def partition_rule(name: str, plugins: Plugins) -> Partition | None:
    """Return the partition of a plug-in; None for one of ours, or an unknown one."""
    return _row(PARTITIONS, "partitions", name, Partition, plugins)


def task_rule(name: str, plugins: Plugins) -> Task | None:
    """Return the task of a plug-in; None for one of ours, or an unknown one."""
    return _row(TASKS, "tasks", name, Task, plugins)


def _row(ours: Mapping[str, T], group: str, name: str, kind: type[T], plugins: Plugins) -> T | None:
    if name in ours or name not in plugins.of(group):
        return None
    found = plugins.of(group)[name].load()
    if not isinstance(found, kind):
        raise ConfigError(
            f"plug-in {name!r} of fedpeft.{group} is a {type(found).__name__}; it must be a "
            f"{kind.__name__}"
        )
    return found


def _make_all(
    ours: Mapping[str, Callable[..., T]],
    group: str,
    specs: Sequence[Mapping[str, Any]],
    where: str,
    kind: type[T],
    plugins: Plugins,
) -> tuple[T, ...]:
    made = []
    for i, spec in enumerate(specs):
        name, place = str(spec.get("name", "")), f"{where}[{i}]"
        found = _find(ours, group, name, f"{place}: {group.removesuffix('s')} ", plugins)
        options = {key: value for key, value in spec.items() if key != "name"}
        made.append(_build(found, name, options, place, kind))
    return tuple(made)


def options_of(build: Callable[..., object]) -> dict[str, object]:
    """Return the options of a builder, and their defaults."""
    return {name: found.default for name, found in inspect.signature(build).parameters.items()}


def summary_of(build: Callable[..., object]) -> str:
    """Return the first line of a builder's docstring, without its full stop."""
    return (inspect.getdoc(build) or "-").splitlines()[0].rstrip(".")


def _find(
    ours: Mapping[str, Callable[..., T]], group: str, name: str, where: str, plugins: Plugins
) -> Callable[..., T]:
    if name in ours:
        return ours[name]
    added = plugins.of(group)
    if ":" in name:
        raise ConfigError(
            f"{where}{name!r} was given as an object, in Python; give it again there: "
            "fedpeft.simulate(..., out=...) goes on with the folder"
        )
    if name not in added:
        raise ConfigError(f"{where}{name!r} is unknown; {nearest(name, (*ours, *added))}")
    return added[name].load()  # type: ignore[return-value]  # what it builds is checked


def _build(
    build: Callable[..., T], name: str, options: Mapping[str, Any], where: str, kind: type[T]
) -> T:
    known = options_of(build)
    for key in known:
        if known[key] is inspect.Parameter.empty and key not in options:
            raise ConfigError(f"{where}.{key}: is missing; {name} cannot do without it")
    for key, value in options.items():
        if key not in known:
            raise ConfigError(f"{where}.{key}: {name} has no such option; {nearest(key, known)}")
        if not _fits(value, known[key]):
            word = f"a number like {known[key]}" if _is_number(known[key]) else repr(known[key])
            raise ConfigError(f"{where}.{key}: found {value!r}; allowed is {word}")
    try:
        made = build(**options)
    except FedpeftError as error:
        raise ConfigError(f"{where}.{error}") from error
    if not isinstance(made, kind):
        raise ConfigError(
            f"{where}: {name} gives {type(made).__name__}; a builder of this kind gives "
            f"{kind.__name__}"
        )
    return made


def _fits(value: object, default: object) -> bool:
    """Whether a value is of the kind of an option's default; a whole number is a number too."""
    if default is None or default is inspect.Parameter.empty:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    return isinstance(value, (int, float) if isinstance(default, float) else type(default))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_default(value: object, default: object) -> object:
    return float(value) if isinstance(default, float) and isinstance(value, int) else value
