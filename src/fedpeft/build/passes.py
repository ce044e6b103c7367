"""How many clients share a pass: as given, from the table below, or measured.

    engine.clients_per_pass = 8            eight
                              not set      from TABLE by family, method, local batch and device
                              "measure"    the fastest on this machine, before round 1

The number is written into the run's experiment, and a resumed run keeps it, on any machine:
rounding depends on it. The table holds only what gained at least 1.2x on a CPU
(docs/concepts/speed.md); everything else trains one by one.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence

from torch import Tensor

from fedpeft.client.passes.many import many_trainer, why_one_by_one
from fedpeft.client.settings import LocalSettings
from fedpeft.client.turns import DELTA, ClientTurn
from fedpeft.data.examples import ClientData, Federated
from fedpeft.engines.workers import one_thread
from fedpeft.experiment.engines import ENGINES
from fedpeft.experiment.experiment import Experiment
from fedpeft.tuning.tuned import TunedModel, read_delta, write_delta

logger = logging.getLogger(__name__)

UNDECIDED = (None, "measure")
"""Values of `engine.clients_per_pass` for which the number is chosen here."""

_TRIED = (1, 2, 4, 8, 16, 32)
_STEPS = 2
_REPEATS = 3
_SHARES = 4


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: how many clients share a pass.

    Attributes:
      family: family of the model.
      device: `cpu` or `cuda`.
      parameters: largest number of parameters of the whole model.
      by_batch: largest local batch -> clients in a pass, in ascending order.
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
    given = experiment.engine.clients_per_pass
    shares = ENGINES[experiment.engine.name].shares_passes
    reason = why_one_by_one(tuned, settings) if shares else "engine.name"
    if given not in UNDECIDED:
        if reason and given != 1:
            logger.info("engine.clients_per_pass = %s has no effect: %s", given, reason)
        return experiment
    chosen = 1
    if not reason:
        cohort = min(experiment.federation.clients_per_round, len(data.clients))
        workers = experiment.engine.workers or 1
        chosen = (
            measure_passes(tuned, data, settings, cohort=cohort, workers=workers)
            if given == "measure"
            else default_passes(tuned, settings, cohort)
        )
    return experiment.changed(engine={"clients_per_pass": chosen})


def default_passes(tuned: TunedModel, settings: LocalSettings, cohort: int) -> int:
    """Look up how many clients share a pass; at most a quarter of a cohort, to keep cores busy.

    It is 1 where the delta is more than a tenth of the model: K deltas would need much memory.
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
    """Train a few steps with 1, 2, 4, ... clients in a pass, and return the fastest number.

    The delta of `tuned` is restored afterwards. The time of a whole cohort on all workers is
    compared; a larger number must gain 5 % over a smaller one.
    """
    short = dataclasses.replace(settings, epochs=1, max_steps=None)
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
    """Make turns of a few steps for the first clients that have examples."""
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
