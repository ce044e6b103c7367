"""`[privacy]`: what is refused, how much noise, what it costs, and what the outputs say of it.

    epsilon given           the noise multiplier is calibrated; the run stops before exceeding it
    noise_multiplier given  epsilon is what comes out

Records of a private run hold nothing that was not noised. True figures go to `diagnostics.jsonl`,
whose first line says what it is.
"""

from __future__ import annotations

import functools
import math

from fedpeft.core.noise import author_deviation, gaussian_deviation
from fedpeft.experiment.experiment import Experiment, num_clients
from fedpeft.server.sampling import fixed_cohort
from fedpeft.wire.accounting import Mechanism, calibrate, epsilon_of

__all__ = ["epsilon_after", "is_private", "may_go_on", "resolve_privacy"]


def is_private(experiment: Experiment) -> bool:
    """Whether the mode bounds and noises what leaves a client."""
    return experiment.privacy.mode in ("central", "local", "example")


def resolve_privacy(experiment: Experiment) -> Experiment:
    """Make the noise multiplier explicit.

    Raises:
      PrivacyError: if no noise reaches the target.
    """
    chosen = experiment.privacy
    if not is_private(experiment) or chosen.noise_multiplier is not None or not chosen.epsilon:
        return experiment
    uses = _uses(experiment, experiment.federation.rounds)
    multiplier = calibrate(_mechanism(experiment, 0.0), uses, chosen.delta, chosen.epsilon)
    filled = chosen.model_copy(update={"noise_multiplier": multiplier})
    return experiment.model_copy(update={"privacy": filled})


def epsilon_after(experiment: Experiment, rounds: int) -> float | None:
    """Return what a resolved experiment has spent after so many rounds; None without a guarantee.

    None also stands for an infinite epsilon (no noise).
    """
    if not is_private(experiment):
        return None
    chosen = experiment.privacy
    mechanism = _mechanism(experiment, chosen.noise_multiplier or 0.0)
    spent = epsilon_of(mechanism, _uses(experiment, rounds), chosen.delta)
    return None if math.isinf(spent) else spent


def may_go_on(experiment: Experiment, rounds: int) -> bool:
    """Whether one more round after `rounds` stays within the budget."""
    budget = experiment.privacy.epsilon
    if not is_private(experiment) or budget is None:
        return True
    spent = epsilon_after(experiment, rounds + 1)
    return spent is not None and spent <= budget * (1 + 1e-9)


def _mechanism(experiment: Experiment, multiplier: float) -> Mechanism:
    federation, clients = experiment.federation, num_clients(experiment)
    amplified = federation.sampling == "poisson" and clients is not None
    probability = federation.clients_per_round / clients if amplified and clients else None
    distance = 2.0 if experiment.privacy.mode == "local" else 1.0
    return Mechanism(multiplier, probability, distance)


def _uses(experiment: Experiment, rounds: int) -> int:
    """Return how often the mechanism ran on one client's data, for the busiest client.

    Without amplification the schedule of cohorts is public and depends on seed and number of
    clients alone, so its busiest client is known; where that number is not, each round counts.
    At example level every epoch counts: an example is in one of its batches.
    """
    federation, clients = experiment.federation, num_clients(experiment)
    epochs = experiment.client.epochs if experiment.privacy.mode == "example" else 1
    if federation.sampling == "poisson" or clients is None:
        return rounds * epochs
    asked = _busiest(experiment.seed, clients, federation.clients_per_round, rounds)
    return asked * epochs


@functools.lru_cache(maxsize=1024)
def _busiest(seed: int, clients: int, asked: int, rounds: int) -> int:
    counts = dict.fromkeys(map(str, range(clients)), 0)
    for number in range(1, rounds + 1):
        for client in fixed_cohort(tuple(counts), asked, seed=seed, round=number):
            counts[client] += 1
    return max(counts.values())


def paper_deviation(experiment: Experiment) -> float:
    chosen = experiment.privacy
    epsilon = chosen.epsilon or 5.0
    if chosen.variant == "author":
        return author_deviation(epsilon, chosen.delta, chosen.clip_norm)
    return gaussian_deviation(epsilon, chosen.delta, 2 * chosen.clip_norm)
