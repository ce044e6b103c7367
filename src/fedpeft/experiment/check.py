"""Checks beyond the schema: names that need a table, options, keys that contradict each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedpeft.core.errors import FedpeftError
from fedpeft.core.text import hints, nearest
from fedpeft.data.schemes import PARTITIONS
from fedpeft.experiment import tables
from fedpeft.experiment.check_privacy import privacy_problems, refuse_combination
from fedpeft.experiment.engines import ENGINES
from fedpeft.experiment.experiment import Experiment, num_clients
from fedpeft.experiment.plugins import Plugins
from fedpeft.experiment.privacy import PRIVACY_MODES
from fedpeft.experiment.starting import with_adapter
from fedpeft.models.tasks import TASKS
from fedpeft.server.traces import PHONES
from fedpeft.tuning.methods import METHODS, resolve_options

_TRACES = (".csv", ".jsonl")
"""How the name of a trace's file may end."""


def problems_of(experiment: Experiment, plugins: Plugins) -> list[str]:
    """Return every problem of an experiment that passed the schema, a line each.

    Args:
      experiment: that passed the schema.
      plugins: names of installed packages that it may use.
    """
    return [
        *_model(experiment, plugins),
        *_tuning(experiment, plugins),
        *_federation(experiment, plugins),
        *_stability(experiment),
        *_client(experiment, plugins),
        *_wire(experiment, plugins),
        *_answers(experiment, plugins),
        *_engine(experiment),
        *_data(experiment, plugins),
        *privacy_problems(experiment),
    ]


def _lines(call: Callable[[], Any]) -> Iterator[str]:
    """Call a builder; yield the lines of its error as problems."""
    try:
        call()
    except FedpeftError as error:
        yield from (line.strip() for line in str(error).splitlines() if line.strip())


def _model(experiment: Experiment, plugins: Plugins) -> Iterator[str]:
    task, tasks = experiment.model.task, (*TASKS, *plugins.of("tasks"))
    if task is not None and task not in tasks:
        yield f"model.task: {task!r} is unknown; {nearest(task, tasks)}"
    elif task is not None:
        yield from _lines(lambda: tables.task_rule(task, plugins))


def _tuning(experiment: Experiment, plugins: Plugins) -> Iterator[str]:
    tuning = experiment.tuning
    try:
        tuning = with_adapter(tuning, fetch=False)
    except FedpeftError as error:
        yield str(error)
    yield from _lines(
        lambda: resolve_options(
            tuning.method, tuning.options, tables.method_rule(tuning.method, plugins)
        )
    )
    if tuning.blocks and not 0 <= tuning.blocks[0] <= tuning.blocks[1]:
        yield (
            f"tuning.blocks: found {tuning.blocks}; allowed is [first, last] with "
            "0 <= first <= last, counted from 0"
        )


def _federation(experiment: Experiment, plugins: Plugins) -> Iterator[str]:
    federation, clients = experiment.federation, num_clients(experiment)
    options = federation.options
    yield from _lines(
        lambda: refuse_combination(
            experiment, tables.make_algorithm(federation.algorithm, options, plugins)
        )
    )
    yield from _sampling(experiment, plugins)
    yield from _lines(lambda: tables.make_callbacks(experiment.run.callbacks, plugins))
    cohort = federation.clients_per_round
    if clients and cohort > clients:
        yield (
            f"federation.clients_per_round: found {cohort}; allowed is at most "
            f"{clients} (data.partition.clients)"
        )
    if federation.min_replies > cohort:
        yield (
            f"federation.min_replies: found {federation.min_replies}; allowed is at most "
            f"{cohort} (federation.clients_per_round)"
        )


def _sampling(experiment: Experiment, plugins: Plugins) -> Iterator[str]:
    """Yield what is wrong with the sampler; a cohort that depends on replies is not private.

    `poisson` is in no table of samplers: it draws from the secret of a private run.
    """
    federation = experiment.federation
    if federation.sampling == "poisson":
        if federation.sampling_options:
            yield "federation.sampling_options: 'poisson' has no options; leave the key out"
        return
    name, options = federation.sampling, federation.sampling_options
    yield from _lines(lambda: tables.make_sampler(name, options, plugins))
    if PRIVACY_MODES[experiment.privacy.mode].unit is not None and name != "fixed":
        yield (
            f"federation.sampling: found {name!r} with privacy.mode = {experiment.privacy.mode!r}; "
            "allowed are 'fixed' and 'poisson': epsilon counts a schedule that is known beforehand"
        )


def _client(experiment: Experiment, plugins: Plugins) -> Iterator[str]:
    client = experiment.client
    if isinstance(client.lr, dict):
        known = {*METHODS, *plugins.of("methods")}
        unknown = [method for method in client.lr if method not in known]
        for method, hint in zip(unknown, hints(unknown, known), strict=True):
            yield f"client.lr.{method}: no such tuning method{hint}"
    if client.optimizer == "sgd" and client.nesterov and not client.momentum:
        yield "client.nesterov: found true with client.momentum = 0; set one of the two"
    yield from _schedules(experiment)
    if client.prefix_views is not None and client.prefix_cache == "off":
        yield (
            f"client.prefix_views: found {client.prefix_views} with client.prefix_cache = 'off', "
            "which keeps no view; leave one of the two out"
        )


def _schedules(experiment: Experiment) -> Iterator[str]:
    """Yield what is wrong with the course of the learning rate."""
    client, rounds = experiment.client, experiment.federation.rounds
    for key in ("warmup", "round_warmup"):
        found = getattr(client, key)
        if found > 1 and not float(found).is_integer():
            yield f"client.{key}: found {found:g}; allowed is a share below 1 or a whole number"
    if client.round_warmup > rounds:
        yield (
            f"client.round_warmup: found {client.round_warmup:g}; allowed is at most {rounds} "
            "(federation.rounds)"
        )


def _wire(experiment: Experiment, plugins: Plugins) -> Iterator[str]:
    yield from _lines(lambda: tables.make_stages(experiment.wire.up, "wire.up", plugins))
    yield from _lines(lambda: tables.make_stages(experiment.wire.down, "wire.down", plugins))
    for i, spec in enumerate(experiment.wire.down):
        if spec.get("name") == "top_k":
            yield f"wire.down[{i}]: top_k drops values of the delta itself; use it in wire.up only"


def _answers(experiment: Experiment, plugins: Plugins) -> Iterator[str]:
    answers = experiment.answers
    if answers is None:
        return
    yield from _lines(lambda: tables.make_scores(answers.scores, plugins))
    if not answers.num_examples and answers.choices is None:
        yield "answers.num_examples: found 0 without answers.choices; nothing would be asked"
    task = TASKS.get(experiment.model.task or "")
    if task is not None and not task.goes_on:
        yield (
            f"[answers]: found with model.task = {task.name!r}; only language models "
            "(causal-lm) answer: leave the table out"
        )


def _engine(experiment: Experiment) -> Iterator[str]:
    engine = experiment.engine
    kind, _, number = engine.device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        yield f"engine.device: found {engine.device!r}; allowed are 'cpu', 'cuda' and 'cuda:N'"
    if kind == "cpu" and engine.precision == "bf16":
        yield "engine.precision: found 'bf16' with engine.device = 'cpu'; it is for GPUs only"
    chosen = ENGINES.get(engine.name)
    if chosen is None:
        yield f"engine.name: {engine.name!r} is unknown; {nearest(engine.name, ENGINES)}"
        return
    yield from chosen.problems(engine)
    if not chosen.shares_passes and engine.clients_per_pass not in (None, 1):
        yield (
            f"engine.clients_per_pass: found {engine.clients_per_pass!r} with engine.name = "
            f"{engine.name!r}, which trains one client at a time in a process; allowed is 1, or "
            "engine.name = 'local'"
        )
    if chosen.deployed:
        yield from _deployment(experiment)


def _deployment(experiment: Experiment) -> Iterator[str]:
    """Yield settings that only a simulation has, and a missing number of sites."""
    if experiment.data.partition.clients is None:
        yield "data.partition.clients: not set; a deployment needs the number of its sites"
    if experiment.stability is not None:
        yield "[stability]: simulates clients that fail; a deployment has real ones. Leave it out"
    if experiment.federation.mode == "buffered":
        yield "federation.mode: found 'buffered', on a simulated clock; a deployment is synchronous"
    if experiment.federation.evaluate_clients:
        yield "federation.evaluate_clients: a deployment's server does not know the sites' data"


def _data(experiment: Experiment, plugins: Plugins) -> Iterator[str]:
    data = experiment.data
    size = data.budget or data.num_examples
    clients = num_clients(experiment)
    scheme, schemes = data.partition.scheme, (*PARTITIONS, *plugins.of("partitions"))
    if scheme not in schemes:
        yield (
            f"data.partition.scheme: found {scheme!r}; allowed is {', '.join(map(repr, schemes))}"
        )
    yield from _lines(lambda: tables.partition_rule(scheme, plugins))
    if data.partition.options and scheme in PARTITIONS:
        yield f"data.partition.options: {scheme!r} has none; set its keys in [data.partition]"
    if scheme != "drawn" and size and clients and clients > size:
        yield (
            f"data.partition.clients: found {clients} with {size} examples; "
            "allowed is at most one client for each example"
        )


def _stability(experiment: Experiment) -> Iterator[str]:
    """Yield every problem of `[stability]` and `[federation.buffered]`, a line each."""
    yield from _buffered(experiment)
    yield from _trace(experiment)
    stability = experiment.stability
    given = stability.model_dump(exclude_defaults=True) if stability else {}
    if stability and stability.stragglers == "none" and "straggler_shape" in given:
        yield (
            "stability.straggler_shape: found without stability.stragglers; set that to "
            "'lognormal' or 'pareto'"
        )


def _buffered(experiment: Experiment) -> Iterator[str]:
    federation, stability = experiment.federation, experiment.stability
    options = federation.buffered
    if federation.mode == "synchronous":
        for key in sorted(options.model_dump(exclude_defaults=True)):
            yield (
                f"federation.buffered.{key}: found with federation.mode = 'synchronous'; it is for "
                "'buffered'"
            )
        return
    size = options.size or federation.clients_per_round
    if federation.min_replies > size:
        yield (
            f"federation.min_replies: found {federation.min_replies}; allowed is at most {size} "
            "(federation.buffered.size)"
        )
    if stability and stability.choose_from == "available":
        yield (
            "stability.choose_from: found with federation.mode = 'buffered', which always draws "
            "from available clients; leave the key out"
        )
    if stability and stability.over_selection != 1:
        yield (
            "stability.over_selection: found with federation.mode = 'buffered'; there the first "
            "replies always make the round: raise federation.buffered.concurrency instead"
        )


def _trace(experiment: Experiment) -> Iterator[str]:
    stability = experiment.stability
    if stability is None:
        return
    trace, of_file = stability.trace, ("trace_period", "trace_sha256")
    if trace in (None, PHONES):
        for key in of_file:
            if getattr(stability, key) is not None:
                yield f"stability.{key}: found with stability.trace = {trace!r}; it is for a file"
        if trace is None and stability.choose_from == "available":
            yield "stability.choose_from: found 'available' without stability.trace; name a trace"
    elif Path(trace).suffix.lower() not in _TRACES:
        yield (
            f"stability.trace: found {trace!r}; allowed are a file that ends in "
            f"{' or '.join(_TRACES)}, and {PHONES!r}"
        )
