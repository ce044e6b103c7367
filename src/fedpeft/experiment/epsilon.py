"""The epsilon of an experiment with privacy, and the noise that a given epsilon needs.

epsilon given           the noise multiplier is calibrated; the run stops before exceeding it
noise_multiplier given  epsilon is computed
"""

from __future__ import annotations

import functools
import math

from fedpeft.experiment.experiment import Experiment, num_clients
from fedpeft.experiment.privacy import PRIVACY_MODES
from fedpeft.server.sampling import fixed_cohort
from fedpeft.wire.privacy_accounting import Mechanism, calibrate, epsilon_of

__all__ = [
    "epsilon_after",
    "may_go_on",
    "mechanism_of",
    "resolve_privacy",
    "uses_a_turn",
    "uses_after",
]


def resolve_privacy(experiment: Experiment) -> Experiment:
    """Calibrate the noise multiplier where only a target epsilon is given.

    Raises:
      PrivacyError: if no noise reaches the target.
    """
    chosen = experiment.privacy
    private = PRIVACY_MODES[chosen.mode].unit is not None
    if not private or chosen.noise_multiplier is not None or not chosen.epsilon:
        return experiment
    uses = uses_after(experiment, experiment.federation.rounds)
    multiplier = calibrate(mechanism_of(experiment), uses, chosen.delta, chosen.epsilon)
    return experiment.changed(privacy={"noise_multiplier": multiplier})


def epsilon_after(experiment: Experiment, rounds: int) -> float | None:
    """Return the epsilon of a resolved experiment after some rounds; None without a guarantee.

    None also stands for an infinite epsilon (no noise).
    """
    if PRIVACY_MODES[experiment.privacy.mode].unit is None:
        return None
    delta = experiment.privacy.delta
    spent = epsilon_of(mechanism_of(experiment), uses_after(experiment, rounds), delta)
    return None if math.isinf(spent) else spent


def may_go_on(experiment: Experiment, rounds: int) -> bool:
    """Whether one more round after `rounds` stays within the budget."""
    budget = experiment.privacy.epsilon
    if budget is None or PRIVACY_MODES[experiment.privacy.mode].unit is None:
        return True
    spent = epsilon_after(experiment, rounds + 1)
    return spent is not None and spent <= budget * (1 + 1e-9)


def mechanism_of(experiment: Experiment) -> Mechanism:
    """Return the mechanism that an experiment repeats; its noise is 0 where none is set yet."""
    federation, clients = experiment.federation, num_clients(experiment)
    amplified = federation.sampling == "poisson" and clients is not None
    probability = federation.clients_per_round / clients if amplified and clients else None
    multiplier = experiment.privacy.noise_multiplier or 0.0
    return Mechanism(multiplier, probability, PRIVACY_MODES[experiment.privacy.mode].distance)


def uses_after(experiment: Experiment, rounds: int) -> int:
    """Return how often the mechanism ran on one unit of data of the busiest client.

    Without amplification the schedule of cohorts is public and depends on seed and number of
    clients alone, so that its busiest client is known; without that number each round counts.

    Args:
      experiment: resolved.
      rounds: how many.
    """
    federation, clients = experiment.federation, num_clients(experiment)
    if federation.sampling == "fixed" and clients is not None:
        rounds = _busiest(experiment.seed, clients, federation.clients_per_round, rounds)
    return rounds * uses_a_turn(experiment)


def uses_a_turn(experiment: Experiment) -> int:
    """Return how often the mechanism runs on one unit of data in one turn of its client."""
    counts_epochs = PRIVACY_MODES[experiment.privacy.mode].counts_epochs
    return experiment.client.epochs if counts_epochs else 1


@functools.lru_cache(maxsize=1024)
def _busiest(seed: int, clients: int, size: int, rounds: int) -> int:
    counts = dict.fromkeys(map(str, range(clients)), 0)
    for number in range(1, rounds + 1):
        for client in fixed_cohort(tuple(counts), size, seed=seed, round=number):
            counts[client] += 1
    return max(counts.values())
