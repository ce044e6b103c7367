"""The terms in which a federated setting is compared with measured ones, and how near two are.

    kind, privacy mode, skew        must be equal
    counts, alpha, epsilon          may differ by a factor of 4, the model's size by 10
    rounds                          at most 4 times the measured ones; fewer are read off the curve

The distance is the sum of the ratios' binary logarithms. What is not in this list (algorithm,
compression, optimiser, failures) is not compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

FACTOR = 4.0
"""Largest ratio between a count and the measured one."""
MODEL_FACTOR = 10.0
"""Largest ratio between the model's number of parameters and the measured one."""
EVEN_ALPHA = 10.0
"""From this Dirichlet concentration on, labels count as evenly spread."""

_ROUNDS = "rounds"
_EVEN = ("iid", "quantity")
_DIRICHLET = ("dirichlet", "dirichlet-plain")


@dataclass(frozen=True)
class Setting:
    """A federated setting.

    Attributes:
      kind: name of the task, such as `image-classification`.
      parameters: number of parameters of the whole model.
      rounds: number of rounds.
      epochs: local epochs of a turn.
      clients: number of clients.
      cohort: clients of a round.
      examples: mean number of training examples of a client; None if it is not known.
      skew: `even`, `dirichlet`, or the name of another partition.
      alpha: Dirichlet concentration; None unless the skew is `dirichlet`.
      privacy: the privacy mode, of `paper` with its variant; `none` without.
      epsilon: privacy spent by the run; None without a guarantee, or if it is not known.
    """

    kind: str
    parameters: int
    rounds: int
    epochs: int
    clients: int
    cohort: int
    examples: float | None
    skew: str
    alpha: float | None
    privacy: str
    epsilon: float | None

    def as_json(self) -> dict[str, Any]:
        """Return one JSON object."""
        return asdict(self)

    @property
    def words(self) -> str:
        """The setting in one line."""
        skew = f"Dirichlet {self.alpha:g}" if self.alpha is not None else _SKEWS.get(self.skew)
        spent = "" if self.epsilon is None else f" at epsilon {self.epsilon:.3g}"
        held = "" if self.examples is None else f" of {_short(self.examples)} examples"
        return (
            f"{self.kind}, {self.parameters:,} parameters, {self.clients} clients{held}, "
            f"{self.cohort} a round, {skew or self.skew}, "
            + ("no privacy" if self.privacy == "none" else f"privacy {self.privacy}{spent}")
            + f", {self.rounds} rounds of {self.epochs} epochs"
        )


_SKEWS = {"even": "labels spread evenly"}


def setting_of(
    settings: Mapping[str, Any],
    *,
    kind: str,
    parameters: int,
    clients: int | None = None,
    examples: int | None = None,
    epsilon: float | None = None,
) -> Setting:
    """Describe a resolved experiment.

    Args:
      settings: its values by dotted key, without those that are None.
      kind: name of its task.
      parameters: number of parameters of the whole model.
      clients: number of clients, where it follows from the data.
      examples: number of training examples of all clients; None if it is not known.
      epsilon: as in `Setting`.
    """
    scheme = str(settings.get("data.partition.scheme", "dirichlet"))
    alpha = float(settings.get("data.partition.alpha", 0.1))
    cohort = int(settings["federation.clients_per_round"])
    clients = clients or int(settings.get("data.partition.clients", cohort))
    mode, variant = settings.get("privacy.mode", "none"), settings.get("privacy.variant")
    skew = "dirichlet" if scheme in _DIRICHLET else scheme
    if scheme in _EVEN or (skew == "dirichlet" and alpha >= EVEN_ALPHA):
        skew = "even"
    return Setting(
        kind=kind,
        parameters=parameters,
        rounds=int(settings["federation.rounds"]),
        epochs=int(settings["client.epochs"]),
        clients=clients,
        cohort=cohort,
        examples=None if examples is None else examples / clients,
        skew=skew,
        alpha=alpha if skew == "dirichlet" else None,
        privacy=f"{mode}, variant {variant}" if mode == "paper" else str(mode),
        epsilon=epsilon,
    )


def distance(wanted: Setting, measured: Setting) -> float:
    """Return how far two settings lie apart: the sum of |log2| of their ratios, >= 0."""
    return sum(abs(math.log2(ours / theirs)) for _, ours, theirs, _ in _ratios(wanted, measured))


def obstacles(wanted: Setting, measured: Setting) -> list[str]:
    """Return why a measured setting says nothing about a wanted one; [] if it does."""
    return list(_obstacles(wanted, measured))


def _obstacles(wanted: Setting, measured: Setting) -> Iterator[str]:
    for name, word, other in (
        ("task", wanted.kind, measured.kind),
        ("partition", wanted.skew, measured.skew),
        ("privacy mode", wanted.privacy, measured.privacy),
    ):
        if word != other:
            yield f"{name}: {word}, measured was {other}"
    for name, ours, theirs, most in _ratios(wanted, measured):
        if max(ours, theirs) > most * min(ours, theirs):
            few = "" if name == _ROUNDS else " or as few"
            yield (
                f"{name}: {_short(ours)}, measured was {_short(theirs)}, and up to {most:g} times "
                f"as many{few} are compared"
            )


def _ratios(wanted: Setting, measured: Setting) -> Iterator[tuple[str, float, float, float]]:
    """Yield what differs by a ratio and is known on both sides: (name, wanted, measured, most)."""
    yield "parameters of the model", wanted.parameters, measured.parameters, MODEL_FACTOR
    yield _ROUNDS, max(wanted.rounds, measured.rounds), measured.rounds, FACTOR
    for name, ours, theirs in (
        ("local epochs", wanted.epochs, measured.epochs),
        ("clients", wanted.clients, measured.clients),
        ("clients a round", wanted.cohort, measured.cohort),
        ("examples of a client", wanted.examples, measured.examples),
        ("Dirichlet alpha", wanted.alpha, measured.alpha),
        ("epsilon", wanted.epsilon, measured.epsilon),
    ):
        if ours and theirs:
            yield name, ours, theirs, FACTOR


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
