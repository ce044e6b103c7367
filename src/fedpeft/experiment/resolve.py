"""Resolving an experiment: all defaults become explicit, and names become objects.

Experiment (a file's keys) ──resolve, once──> Resolved ──> model, data, engine, rounds
                                                 ^
                         plug-ins, objects that are passed from Python
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedpeft.answers.scores import AnswerScore
from fedpeft.core.cpus import num_cores
from fedpeft.core.errors import ConfigError
from fedpeft.core.text import home
from fedpeft.data.bundled import BUNDLED_DATASETS
from fedpeft.data.schemes import Partition
from fedpeft.experiment import tables
from fedpeft.experiment.callbacks import Callback
from fedpeft.experiment.chat_template import read_template
from fedpeft.experiment.engines import ENGINES
from fedpeft.experiment.epsilon import resolve_privacy
from fedpeft.experiment.experiment import (
    AnswersConfig,
    Experiment,
    FederationConfig,
    ObjectConfig,
    StabilityConfig,
    num_clients,
)
from fedpeft.experiment.paths import absolute
from fedpeft.experiment.plugins import Plugins, installed, origin_of
from fedpeft.experiment.read import DIGITS, read_toml
from fedpeft.experiment.starting import with_adapter
from fedpeft.models.tasks import Task
from fedpeft.server.sampling import Sampler
from fedpeft.server.state import Algorithm
from fedpeft.server.traces import PHONES
from fedpeft.tuning.methods import TuningMethod, resolve_options
from fedpeft.wire.stages import Stage

BUNDLED_MODEL = "vit-glyphs-8"
"""The model of an experiment that names none."""

SEARCHED: Mapping[str, Path | None] = {BUNDLED_MODEL: DIGITS, "vit-glyphs-28": None}
"""Bundled model -> the bundled experiment that holds its searched learning rates."""

EPOCHS = 10
"""The paper's local epochs of a turn."""

PAPER_LR: Mapping[str, float] = {
    "full": 1e-3,
    "scratch": 1e-2,
    "head": 5e-3,
    "bias": 1e-2,
    "adapter": 5e-3,
    "prompt": 1e-2,
}
"""Learning rates of the paper's scripts for CIFAR-100; `peft` types take the one of `bias`."""


@dataclass(frozen=True)
class Given:
    """Objects that are passed from Python and replace names; None keeps the name.

    Attributes:
      algorithm: replaces `federation.algorithm`.
      up: replaces `wire.up`.
      sampler: replaces `federation.sampling`.
      callbacks: added to those of `run.callbacks`.
      scores: name -> score of answers, added to those of `answers.scores`.
    """

    algorithm: Algorithm | None = None
    up: tuple[Stage, ...] | None = None
    sampler: Sampler | None = None
    callbacks: tuple[Callback, ...] = ()
    scores: Mapping[str, AnswerScore] = field(default_factory=dict)


@dataclass(frozen=True)
class Resolved:
    """An experiment with all defaults explicit, and the objects that its names stand for.

    A name is looked up when its property is read: a model can be loaded where the plug-in of the
    algorithm that trained it is missing.

    Attributes:
      experiment: complete; a run folder that holds it repeats the run.
      plugins: names of installed packages that it may use.
      given: objects that replace names.
    """

    experiment: Experiment
    plugins: Plugins = field(default_factory=installed)
    given: Given = field(default_factory=Given)

    @property
    def algorithm(self) -> Algorithm:
        """The federated algorithm."""
        federation = self.experiment.federation
        return self.given.algorithm or tables.make_algorithm(
            federation.algorithm, federation.options, self.plugins
        )

    @property
    def sampler(self) -> Sampler:
        """The sampler of public cohorts."""
        federation = self.experiment.federation
        return self.given.sampler or tables.make_sampler(
            federation.sampling, federation.sampling_options, self.plugins
        )

    @property
    def up(self) -> tuple[Stage, ...]:
        """The stages from client to server, without those of privacy."""
        if self.given.up is not None:
            return self.given.up
        return tables.make_stages(self.experiment.wire.up, "wire.up", self.plugins)

    @property
    def down(self) -> tuple[Stage, ...]:
        """The stages from server to client."""
        return tables.make_stages(self.experiment.wire.down, "wire.down", self.plugins)

    @property
    def callbacks(self) -> tuple[Callback, ...]:
        """The callbacks that are named and those that are given, in this order."""
        named = tables.make_callbacks(self.experiment.run.callbacks, self.plugins)
        return (*named, *self.given.callbacks)

    @property
    def scores(self) -> dict[str, AnswerScore]:
        """The scores of answers that are named and those that are given, by name."""
        answers = self.experiment.answers
        named = tables.make_scores(answers.scores, self.plugins) if answers else {}
        return {**named, **self.given.scores}

    @property
    def task(self) -> Task | str | None:
        """The task of a plug-in, the name of one of ours, or None: it follows from the model."""
        name = self.experiment.model.task
        return name and (tables.task_rule(name, self.plugins) or name)

    @property
    def method(self) -> TuningMethod | None:
        """The tuning method of a plug-in; None for one of ours."""
        return tables.method_rule(self.experiment.tuning.method, self.plugins)

    @property
    def partition(self) -> Partition | None:
        """The partition of a plug-in; None for one of ours."""
        return tables.partition_rule(self.experiment.data.partition.scheme, self.plugins)

    def changed(self, **tables: object) -> Resolved:
        """Return a copy with other values in the experiment; see `Table.changed`."""
        return replace(self, experiment=self.experiment.changed(**tables))


def resolve(
    experiment: Experiment, *, plugins: Plugins | None = None, given: Given | None = None
) -> Resolved:
    """Make every default explicit that depends on other keys.

    Args:
      experiment: checked.
      plugins: names of installed packages that it may use; None: all that are installed here.
      given: objects that replace names.

    Raises:
      ConfigError: if an option is wrong.
    """
    given = given or Given()
    experiment = experiment.changed(**_named(given))
    experiment = experiment.changed(tuning=with_adapter(experiment.tuning, fetch=True))
    found = Resolved(experiment, installed() if plugins is None else plugins, given)
    tuning, data, client = experiment.tuning, experiment.data, experiment.client
    config = experiment.model.config
    federation, algorithm = experiment.federation, found.algorithm
    options = dict(federation.options)
    if given.algorithm is None:
        options = tables.algorithm_options(federation.algorithm, options, found.plugins)
    smallest = 1 if data.source in BUNDLED_DATASETS else 10
    partition = {
        "min_examples": data.partition.min_examples or smallest,
        "clients": num_clients(experiment) or data.partition.clients,
    }
    resolved = experiment.changed(
        model={
            "name": absolute("model.name", experiment.model.name),
            "config": config and absolute("model.config", config),
        },
        tuning={
            "start": tuning.start and absolute("tuning.from", tuning.start),
            "options": resolve_options(tuning.method, tuning.options, found.method),
        },
        data={
            "source": absolute("data.source", data.source),
            "chat_template": read_template(data.chat_template),
            "partition": partition,
        },
        client={
            "epochs": client.epochs or (None if client.max_steps else EPOCHS),
            "lr": learning_rate(experiment),
            "prox_mu": algorithm.prox_mu if client.prox_mu is None else client.prox_mu,
        },
        federation={"options": options, "buffered": _buffered(federation)},
        stability=_stability(experiment),
        answers=_answers(experiment),
        engine={"workers": _workers(experiment)},
        sweep=[],
        objects=origins(found),
    )
    return replace(found, experiment=resolve_privacy(resolved))


def learning_rate(experiment: Experiment) -> float:
    """Return the local learning rate: the given one, else the searched one, else the paper's."""
    lr, method = experiment.client.lr, experiment.tuning.method
    if isinstance(lr, float | int):
        return float(lr)
    name = experiment.model.name
    searched = read_toml(SEARCHED[name])["client"]["lr"] if name in SEARCHED else {}
    table = {**PAPER_LR, **searched, **(lr or {})}
    return float(table.get(method, table["bias"]))


_RESUMES = "only when it is passed again, from Python"


def _given_parts(given: Given) -> dict[str, tuple[object, ...]]:
    """Return the functions that each given object is made of, by the key that it replaces."""
    parts: dict[str, tuple[object, ...]] = {}
    if given.algorithm is not None:
        made = given.algorithm
        parts["federation.algorithm"] = (made.combine, made.apply, made.broadcast, made.init)
    if given.sampler is not None:
        parts["federation.sampling"] = (given.sampler.draw, given.sampler.observe)
    for i, stage in enumerate(given.up or ()):
        parts[f"wire.up[{i}]"] = (stage.encode, stage.decode, stage.finish, stage.init)
    return parts


def _word(parts: tuple[object, ...]) -> str:
    """Return the name to record for an object; its colon keeps it apart from names of a table."""
    return origin_of(*parts).name or "object:without a name"


def _named(given: Given) -> dict[str, object]:
    """Return the keys whose names are replaced by given objects, with the names to record."""
    words = {key: _word(parts) for key, parts in _given_parts(given).items()}
    federation: dict[str, object] = {}
    if given.algorithm is not None:
        federation = {"algorithm": words["federation.algorithm"], "options": {}}
    if given.sampler is not None:
        federation |= {"sampling": words["federation.sampling"], "sampling_options": {}}
    up = [{"name": words[f"wire.up[{i}]"]} for i in range(len(given.up or ()))]
    return {"federation": federation, "wire": {} if given.up is None else {"up": up}}


def origins(resolved: Resolved) -> dict[str, ObjectConfig]:
    """Return the origin of every object from outside this package, by its key.

    The run folder records these; an object without a name is recorded as such.
    """
    experiment, found = resolved.experiment, dict[str, ObjectConfig]()
    for key, parts in _given_parts(resolved.given).items():
        origin = origin_of(*parts)
        found[key] = ObjectConfig(name=_word(parts), sha256=origin.sha256, resumes=_RESUMES)
    names = {
        "algorithms": {"federation.algorithm": experiment.federation.algorithm},
        "samplers": {"federation.sampling": experiment.federation.sampling},
        "methods": {"tuning.method": experiment.tuning.method},
        "tasks": {"model.task": experiment.model.task or ""},
        "partitions": {"data.partition.scheme": experiment.data.partition.scheme},
        "stages": {
            f"wire.{way}[{i}]": str(spec.get("name"))
            for way in ("up", "down")
            for i, spec in enumerate(getattr(experiment.wire, way))
        },
        "callbacks": {
            f"run.callbacks[{i}]": str(spec.get("name"))
            for i, spec in enumerate(experiment.run.callbacks)
        },
        "scores": {
            f"answers.scores[{i}]": str(spec.get("name"))
            for i, spec in enumerate(experiment.answers.scores if experiment.answers else ())
        },
    }
    for group, used in names.items():
        for key, name in used.items():
            plugin = resolved.plugins.of(group).get(name)
            if plugin is None or key in found or name in tables.OURS[group]:
                continue
            origin = origin_of(plugin.load())
            found[key] = ObjectConfig(
                name=plugin.entry.value,
                package=plugin.package,
                version=plugin.version,
                sha256=origin.sha256,
            )
    return found


def _workers(experiment: Experiment) -> int:
    most = max(1, min(num_cores(), experiment.federation.clients_per_round))
    return ENGINES[experiment.engine.name].workers(experiment.engine, most)


def _buffered(federation: FederationConfig) -> dict[str, object]:
    """Return the sizes of buffered training; {} where rounds are synchronous."""
    options, cohort = federation.buffered, federation.clients_per_round
    if federation.mode != "buffered":
        return {}
    return {"size": options.size or cohort, "concurrency": options.concurrency or cohort}


def _answers(experiment: Experiment) -> AnswersConfig | None:
    """Return `[answers]` with the path of its file."""
    answers = experiment.answers
    if answers is None or answers.choices is None:
        return answers
    return answers.changed(choices=absolute("answers.choices", answers.choices))


def _stability(experiment: Experiment) -> StabilityConfig | None:
    """Return `[stability]`, which buffered training always has, with its trace's path and digest.

    Raises:
      ConfigError: if the trace's file is not the one that the experiment began with.
    """
    buffered = experiment.federation.mode == "buffered"
    stability = experiment.stability or (StabilityConfig() if buffered else None)
    if stability is None or stability.trace in (None, PHONES):
        return stability
    file = home(str(stability.trace)).resolve()
    if not file.is_file():
        return stability  # a plan needs no trace; a run reports that it is missing
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if stability.trace_sha256 not in (None, digest):
        raise ConfigError(
            f"stability.trace: {file} has changed: its SHA-256 is {digest}, the experiment began "
            f"with {stability.trace_sha256}. Put the file back, or leave stability.trace_sha256 out"
        )
    return stability.changed(trace=str(file), trace_sha256=digest)


def requested_clients(experiment: Experiment, num_clients: int) -> int:
    """Return how many turns a synchronous round requests: more than it uses with over-selection."""
    cohort, stability = experiment.federation.clients_per_round, experiment.stability
    factor = stability.over_selection if stability else 1.0
    return min(num_clients, math.ceil(cohort * factor - 1e-9))


def planned_turns(experiment: Experiment) -> tuple[int, int]:
    """Return how many replies a round uses, and how many turns it requests.

    The experiment is resolved. A plan assumes that no client fails.
    """
    federation = experiment.federation
    if federation.mode == "buffered":
        size = federation.buffered.size or federation.clients_per_round
        return size, size
    clients = experiment.data.partition.clients or federation.clients_per_round
    return federation.clients_per_round, requested_clients(experiment, clients)
