"""Probe turns of mode `example`: batches that are designed to show what a private step does.

    one example, repeated, its loss multiplied by a factor for each copy:

    factor 0      no gradient: what is released is the noise alone
    factor huge   a gradient of 10000 C: n of them add at most n C along any direction
    factor small  gradients g of 0.9 C: what is released is n g / B, not n g / n      B: batch size

A round is also repeated with the same secrets and other factors: its noise must be fresh, else the
difference of the two releases would be free of noise.

n is the number of copies in the batch. With Poisson sampling it is random, and known here because
the copies that were read are counted; clients that hold a single copy, without a gradient, show
what an empty batch releases. `example_scene` says what of a turn is the run's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from fedpeft.client.turns import DELTA
from fedpeft.data.examples import Federated
from fedpeft.experiment.resolve import Resolved
from fedpeft.studies.audit.checks import EXACT, Observed
from fedpeft.studies.audit.contributions import lone_norms, twin_of
from fedpeft.studies.audit.example_scene import STEP, Scene, Seen, build_scene
from fedpeft.studies.audit.probes import HUGE, least_norm
from fedpeft.studies.audit.statistics import Floats
from fedpeft.wire import messages

_ROUNDS = 4
_EPOCHS, _STEPS = 2, 2
_BELOW = 0.9
_MOST_TURNS = 64
_TRIED = 32  # rounds, until a batch of the twin has an example


def observe_examples(resolved: Resolved, data: Federated, multiplier: float) -> Observed:
    """Take turns of mode `example` with designed batches.

    Args:
      resolved: the experiment that runs, with its model's labels and the clients of a pass.
      data: of all clients; one example of it is used.
      multiplier: the claimed noise multiplier z, > 0.
    """
    sums_TP = _sums(resolved, data, multiplier)
    norms = _twin_norms(resolved, data, multiplier)
    scene = build_scene(resolved, data, multiplier)
    idle = scene.held(0.0, scene.many)
    many_TP = _noise(scene, [idle] * _ROUNDS, first=1)
    varied = _fewer(scene)
    few_TP = _noise(scene, varied, first=_ROUNDS + 1) if varied else None
    simulated = resolved.experiment.privacy.reproducible_noise
    again_TP = None if simulated else _noise_again(scene)
    first = 2 * _ROUNDS + 1
    scores, blur = _clip_scores(scene, first)
    return Observed(
        many_TP if few_TP is None else np.concatenate([many_TP, few_TP]),
        scene.tuned.spec.sizes,
        None if simulated else _noise(scene, [idle] * 2, first=1, secrets="again"),
        again_TP=again_TP,
        sums_TP=sums_TP,
        clip_scores=scores,
        clip_norms=norms,
        least_norm=1 + EXACT if norms else least_norm(blur, len(scores)),
        denominator_scores=_residuals(scene, first + 2 * _MOST_TURNS) if varied else (),
        few_TP=few_TP,
        many_TP=None if few_TP is None else many_TP,
    )


def _noise(
    scene: Scene, held: Sequence[Sequence[float]], *, first: int, secrets: str = ""
) -> Floats:
    """Return what turns without gradients release [T, P], one row for each client and round.

    Args:
      scene: of the run.
      held: of each round, what its clients hold.
      first: number of the first round.
      secrets: names the clients' memories.
    """
    numbers = range(first, first + len(held))
    pairs = zip(held, numbers, strict=True)
    return np.stack([one.row_P for own, n in pairs for one in scene.turns(own, n, secrets)])


def _noise_again(scene: Scene) -> Floats | None:
    """Return the noise of round 1 [T, P], a row for each client, repeated with gradients of 0.9 C.

    A client whose batch is empty again releases the same sum, with the same noise, and is left out;
    None if all are.
    """
    unit_P = scene.gradient_P / np.linalg.norm(scene.gradient_P)
    seen = scene.turns(scene.held(_BELOW, scene.many), 1)
    found = [
        one.row_P - sum(one.lengths) / scene.multiplier * unit_P for one in seen if one.lengths
    ]
    return np.stack(found) if found else None


def _sums(resolved: Resolved, data: Federated, multiplier: float) -> Floats:
    """Return sums of the noise of several steps [T, P], over the root of their number."""
    scene = build_scene(resolved, data, multiplier, epochs=_EPOCHS, steps=_STEPS)
    size = scene.many if scene.rate is not None else _STEPS * scene.batch_size
    idle = scene.held(0.0, size)
    return _noise(scene, [idle] * _ROUNDS, first=1001) / math.sqrt(_EPOCHS * _STEPS)


def _fewer(scene: Scene) -> list[list[float]]:
    """Return what clients hold in rounds of few examples; [] where their number cannot vary."""
    half = scene.held(0.0, scene.batch_size // 2)
    if scene.rate is not None:
        return [scene.held(0.0, 0), half] * (_ROUNDS // 2)
    return [half] * _ROUNDS if scene.batch_size > 1 else []


def _taken(scene: Scene, held: Sequence[float], turns: int, first: int) -> list[Seen]:
    """Take turns from a round on, until there are enough."""
    found: list[Seen] = []
    while len(found) < turns:
        found += scene.turns(held, first)
        first += 1
    return found[:turns]


def _clip_scores(scene: Scene, first: int) -> tuple[tuple[float, ...], float]:
    """Return by how many deviations contributions exceed C each along a direction, and the blur.

    The first score is of all full batches together, the others are of turns in which about one
    example has a gradient. The blur is the deviation of the mean contribution to the first.
    """
    along_P, tensors = scene.along()
    turns = _num_turns(scene.multiplier, scene.many, tensors)

    def excess(one: Seen) -> float:
        return float(one.row_P @ along_P) - len(one.lengths) / scene.multiplier

    huge = _taken(scene, scene.held(HUGE, scene.many), turns, first)
    lone = [*scene.held(HUGE, 1), *scene.held(0.0, scene.many - 1)]
    single = _taken(scene, lone, 2 if scene.rate is None else 8, first + turns)
    together = sum(map(excess, huge)) / math.sqrt(turns)
    count = sum(len(one.lengths) for one in huge)
    blur = scene.multiplier * math.sqrt(turns) / count if count else math.inf
    return (together, *map(excess, single)), blur


def _residuals(scene: Scene, first: int) -> tuple[float, ...]:
    """Return how far releases are from (sum of gradients) / B, in deviations of the noise."""
    unit_P = scene.gradient_P / np.linalg.norm(scene.gradient_P)
    many = _taken(scene, scene.held(_BELOW, scene.many), 2, first)
    few = _taken(scene, scene.held(_BELOW, max(1, scene.batch_size // 2)), 4, first + 2)
    return tuple(
        float(one.row_P @ unit_P) - sum(one.lengths) / scene.multiplier for one in [*many, *few]
    )


def _num_turns(multiplier: float, batch_size: int, tensors: int) -> int:
    """Return how many batches show a clip of each tensor."""
    over = math.sqrt(max(2, tensors)) - 1
    needed = (10 * multiplier / (over * batch_size)) ** 2
    return max(2, math.ceil(min(_MOST_TURNS, needed)))


def _twin_norms(resolved: Resolved, data: Federated, multiplier: float) -> tuple[float, ...]:
    """Return the norms of single examples' contributions, in clip bounds.

    The twin's coins come from the seed too: one turn has the same batch whatever its lengths are.
    """
    changed = resolved.changed(privacy=twin_of(resolved.experiment).privacy)
    twin = build_scene(changed, data, multiplier)
    idle = twin.held(0.0, twin.many)
    drawn = ((number, twin.turns(idle, number)[0].places) for number in range(1, _TRIED + 1))
    found = next(((number, places[0]) for number, places in drawn if places), None)
    if found is None:
        return ()
    number, place = found

    def release(length: float) -> Floats:
        twin.memories.clear()
        held = [*idle[:place], length, *idle[place + 1 :]]
        return twin.turns(held, number)[0].row_P * multiplier

    values = float(torch.linalg.vector_norm(messages.decode(twin.broadcast)[0][DELTA]))
    return lone_norms(release, values=values * multiplier / STEP)
