"""From names to builders: the one place where names of an experiment file are looked up.

    federation.algorithm -> ALGORITHMS     wire.up / wire.down -> STAGES
    federation.sampling  -> SAMPLERS       run.callbacks       -> CALLBACKS
    answers.scores       -> SCORES

A builder is a function whose keyword arguments are the options, each with its default; it refuses
values that are out of range. Engines have their table in `engines.py`, privacy modes in
`privacy.py`, and tuning methods, tasks, data sets and partitions in their own rooms. Names of
installed packages (`plugins.py`) are looked up beside ours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fedpeft.answers import scores
from fedpeft.answers.scores import AnswerScore
from fedpeft.core.errors import ConfigError, FedpeftError
from fedpeft.core.text import nearest, shown
from fedpeft.data.schemes import PARTITIONS, Partition
from fedpeft.experiment.callbacks import Callback
from fedpeft.experiment.plugins import Plugin, Plugins
from fedpeft.models.tasks import TASKS, Task
from fedpeft.server import algorithms, sampling
from fedpeft.server.sampling import Sampler
from fedpeft.server.state import Algorithm
from fedpeft.tuning.methods import METHODS, TuningMethod
from fedpeft.wire import stages
from fedpeft.wire.stages import Stage

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

SCORES: Mapping[str, Callable[..., AnswerScore]] = {
    "exact_match": scores.exact_match,
    "rouge_l": scores.rouge_l,
}


def make_algorithm(name: str, options: Mapping[str, Any], plugins: Plugins) -> Algorithm:
    """Build an algorithm by name.

    Raises:
      ConfigError: for an unknown algorithm or option, or a value out of range.
    """
    found = _find("algorithms", name, "federation.algorithm: ", plugins)
    return _build(found, name, options, "federation.options", Algorithm)


def algorithm_options(name: str, options: Mapping[str, Any], plugins: Plugins) -> dict[str, object]:
    """Return all options of an algorithm, defaults included.

    Raises:
      ConfigError: as `make_algorithm`.
    """
    make_algorithm(name, options, plugins)
    known = options_of(_find("algorithms", name, "", plugins))
    return {key: _as_default(options.get(key, default), default) for key, default in known.items()}


def make_sampler(name: str, options: Mapping[str, Any], plugins: Plugins) -> Sampler:
    """Build a sampler by name.

    Raises:
      ConfigError: for an unknown sampler or option, or a value out of range.
    """
    found = _find("samplers", name, "federation.sampling: ", plugins)
    return _build(found, name, options, "federation.sampling_options", Sampler)


def make_callbacks(specs: Sequence[Mapping[str, Any]], plugins: Plugins) -> tuple[Callback, ...]:
    """Build callbacks from `{ name = "...", option = value }` tables, in order.

    Raises:
      ConfigError: for an unknown callback or option, or a value out of range.
    """
    return _make_all("callbacks", specs, "run.callbacks", Callback, plugins)


def make_scores(specs: Sequence[Mapping[str, Any]], plugins: Plugins) -> dict[str, AnswerScore]:
    """Build scores of answers from `{ name = "...", option = value }` tables, by name, in order.

    Raises:
      ConfigError: for an unknown score or option, a value out of range, or a name that comes twice.
    """
    where = "answers.scores"
    made = _make_all("scores", specs, where, AnswerScore, plugins)
    names = [str(spec["name"]) for spec in specs]
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise ConfigError(f"{where}: {twice[0]!r} is named twice; name each score once")
    return dict(zip(names, made, strict=True))


def make_stages(
    specs: Sequence[Mapping[str, Any]], where: str, plugins: Plugins
) -> tuple[Stage, ...]:
    """Build stages from `{ name = "...", option = value }` tables, in order.

    Raises:
      ConfigError: for an unknown stage or option, or a value out of range.
    """
    return _make_all("stages", specs, where, Stage, plugins)


OURS: Mapping[str, Mapping[str, object]] = {
    "algorithms": ALGORITHMS,
    "callbacks": CALLBACKS,
    "methods": METHODS,
    "partitions": PARTITIONS,
    "samplers": SAMPLERS,
    "scores": SCORES,
    "stages": STAGES,
    "tasks": TASKS,
}
"""This package's own names by the group that installed packages may add to."""

_ROWS: Mapping[str, type] = {"methods": TuningMethod, "partitions": Partition, "tasks": Task}
"""Groups whose names stand for rows of a table; in the others they stand for builders."""


def load_plugin(plugin: Plugin) -> object:
    """Import the builder or the row that a plug-in's name stands for.

    Raises:
      ConfigError: if that fails, or gives something else than its group needs.
    """
    found, kind = plugin.load(), _ROWS.get(plugin.group)
    if callable(found) if kind is None else isinstance(found, kind):
        return found
    raise ConfigError(
        f"plug-in {plugin.name!r} of fedpeft.{plugin.group} is a {type(found).__name__}; it must "
        f"be a {kind.__name__ if kind else 'function'}"
    )


def method_rule(name: str, plugins: Plugins) -> TuningMethod | None:
    """Return the tuning method of a plug-in; None for one of ours, or an unknown one."""
    return _row("methods", name, TuningMethod, plugins)


def partition_rule(name: str, plugins: Plugins) -> Partition | None:
    """Return the partition of a plug-in; None for one of ours, or an unknown one."""
    return _row("partitions", name, Partition, plugins)


def task_rule(name: str, plugins: Plugins) -> Task | None:
    """Return the task of a plug-in; None for one of ours, or an unknown one."""
    return _row("tasks", name, Task, plugins)


def _row(group: str, name: str, kind: type[T], plugins: Plugins) -> T | None:
    if name in OURS[group] or name not in plugins.of(group):
        return None
    found = load_plugin(plugins.of(group)[name])
    assert isinstance(found, kind), "load_plugin has checked it"
    return found


def _make_all(
    group: str, specs: Sequence[Mapping[str, Any]], where: str, kind: type[T], plugins: Plugins
) -> tuple[T, ...]:
    made = []
    for i, spec in enumerate(specs):
        name, place = str(spec.get("name", "")), f"{where}[{i}]"
        found = _find(group, name, f"{place}: {group.removesuffix('s')} ", plugins)
        options = {key: value for key, value in spec.items() if key != "name"}
        made.append(_build(found, name, options, place, kind))
    return tuple(made)


def options_of(build: Callable[..., object]) -> dict[str, object]:
    """Return the options of a builder, and their defaults."""
    return {name: found.default for name, found in inspect.signature(build).parameters.items()}


def summary_of(build: Callable[..., object]) -> str:
    """Return the first line of a builder's docstring, without its full stop."""
    return (inspect.getdoc(build) or "-").splitlines()[0].rstrip(".")


def _find(group: str, name: str, where: str, plugins: Plugins) -> Callable[..., object]:
    ours, added = OURS[group], plugins.of(group)
    if ":" in name:
        raise ConfigError(
            f"{where}{name!r} was passed as an object from Python; pass it again: "
            "fedpeft.simulate(..., out=...) goes on with the folder"
        )
    if name not in (*ours, *added):
        raise ConfigError(f"{where}{name!r} is unknown; {nearest(name, (*ours, *added))}")
    found = ours[name] if name in ours else load_plugin(added[name])
    assert callable(found), "load_plugin has checked it"
    return found


def _build(
    build: Callable[..., object], name: str, options: Mapping[str, Any], where: str, kind: type[T]
) -> T:
    known = options_of(build)
    for key in known:
        if known[key] is inspect.Parameter.empty and key not in options:
            raise ConfigError(f"{where}.{key}: is missing; {name} requires it")
    for key, value in options.items():
        if key not in known:
            raise ConfigError(f"{where}.{key}: {name} has no such option; {nearest(key, known)}")
        if not _fits(value, known[key]):
            word = f"a number like {known[key]}" if _is_number(known[key]) else repr(known[key])
            raise ConfigError(f"{where}.{key}: found {shown(value)}; allowed is {word}")
    try:
        made = build(**options)
    except FedpeftError as error:
        raise ConfigError(f"{where}.{error}") from error
    if not isinstance(made, kind):
        raise ConfigError(
            f"{where}: {name} returned {type(made).__name__}; a builder of this kind returns "
            f"{kind.__name__}"
        )
    return made


def _fits(value: object, default: object) -> bool:
    """Whether a value has the type of an option's default; a whole number is a number too."""
    if default is None or default is inspect.Parameter.empty:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    return isinstance(value, (int, float) if isinstance(default, float) else type(default))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_default(value: object, default: object) -> object:
    return float(value) if isinstance(default, float) and isinstance(value, int) else value
