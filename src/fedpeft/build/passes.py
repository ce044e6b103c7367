"""How many clients share a pass: as asked, from the committed table, or measured.

    engine.clients_per_pass = 8            eight
                              not set      from TABLE by family, method, local batch and device
                              "measure"    the fastest on this machine, before round 1

What is found is written into the run's experiment, and a resumed run goes on with it: rounding
depends on it, so it may not follow from the machine of the day. The table holds only what gained at
least 1.2x on a CPU (docs/concepts/speed.md); everything else trains one by one.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence

from torch import Tensor

from fedpeft.client.local import LocalSettings
from fedpeft.client.passes.many import many_trainer, why_one_by_one
from fedpeft.client.turns import DELTA, ClientTurn
from fedpeft.data.examples import ClientData, Federated
from fedpeft.engines.workers import one_thread
from fedpeft.experiment.engines import ENGINES
from fedpeft.experiment.experiment import Experiment
from fedpeft.tuning.tuned import TunedModel, read_delta, write_delta

__all__ = ["TABLE", "UNDECIDED", "default_passes", "measure_passes", "resolve_passes"]

logger = logging.getLogger(__name__)

UNDECIDED = (None, "measure")
"""Values of `engine.clients_per_pass` that leave the choice to us."""

_TRIED = (1, 2, 4, 8, 16, 32)
_STEPS = 2
_REPEATS = 3
_SHARES = 4


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
      family: of the model.
      device: `cpu` or `cuda`.
      parameters: of the whole model, at most.
      by_batch: largest local batch -> clients a pass, in ascending order.
    """

    family: str
    device: str
    parameters: int
    by_batch: Mapping[int, int]


TABLE: Sequence[Row] = (
    Row("vit", "cpu", 1_000_000, {1: 32, 4: 16}),
    Row("bert", "cpu", 25_000_000, {1: 8}),
)
"""What gained at least 1.2x over training one by one, for all methods that can share a pass."""


def resolve_passes(
    experiment: Experiment, tuned: TunedModel, data: Federated, settings: LocalSettings
) -> Experiment:
    """Decide how many clients share a pass where the experiment leaves that open."""
    asked = experiment.engine.clients_per_pass
    shares = ENGINES[experiment.engine.name].shares_passes
    reason = why_one_by_one(tuned, settings) if shares else "engine.name"
    if asked not in UNDECIDED:
        if reason and asked != 1:
            logger.info("engine.clients_per_pass = %s has no effect: %s", asked, reason)
        return experiment
    chosen = 1
    if not reason:
        cohort = min(experiment.federation.clients_per_round, len(data.clients))
        measured = asked == "measure"
        chosen = (
            measure_passes(tuned, data, settings, cohort=cohort, workers=_workers(experiment))
            if measured
            else default_passes(tuned, settings, cohort)
        )
    engine = experiment.engine.model_copy(update={"clients_per_pass": chosen})
    return experiment.model_copy(update={"engine": engine})


def default_passes(tuned: TunedModel, settings: LocalSettings, cohort: int) -> int:
    """Look up how many clients share a pass; at most a quarter of a cohort, to keep cores busy.

    It is 1 where the delta is more than a tenth of the model: K of them would be large.
    """
    family, device = tuned.loaded.family.name, settings.device.partition(":")[0]
    size = sum(parameter.numel() for parameter in tuned.loaded.module.parameters())
    for row in TABLE if tuned.spec.num_params <= size / 10 else ():
        if (row.family, row.device) == (family, device) and size <= row.parameters:
            fitting = [k for batch, k in row.by_batch.items() if settings.batch_size <= batch]
            return max(1, min(fitting[0], cohort // _SHARES)) if fitting else 1
    return 1


def measure_passes(
    tuned: TunedModel, data: Federated, settings: LocalSettings, *, cohort: int, workers: int
) -> int:
    """Train a few steps of the first clients with 1, 2, 4, ... a pass, and return the best number.

    The delta of `tuned` is as before afterwards. What counts is the time of a whole cohort on all
    workers; more clients a pass must gain 5 % over fewer.
    """
    short = dataclasses.replace(settings, epochs=1)
    start_P = read_delta(tuned)
    turns = _short_turns(data, settings, max(_TRIED))
    best, fastest = 1, float("inf")
    try:
        for number in [k for k in _TRIED if k <= min(cohort, len(turns))]:
            with one_thread():
                seconds = _seconds(tuned, short, start_P, turns[:number])
            rounds = math.ceil(math.ceil(cohort / number) / workers)
            logger.info("%d clients a pass: %.1f ms a pass", number, 1e3 * seconds)
            if rounds * seconds < 0.95 * fastest:
                best, fastest = number, rounds * seconds
    finally:
        write_delta(tuned, start_P)
    return best


def _short_turns(data: Federated, settings: LocalSettings, count: int) -> list[ClientTurn]:
    """Turns of the first clients that have examples, each of a few steps."""
    room = _STEPS * settings.batch_size
    some = [(name, rows) for name, rows in data.clients.items() if len(rows)][:count]
    return [
        ClientTurn(1, name, ClientData(data.train, rows[:room]), {}, seed, 0)
        for seed, (name, rows) in enumerate(some)
    ]


def _seconds(
    tuned: TunedModel, settings: LocalSettings, start_P: Tensor, turns: Sequence[ClientTurn]
) -> float:
    trainer = many_trainer(tuned, settings, clients_per_pass=len(turns))
    taken = []
    for _ in range(1 + _REPEATS):
        began = time.perf_counter()
        list(trainer({DELTA: start_P}, turns))
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


def _workers(experiment: Experiment) -> int:
    return experiment.engine.workers or 1
