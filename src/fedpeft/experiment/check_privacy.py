"""Checks of `[privacy]`: settings that would not protect are refused, each with the reason."""

from __future__ import annotations

from collections.abc import Iterator

from fedpeft.core.errors import PrivacyError
from fedpeft.experiment.engines import ENGINES
from fedpeft.experiment.experiment import Experiment, num_clients
from fedpeft.experiment.privacy import PRIVACY_MODES
from fedpeft.server.algorithms import weighted_mean
from fedpeft.server.state import Algorithm


def privacy_problems(experiment: Experiment) -> Iterator[str]:
    """Yield every unsound or contradictory privacy setting of an experiment, a line each."""
    mode, clients = PRIVACY_MODES[experiment.privacy.mode], num_clients(experiment)
    if experiment.federation.sampling == "poisson":
        yield from _poisson(experiment.privacy.mode, clients)
    yield from mode.problems(experiment.privacy, clients)
    if mode.unit is not None:
        yield from _outside(experiment)
    if mode.unit == "example":
        yield from _examples(experiment)
    if mode.gradient is not None:
        yield from _gradients(experiment)


def refuse_combination(experiment: Experiment, algorithm: Algorithm) -> None:
    """Refuse an algorithm that combines updates in a way of its own where noise is for their mean.

    Raises:
      PrivacyError: for such an algorithm in a mode that promises something.
    """
    mode = experiment.privacy.mode
    if PRIVACY_MODES[mode].unit is not None and algorithm.combine is not weighted_mean:
        raise PrivacyError(
            f"federation.algorithm: found {experiment.federation.algorithm!r} with privacy.mode = "
            f"{mode!r}; it combines updates in a way of its own (a median, say), and the noise is "
            "calibrated for their mean. Use an algorithm that takes the mean, such as 'fedavg'"
        )


def _poisson(mode: str, clients: int | None) -> Iterator[str]:
    if not PRIVACY_MODES[mode].secret_cohorts:
        allowed = " or ".join(repr(name) for name, m in PRIVACY_MODES.items() if m.secret_cohorts)
        yield (
            f"federation.sampling: found 'poisson' with privacy.mode = {mode!r}; allowed is "
            f"{allowed} only: a secret cohort amplifies privacy only where the server keeps it, "
            "and an empty one is legal only with noise"
        )
    if clients is None:
        yield (
            "federation.sampling: found 'poisson' with data.partition.scheme = 'natural'; its "
            "number of clients comes from the data, and the sampling probability may not. Use "
            "'fixed'"
        )


def _examples(experiment: Experiment) -> Iterator[str]:
    chosen = experiment.privacy
    if experiment.client.gradient_checkpointing:
        yield (
            f"client.gradient_checkpointing: found true with privacy.mode = {chosen.mode!r}; "
            "gradients of single examples come from transforms of torch that cannot run a block "
            "twice. Leave the key out"
        )
    if experiment.data.partition.scheme == "drawn":
        yield (
            f"data.partition.scheme: found 'drawn' with privacy.mode = {chosen.mode!r}; it gives "
            "one example to a client several times, and to several clients, and epsilon counts "
            "each example once. Use a scheme that deals each example once, such as 'dirichlet'"
        )
    if experiment.data.packing:
        yield (
            f"data.packing: found true with privacy.mode = {chosen.mode!r}; one example more or "
            "less would move others to other rows, and epsilon counts one row. Set it to false"
        )
    engine = ENGINES.get(experiment.engine.name)
    asked = chosen.example_sampling == "poisson" and chosen.examples_per_client is None
    if asked and engine is not None and engine.deployed:
        yield (
            "privacy.example_sampling: found 'poisson' with engine.name = "
            f"{experiment.engine.name!r} and no privacy.examples_per_client; a server is not told "
            "how many examples a site holds. Set that public number, or use 'shuffle'"
        )


def _gradients(experiment: Experiment) -> Iterator[str]:
    """Yield keys that change gradients or batches in a mode that clips and noises them itself."""
    mode, client = experiment.privacy.mode, experiment.client
    for key, found, reason in (
        (
            "gradient_clip",
            client.gradient_clip,
            "that mode clips gradients itself, to privacy.clip_norm, before the noise; a second "
            "clip would shrink what is left of them. Leave the key out",
        ),
        (
            "accumulation",
            client.accumulation if client.accumulation > 1 else None,
            "noise is calibrated for batches of client.batch_size, and the gradients of a batch "
            "of any size are added up in little memory. Leave the key out, and raise batch_size",
        ),
        (
            "by_length",
            client.by_length or None,
            "batches that follow from the texts are neither drawn by secret coins nor shuffled "
            "alike. Leave the key out",
        ),
    ):
        if found is not None:
            yield f"client.{key}: found {found} with privacy.mode = {mode!r}; {reason}"


def _outside(experiment: Experiment) -> Iterator[str]:
    federation, mode = experiment.federation, experiment.privacy.mode
    if federation.min_replies > 1:
        yield (
            f"federation.min_replies: found {federation.min_replies} with privacy.mode = {mode!r}; "
            "allowed is 1 (the default, and no minimum here): ending a run because of few replies "
            "reveals who replied"
        )
    if federation.evaluate_clients:
        yield (
            f"federation.evaluate_clients: found true with privacy.mode = {mode!r}; figures of "
            "single clients use their labels without clip and noise. Set it to false"
        )
    if federation.mode != "synchronous":
        yield (
            f"federation.mode: found {federation.mode!r} with privacy.mode = {mode!r}; allowed is "
            "'synchronous': epsilon counts a known schedule, and here the clock decides it"
        )
    if experiment.stability is not None:
        yield (
            f"stability: found with privacy.mode = {mode!r}; it makes cohorts and replies depend "
            "on more than the schedule that epsilon counts. Leave the table out"
        )
    if experiment.data.transforms.normalize == "dataset":
        yield (
            f"data.transforms.normalize: found 'dataset' with privacy.mode = {mode!r}; mean and "
            "deviation of all clients' data would get no noise. Use 'model', or a mean and a std"
        )
