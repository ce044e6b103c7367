"""`[privacy]`: its keys, and the table of its modes.

    mode      protects   noise by   noise on                       promises
    none                                                           nothing
    central   client     server     the mean of clipped updates    epsilon
    local     client     client     its own clipped update         epsilon
    example   example    client     a sum of clipped gradients     epsilon
    paper                           a batch's mean gradient        nothing

All differences between modes are in their rows. Every mode with a guarantee has a constant
denominator, weight 1 and no figures in replies, and no BatchNorm that trains. Builders import what
they build, because the light processes of a site read this file too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field

from fedpeft.experiment.fields import Positive, Table
from fedpeft.wire.privacy_accounting import author_deviation, gaussian_deviation

if TYPE_CHECKING:
    from fedpeft.client.private import GradientPrivacy
    from fedpeft.wire.private_stages import Guard
    from fedpeft.wire.stages import Stage

__all__ = ["PRIVACY_MODES", "ModeName", "PrivacyConfig", "PrivacyMode"]


@dataclass(frozen=True)
class PrivacyMode:
    """One mode of `[privacy]`.

    Attributes:
      unit: what epsilon protects; None: there is no guarantee.
      noise_by: who adds the noise that epsilon counts, and keeps its secret root: the server in its
        checkpoint, or each client in its memory; None: there is no secret.
      note: the description of a run with noise in outputs; may hold `{variant}`.
      stage: builds the first stage of the way up; None: there is none.
      gradient: builds how clients clip and noise their gradients; None: they do not.
      distance: how far one unit moves what is noised, in units of `clip_norm`: 2 where noise must
        hide which of two values was sent.
      counts_epochs: the mechanism runs once an epoch on a unit; else once a round.
      secret_cohorts: cohorts may be drawn by secret coins, which amplifies privacy.
      empty_rounds: a round without a reply is legal.
      problems: yields what is wrong with the keys, a line each: (keys, number of clients if known).
    """

    unit: Literal["client", "example"] | None = None
    noise_by: Literal["server", "client"] | None = None
    note: str = ""
    stage: Callable[[PrivacyConfig], Stage] | None = None
    gradient: Callable[[PrivacyConfig], GradientPrivacy] | None = None
    distance: float = 1.0
    counts_epochs: bool = False
    secret_cohorts: bool = False
    empty_rounds: bool = False
    problems: Callable[[PrivacyConfig, int | None], Iterable[str]] = lambda chosen, clients: ()

    @property
    def hides_which(self) -> bool:
        """Whether noise must hide which of two values was sent, and not only that one was."""
        return self.distance == 2.0


def _central(chosen: PrivacyConfig) -> Stage:
    from fedpeft.wire.private_stages import central

    return central(_guard(chosen))


def _local(chosen: PrivacyConfig) -> Stage:
    from fedpeft.wire.private_stages import local

    return local(_guard(chosen))


def _guard(chosen: PrivacyConfig) -> Guard:
    from fedpeft.wire.private_stages import Guard

    return Guard(chosen.clip_norm, chosen.noise_multiplier or 0.0, chosen.reproducible_noise)


def _example(chosen: PrivacyConfig) -> GradientPrivacy:
    from fedpeft.client.private import GradientPrivacy

    secret = not chosen.reproducible_noise
    return GradientPrivacy(chosen.clip_norm, chosen.deviation, by_example=True, secret=secret)


def _paper(chosen: PrivacyConfig) -> GradientPrivacy:
    from fedpeft.client.private import GradientPrivacy

    epsilon, bound = chosen.epsilon or 5.0, chosen.clip_norm
    if chosen.variant == "author":
        noise = author_deviation(epsilon, chosen.delta, bound)
        return GradientPrivacy(math.inf, noise, divided=False)
    return GradientPrivacy(bound, gaussian_deviation(epsilon, chosen.delta, 2 * bound))


LARGEST_DELTA = 1e-2


def _noise_problems(chosen: PrivacyConfig, clients: int | None) -> Iterator[str]:
    if chosen.delta > LARGEST_DELTA:
        yield (
            f"privacy.delta: found {chosen.delta:g}; allowed is at most {LARGEST_DELTA:g}: with "
            "that probability a mechanism may publish everything. Use less than one over the "
            "number of clients or examples that it protects"
        )
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


def _client_problems(chosen: PrivacyConfig, clients: int | None) -> Iterator[str]:
    yield from _noise_problems(chosen, clients)
    if clients and chosen.delta * clients >= 1:
        yield (
            f"privacy.delta: found {chosen.delta} with {clients} clients; allowed is below 1 / "
            f"{clients}: a mechanism with that delta may publish the whole update of a client"
        )


def _paper_problems(chosen: PrivacyConfig, clients: int | None) -> Iterator[str]:
    if chosen.noise_multiplier is not None:
        yield (
            "privacy.noise_multiplier: found one with privacy.mode = 'paper'; its noise comes from "
            "epsilon by the formula of the variant. Leave it out"
        )
    if math.isinf(chosen.clip_norm):
        yield "privacy.clip_norm: found inf with privacy.mode = 'paper'; set a finite clip_norm"


PRIVACY_MODES: Mapping[str, PrivacyMode] = {
    "none": PrivacyMode(),
    "central": PrivacyMode(
        unit="client",
        noise_by="server",
        note="central, client level",
        stage=_central,
        secret_cohorts=True,
        empty_rounds=True,
        problems=_client_problems,
    ),
    "local": PrivacyMode(
        unit="client",
        noise_by="client",
        note="local, client level",
        stage=_local,
        distance=2.0,
        empty_rounds=True,
        problems=_client_problems,
    ),
    "example": PrivacyMode(
        unit="example",
        noise_by="client",
        note="example, example level",
        gradient=_example,
        counts_epochs=True,
        problems=_noise_problems,
    ),
    "paper": PrivacyMode(
        note="the paper's mechanism, variant {variant}: guarantees nothing",
        gradient=_paper,
        problems=_paper_problems,
    ),
}


def _clip_norm(found: float) -> float:
    """Refuse a bound for which float32 noise would be zero or infinite."""
    if not 1e-12 <= found <= 1e12 and not math.isinf(found):
        raise ValueError("allowed is 1e-12 to 1e12, or inf without noise")
    return found


if TYPE_CHECKING:
    ModeName: TypeAlias = str
else:
    ModeName = Literal[tuple(PRIVACY_MODES)]  # the schema allows what the table names


class PrivacyConfig(Table):
    """`[privacy]`: differential privacy."""

    mode: ModeName = "none"
    """Where updates or gradients get their noise; `paper` guarantees nothing."""
    variant: Literal["author", "corrected"] = "corrected"
    """Mode `paper`: the formula of the authors' code, or the correct one."""
    epsilon: Annotated[float, Field(ge=1e-6, le=1e4)] | None = None
    """Privacy budget of the run; the noise is calibrated to it."""
    noise_multiplier: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """Standard deviation of the noise, in units of `clip_norm`; calibrated where not given."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    """Delta of the (epsilon, delta) guarantee; at most 0.01, and below 1 / clients."""
    clip_norm: Annotated[float, Field(gt=0), AfterValidator(_clip_norm)] = 1.0
    """L2 bound of what is noised."""
    example_sampling: Literal["poisson", "shuffle"] | None = None
    """Mode `example`: each example is in a batch by a secret coin of its own (`poisson`, the
    default), or an epoch is shuffled and cut, which amplifies nothing."""
    examples_per_client: Positive | None = None
    """Mode `example`, Poisson: the public number n of examples of a client, for the rate
    `batch_size` / n and for the steps; the mean of the run's clients by default."""
    reproducible_noise: bool = False
    """Draw the noise from the seed, for tests: not private."""

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on what is clipped, before anything is divided."""
        return self.noise_multiplier * self.clip_norm if self.noise_multiplier else 0.0
