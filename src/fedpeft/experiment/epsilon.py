"""The epsilon of an experiment with privacy, and the noise that a given epsilon needs.

epsilon given           the noise multiplier is calibrated; the run stops before exceeding it
noise_multiplier given  epsilon is computed

Poisson batches of examples have the rate q = batch size / n, with a public n that all clients
share: neither q, the steps of a turn nor epsilon tell how many examples a client holds. Where n is
not given it is the mean over the clients, by `data.num_examples` or when the data has been read.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from fedpeft.data.bundled import num_train
from fedpeft.experiment.engines import ENGINES
from fedpeft.experiment.experiment import Experiment, num_clients
from fedpeft.experiment.privacy import PRIVACY_MODES
from fedpeft.server.sampling import fixed_cohort
from fedpeft.wire.privacy_accounting import Mechanism, calibrate, epsilon_of

_COUNTED = 1_000_000
"""Draws of a schedule that are counted; of a longer one each round counts."""


@dataclass(frozen=True)
class PoissonBatches:
    """How the batches of examples are drawn in mode `example`.

    Attributes:
      rate: probability of each example in each step, in (0, 1].
      steps: number of steps of an epoch, >= 1.
    """

    rate: float
    steps: int


def poisson_batches(experiment: Experiment) -> PoissonBatches | None:
    """Return how batches of examples are drawn; None where epochs are shuffled, or n is open."""
    chosen, size = experiment.privacy, experiment.client.batch_size
    if not _samples_examples(experiment) or chosen.examples_per_client is None:
        return None
    number = chosen.examples_per_client
    return PoissonBatches(min(1.0, size / number), math.ceil(number / size))


def is_settled(experiment: Experiment) -> bool:
    """Whether epsilon follows from an experiment alone, without its data."""
    known = experiment.privacy.examples_per_client is not None
    return known or not _samples_examples(experiment)


def with_examples(experiment: Experiment, examples: int, clients: int) -> Experiment:
    """Settle a resolved experiment by the numbers of training examples and of clients.

    Raises:
      PrivacyError: if no noise reaches the target epsilon.
    """
    if is_settled(experiment):
        return experiment
    number = max(1, round(examples / max(1, clients)))
    filled = experiment.privacy.model_copy(update={"examples_per_client": number})
    return resolve_privacy(experiment.model_copy(update={"privacy": filled}))


def _samples_examples(experiment: Experiment) -> bool:
    by_example = PRIVACY_MODES[experiment.privacy.mode].unit == "example"
    return by_example and experiment.privacy.example_sampling == "poisson"


def _default_sampling(experiment: Experiment) -> str:
    """Return the default of `privacy.example_sampling`.

    A deployment's server is not told the sites' numbers of examples.
    """
    deployed = ENGINES[experiment.engine.name].deployed
    unknown = deployed and experiment.privacy.examples_per_client is None
    return "shuffle" if unknown else "poisson"


def resolve_privacy(experiment: Experiment) -> Experiment:
    """Make the sampling of examples explicit, and calibrate the noise to a target epsilon.

    Where that needs the data, the noise stays open; see `with_examples`.

    Raises:
      PrivacyError: if no noise reaches the target.
    """
    chosen = experiment.privacy
    if PRIVACY_MODES[chosen.mode].unit == "example" and chosen.example_sampling is None:
        update = {"example_sampling": _default_sampling(experiment)}
        chosen = chosen.model_copy(update=update)
        experiment = experiment.model_copy(update={"privacy": chosen})
    data, clients = experiment.data, num_clients(experiment)
    stated = data.budget or data.num_examples or num_train(data.source)
    if not is_settled(experiment) and stated and clients:
        return with_examples(experiment, stated, clients)
    if not is_settled(experiment):
        return experiment
    private = PRIVACY_MODES[chosen.mode].unit is not None
    if not private or chosen.noise_multiplier is not None or not chosen.epsilon:
        return experiment
    uses = uses_after(experiment, experiment.federation.rounds)
    multiplier = calibrate(mechanism_of(experiment), uses, chosen.delta, chosen.epsilon)
    return experiment.changed(privacy={"noise_multiplier": multiplier})


def epsilon_after(experiment: Experiment, rounds: int) -> float | None:
    """Return the epsilon of a resolved experiment after some rounds; None without a guarantee.

    None also stands for an infinite epsilon (no noise), and for one that needs the data.
    """
    unit = PRIVACY_MODES[experiment.privacy.mode].unit
    if unit is None or not is_settled(experiment):
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
    batches = poisson_batches(experiment)
    probability = batches.rate if batches else probability
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
        rounds = _busiest(
            experiment.seed, clients, federation.clients_per_round, federation.rounds, rounds
        )
    return rounds * uses_a_turn(experiment)


def uses_a_turn(experiment: Experiment) -> int:
    """Return how often the mechanism runs on one unit of data in one turn of its client.

    With Poisson batches that is the number of steps; else at most the number of epochs, of which
    each has at least one step.
    """
    if not PRIVACY_MODES[experiment.privacy.mode].counts_epochs:
        return 1
    batches, client = poisson_batches(experiment), experiment.client
    limits = [] if client.epochs is None else [client.epochs * (batches.steps if batches else 1)]
    limits += [] if client.max_steps is None else [client.max_steps]
    return min(limits)


def _busiest(seed: int, clients: int, size: int, planned: int, rounds: int) -> int:
    """Return the most turns of any one client in the first rounds of a public schedule."""
    planned = max(planned, rounds)
    if planned * clients > _COUNTED:
        return rounds
    return (0, *_most_turns(seed, clients, size, planned))[rounds]


@functools.lru_cache(maxsize=64)
def _most_turns(seed: int, clients: int, size: int, rounds: int) -> tuple[int, ...]:
    """Return the most turns of any one client after each round."""
    counts, most = dict.fromkeys(map(str, range(clients)), 0), [0]
    names = tuple(counts)
    for number in range(1, rounds + 1):
        cohort = fixed_cohort(names, size, seed=seed, round=number)
        for client in cohort:
            counts[client] += 1
        most.append(max(most[-1], *(counts[client] for client in cohort)))
    return tuple(most[1:])
