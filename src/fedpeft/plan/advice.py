"""Advice on a tuning method for an experiment, from what was measured on the test beds.

    experiment ──resolved, sketched──> setting ──nearest cell of each bed──> ranking, regret
               └─ each measured method on the experiment's own model ──> bytes, rounds it can afford

Bytes are those of the experiment's own model; accuracy is that of the test beds. With a limit on
what a client may upload, each method is scored after the rounds that it can afford.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedpeft.build.model import Sketch, sketch_run
from fedpeft.core.errors import ConfigError, FedpeftError, PrivacyError
from fedpeft.core.text import byte_words, dotted
from fedpeft.data.examples import Federated
from fedpeft.data.summary import num_examples
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.resolve import planned_turns, resolve
from fedpeft.plan.plan import local_data, planned_privacy, wire_sizes
from fedpeft.results.advice import (
    Ranked,
    Regret,
    advice_sentence,
    nearest_cells,
    nearest_miss,
    rank,
    regrets,
)
from fedpeft.results.evidence import Cell, Entry, Evidence
from fedpeft.results.settings import FACTOR, Setting, distance, obstacles, setting_of

_UNTRAINED = "preset:"


@dataclass(frozen=True)
class Cost:
    """What a measured method costs on the experiment's own model.

    Attributes:
      trained: number of trained parameters.
      up: encoded bytes that one client sends in one round.
      down: encoded bytes that one client receives in one round.
      upload: bytes that one client sends in the whole run, on average over all clients.
      rounds: rounds that count: those of the experiment, or fewer under a limit.
    """

    trained: int
    up: int
    down: int
    upload: float
    rounds: int


@dataclass(frozen=True)
class Advice:
    """What is known about the tuning methods in an experiment's setting.

    Attributes:
      name: of the experiment.
      setting: of the experiment.
      limit: bytes that one client may upload in the whole run; None without a limit.
      cells: the measured cells that the advice rests on; () without evidence.
      ranked: methods that can be used, best first; () without evidence.
      costs: label of a method -> its cost.
      left_out: label of a method -> why it is not ranked.
      regrets: of the rule, on each of the beds left out.
      reasons: why there is no evidence; () if there is.
      nearest: the nearest measured cell where there is no evidence; None if nothing was measured.
      notes: what differs from what was measured and is not compared.
    """

    name: str
    setting: Setting
    limit: float | None
    cells: tuple[Cell, ...] = ()
    ranked: tuple[Ranked, ...] = ()
    costs: Mapping[str, Cost] | None = None
    left_out: Mapping[str, str] | None = None
    regrets: tuple[Regret, ...] = ()
    reasons: tuple[str, ...] = ()
    nearest: Cell | None = None
    notes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The advice in one sentence."""
        if not self.ranked:
            return f"No evidence: {'; '.join(self.reasons)}."
        return advice_sentence(self.ranked, {k: cost.up for k, cost in (self.costs or {}).items()})

    def as_json(self) -> dict[str, Any]:
        """Return one JSON object; null where there is nothing to say."""
        losses = [each.loss for each in self.regrets]
        return {
            "name": self.name,
            "evidence": bool(self.ranked),
            "advice": self.sentence,
            "method": self.ranked[0].label if self.ranked else None,
            "setting": self.setting.as_json(),
            "upload_limit": self.limit,
            "measured": [_cell_json(cell, self.setting) for cell in self.cells],
            "methods": [self._row(row) for row in self.ranked],
            "left_out": dict(self.left_out or {}),
            "regret": {
                "mean": sum(losses) / len(losses) if losses else None,
                "worst": max(losses, default=None),
                "beds": [dict(vars(each)) for each in self.regrets],
            },
            "reasons": list(self.reasons),
            "nearest": _cell_json(self.nearest, self.setting) if self.nearest else None,
            "notes": list(self.notes),
        }

    def _row(self, row: Ranked) -> dict[str, Any]:
        return {
            "method": row.label,
            "accuracy": row.accuracy,
            "behind": row.lead.mean if row.lead else 0.0,
            "error": row.lead.error if row.lead else None,
            "beds": list(row.beds),
            "seeds": row.seeds,
            **vars((self.costs or {})[row.label]),
            "learning_rates": {
                cell.bed: entry.lr for cell in self.cells if (entry := cell.entry(row.label))
            },
        }


def advise(experiment: Experiment, evidence: Evidence, limit: float | None = None) -> Advice:
    """Rank the measured tuning methods for an experiment; its own method plays no part.

    Args:
      experiment: as for `make_plan`.
      evidence: what was measured.
      limit: bytes that one client may upload in the whole run, on average; None: no limit.

    Raises:
      ConfigError: if the model cannot be sketched (give `model.config`).
    """
    experiment = experiment.changed(tuning={"method": "head", "options": {}})  # fits every model
    data, problem = local_data(resolve(experiment))
    num_labels = data.num_labels if data else None
    sketch = sketch_run(experiment, num_labels)
    setting = _setting(sketch, data)
    notes = (*_unknown(setting, problem), *_not_compared(sketch.experiment))
    made = Advice(sketch.experiment.name, setting, limit, notes=notes)
    name = sketch.experiment.model.name
    untrained = name.startswith(_UNTRAINED)
    cells = [] if untrained else nearest_cells(setting, evidence.cells)
    if not cells:
        nearest = nearest_miss(setting, evidence.cells)
        return replace(made, reasons=tuple(_reasons(name, setting, nearest)), nearest=nearest)
    sketches, left_out = _sketches(experiment, num_labels, cells)
    costs = {label: _cost(each, setting, limit) for label, each in sketches.items()}

    def rounds(cell: Cell, entry: Entry) -> float:
        if entry.label not in costs:
            return 0
        return costs[entry.label].rounds if limit is not None else _whole(setting, cell)

    ranked = rank(cells, rounds)
    left_out |= _unranked(ranked, costs)
    if not ranked:
        reasons = ("no measured method can be used: " + "; ".join(left_out.values()),)
        return replace(made, reasons=reasons, nearest=cells[0], left_out=left_out)
    return replace(
        made,
        cells=tuple(cells),
        ranked=tuple(ranked),
        costs=costs,
        left_out=left_out,
        regrets=tuple(regrets(cells, evidence, rounds)),
        notes=(*notes, *_other_rounds(setting, cells, limit)),
    )


def _setting(sketch: Sketch, data: Federated | None) -> Setting:
    examples = num_examples(data) if data else _stated(sketch.experiment)
    epsilon = planned_privacy(sketch, data).planned()["epsilon"]
    return setting_of(
        dotted(sketch.experiment.model_dump(exclude_none=True)),
        kind=sketch.tuned.loaded.task.name,
        parameters=sketch.total_parameters,
        clients=len(data.clients) if data else None,
        examples=examples,
        epsilon=None if epsilon is None else float(str(epsilon)),
    )


def _unknown(setting: Setting, problem: FedpeftError | None) -> Iterator[str]:
    if problem is not None:
        yield f"the data cannot be read: {problem}"
    if setting.examples is None:
        yield "examples of a client are not compared: their number is not known (data.num_examples)"


def _stated(experiment: Experiment) -> int | None:
    """Return the number of training examples that the file states; None if it does not."""
    stated = [experiment.data.num_examples, experiment.data.budget]
    return min((each for each in stated if each), default=None)


def _not_compared(experiment: Experiment) -> Iterator[str]:
    """Yield what was not varied in the measurements."""
    federation = experiment.federation
    if federation.algorithm != "fedavg":
        yield f"measured with federation.algorithm = fedavg, not {federation.algorithm}"
    if federation.mode != "synchronous":
        yield f"measured with synchronous rounds, not {federation.mode}"
    if experiment.wire.up or experiment.wire.down:
        yield "measured without the stages of [wire]; bytes are those with them"
    if experiment.stability is not None:
        yield "measured without the failures and delays of [stability]"


def _other_rounds(setting: Setting, cells: Sequence[Cell], limit: float | None) -> Iterator[str]:
    """Say where accuracy is that of fewer or more rounds than the experiment has."""
    for cell in cells:
        if limit is None and (at := _whole(setting, cell)) > setting.rounds:
            yield f"{cell.bed}: accuracy is that after {at} rounds, not {setting.rounds}"
        if setting.rounds > cell.setting.rounds:
            yield (
                f"{cell.bed}: measured for {cell.setting.rounds} rounds; what happens up to round "
                f"{setting.rounds} is not known"
            )


def _reasons(model: str, setting: Setting, nearest: Cell | None) -> Iterator[str]:
    if nearest is None:
        yield "nothing has been measured yet"
        return
    if model.startswith(_UNTRAINED):
        yield f"{model} is not pretrained, and only pretrained models were measured"
    yield from obstacles(setting, nearest.setting)


def _sketches(
    experiment: Experiment, num_labels: int | None, cells: Sequence[Cell]
) -> tuple[dict[str, Sketch], dict[str, str]]:
    """Apply every measured method to the experiment's model: sketches, and why others fail."""
    made, refused = dict[str, Sketch](), dict[str, str]()
    for label, entry in {e.label: e for cell in reversed(cells) for e in cell.entries}.items():
        tuning = {"method": entry.method, "options": dict(entry.options)}
        try:
            made[label] = sketch_run(experiment.changed(tuning=tuning), num_labels)
        except (ConfigError, PrivacyError) as error:
            refused[label] = str(error)
    return made, refused


def _cost(sketch: Sketch, setting: Setting, limit: float | None) -> Cost:
    replies, _ = planned_turns(sketch.experiment)
    up, down = wire_sizes(sketch)
    a_round = up * replies / setting.clients  # of one client, on average
    rounds = setting.rounds
    if limit is not None:
        rounds = min(rounds, math.floor(limit / a_round))
    return Cost(sketch.tuned.spec.num_params, up, down, rounds * a_round, rounds)


def _whole(setting: Setting, cell: Cell) -> int:
    """Return the round after which all entries of a cell are scored where nothing limits them.

    It is the experiment's last, or the first after which all were evaluated, if that is at most
    `FACTOR` times as late.
    """
    first = max(entry.rounds[0] for entry in cell.entries)
    return first if setting.rounds < first <= FACTOR * setting.rounds else setting.rounds


def _unranked(ranked: Sequence[Ranked], costs: Mapping[str, Cost]) -> dict[str, str]:
    """Say why methods that the model takes are not ranked."""
    missing = {
        label: cost for label, cost in costs.items() if label not in {r.label for r in ranked}
    }
    return {
        label: f"not evaluated after so few rounds ({cost.rounds})"
        if cost.rounds >= 1
        else f"the limit is below one round of it ({byte_words(cost.up)} a turn)"
        for label, cost in missing.items()
    }


def _cell_json(cell: Cell, setting: Setting) -> dict[str, Any]:
    return {
        "bed": cell.bed,
        "model": cell.model,
        "distance": distance(setting, cell.setting),
        "setting": cell.setting.as_json(),
    }
