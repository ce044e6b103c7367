"""What one client, or one example, contributes to a noised release, seen without the noise.

    twin of the run whose noise comes from the seed:   release(u) - release(0) = clip(u)    exactly

The twin has the mechanism of the run; only the secret of its noise is exchanged for the seed, so
that two releases of one turn have the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fedpeft.build.privacy_of_run import PrivacyOfRun
from fedpeft.client.turns import DELTA, ClientTurn, LocalResult, Payload
from fedpeft.core.deltas import DeltaSpec
from fedpeft.data.examples import NO_DATA
from fedpeft.experiment.experiment import Experiment
from fedpeft.rounds.client_half import ClientHalf, run_turn
from fedpeft.studies.audit.statistics import Floats
from fedpeft.wire import messages
from fedpeft.wire.stages import decode_all

Release = Callable[[float], Floats]
"""Length of one contribution before the clip -> what is released [P]; both in clip bounds."""

_LENGTHS = (1e4, 2.0)  # to be clipped
_SHORT = 0.5  # not to be clipped
_ULP = 2.0**-23  # of float32


def lone_norms(release: Release, *, values: float = 0.0) -> tuple[float, ...]:
    """Return the norms of single contributions that must be clipped, in clip bounds.

    Args:
      release: of the twin.
      values: norm of other numbers, in clip bounds, that were added and subtracted again.

    Returns:
      the norms, less what rounding may add; () if equal turns of the twin have different noise.
    """
    idle_P = release(0.0)

    def norm(length: float) -> tuple[float, float]:
        sent_P = release(length)
        rounding = _ULP * float(np.linalg.norm(sent_P) + np.linalg.norm(idle_P) + 2 * values)
        return float(np.linalg.norm(sent_P - idle_P)), rounding

    found, rounding = norm(_SHORT)
    if not math.isclose(found, _SHORT, abs_tol=1e-3 + rounding):
        return ()
    return tuple(max(0.0, found - rounding) for found, rounding in map(norm, _LENGTHS))


def twin_of(experiment: Experiment) -> Experiment:
    """Return the experiment whose noise comes from the seed."""
    privacy = experiment.privacy.model_copy(update={"reproducible_noise": True})
    return experiment.model_copy(update={"privacy": privacy})


def twin_replies(experiment: Experiment, spec: DeltaSpec, direction_P: Tensor) -> Release:
    """Return the release of one client of the twin, in mode `local`.

    Args:
      experiment: resolved.
      spec: of the delta.
      direction_P: unit vector along which the client sends.
    """
    stages, bound = PrivacyOfRun(twin_of(experiment)).stages, experiment.privacy.clip_norm

    def release(length: float) -> Floats:
        update_P = direction_P * (length * bound)

        def train(broadcast: Payload, turns: Sequence[ClientTurn]) -> Iterator[LocalResult]:
            yield LocalResult({DELTA: update_P}, 1.0, {})

        half = ClientHalf(train, stages, (), spec, private=True)
        turn = ClientTurn(1, "audit-probe-0", NO_DATA, {}, experiment.seed, 0)
        blob, _ = run_turn(half, messages.encode({DELTA: torch.zeros(spec.num_params)}), turn)
        sent_P: Floats = decode_all(stages, messages.decode(blob)[0], turn)[DELTA].double().numpy()
        return sent_P / bound

    return release
