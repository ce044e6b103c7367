"""What `[privacy]` refuses: settings that would not protect, each with the reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from fedpeft.experiment.experiment import Experiment

__all__ = ["privacy_problems"]


def privacy_problems(experiment: Experiment, clients: int | None) -> Iterator[str]:
    """Yield every unsound or contradictory privacy setting, a line each.

    Args:
      experiment: that passed the schema.
      clients: how many there will be; None where only the data can tell.
    """
    if experiment.federation.sampling == "poisson":
        yield from _poisson(experiment, clients)
    if experiment.privacy.mode == "none":
        return
    if experiment.privacy.mode == "paper":
        yield from _paper(experiment)
        return
    checks: list[Callable[[Experiment, int | None], Iterator[str]]] = [_noise, _outside]
    for check in checks:
        yield from check(experiment, clients)


def _poisson(experiment: Experiment, clients: int | None) -> Iterator[str]:
    if experiment.privacy.mode != "central":
        yield (
            "federation.sampling: found 'poisson' with privacy.mode = "
            f"{experiment.privacy.mode!r}; allowed is 'central' only: a secret cohort amplifies "
            "privacy only where the server keeps it, and an empty one is legal only with noise"
        )
    if clients is None:
        yield (
            "federation.sampling: found 'poisson' with data.partition.scheme = 'natural'; its "
            "number of clients comes from the data, and the sampling probability may not. Use "
            "'fixed'"
        )


def _paper(experiment: Experiment) -> Iterator[str]:
    if experiment.privacy.noise_multiplier is not None:
        yield (
            "privacy.noise_multiplier: found one with privacy.mode = 'paper'; its noise comes from "
            "epsilon by the formula of the variant. Leave it out"
        )
    if math.isinf(experiment.privacy.clip_norm):
        yield "privacy.clip_norm: found inf with privacy.mode = 'paper'; set a finite clip_norm"


def _noise(experiment: Experiment, clients: int | None) -> Iterator[str]:
    chosen = experiment.privacy
    if chosen.epsilon is None and chosen.noise_multiplier is None:
        yield (
            "privacy.epsilon: not set, and privacy.noise_multiplier neither; set a target epsilon, "
            "or the noise itself"
        )
    if math.isinf(chosen.clip_norm) and (chosen.noise_multiplier or chosen.epsilon):
        yield (
            "privacy.clip_norm: found inf with noise; the noise is a multiple of the bound. Set a "
            "finite clip_norm"
        )
    if chosen.noise_multiplier == 0 and chosen.epsilon is not None:
        yield (
            "privacy.noise_multiplier: found 0 with a target epsilon; without noise epsilon is "
            "infinite. Leave out one of the two"
        )
    if chosen.mode != "example" and clients and chosen.delta * clients >= 1:
        yield (
            f"privacy.delta: found {chosen.delta} with {clients} clients; allowed is below 1 / "
            f"{clients}: at that delta a mechanism may publish one client's update whole"
        )


def _outside(experiment: Experiment, clients: int | None) -> Iterator[str]:
    federation, mode = experiment.federation, experiment.privacy.mode
    if federation.min_replies > 1:
        yield (
            f"federation.min_replies: found {federation.min_replies} with privacy.mode = {mode!r}; "
            "allowed is 1 (the default, and no minimum here): ending a run because few came tells "
            "who came"
        )
    if federation.evaluate_clients:
        yield (
            f"federation.evaluate_clients: found true with privacy.mode = {mode!r}; figures client "
            "by client use their labels, outside of clip and noise. Set it to false"
        )
    if federation.mode != "synchronous":
        yield (
            f"federation.mode: found {federation.mode!r} with privacy.mode = {mode!r}; allowed is "
            "'synchronous': epsilon counts a known schedule, and here the clock decides"
        )
    if experiment.stability is not None:
        yield (
            f"stability: found with privacy.mode = {mode!r}; who is asked and who answers then "
            "depends on more than the schedule that epsilon counts. Leave the table out"
        )
    if experiment.data.transforms.normalize == "dataset":
        yield (
            f"data.transforms.normalize: found 'dataset' with privacy.mode = {mode!r}; mean and "
            "deviation of all clients' data are not noised. Use 'model', or a mean and a std"
        )
