"""The privacy of one run: what it adds to rounds, its epsilon, and its notes in outputs.

Records of a private run hold only what was noised. True figures go to `diagnostics.jsonl`, whose
first line warns that they are not private.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpeft.client.private import GradientPrivacy
from fedpeft.core.deltas import DeltaSpec
from fedpeft.core.errors import PrivacyError
from fedpeft.core.noise import draw_root, seeded_root
from fedpeft.data.drawn import DrawnClients
from fedpeft.experiment.check_privacy import refuse_combination
from fedpeft.experiment.epsilon import (
    epsilon_after,
    is_settled,
    may_go_on,
    mechanism_of,
    poisson_batches,
    uses_a_turn,
    uses_after,
)
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.privacy import PRIVACY_MODES, PrivacyMode
from fedpeft.rounds.round_plan import RoundRecord
from fedpeft.server.algorithms import constant_denominator
from fedpeft.server.sampling import Sampler, poisson
from fedpeft.server.state import Algorithm, ServerState
from fedpeft.tuning.tuned import TunedModel
from fedpeft.wire.privacy_accounting import epsilon_of, rdp_epsilon_of
from fedpeft.wire.stages import Stage

SIMULATION = "simulation: not private"
"""The note in every output of a run whose noise comes from its seed."""


@dataclass(frozen=True)
class PrivacyOfRun:
    """The privacy of one run.

    Attributes:
      experiment: resolved.
    """

    experiment: Experiment

    @property
    def mode(self) -> PrivacyMode:
        """The row of the run's mode."""
        return PRIVACY_MODES[self.experiment.privacy.mode]

    @property
    def private(self) -> bool:
        """Whether the mode guarantees privacy: all that leaves a client is bounded and noised."""
        return self.mode.unit is not None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The first stages of the way up; () where privacy adds none."""
        build = self.mode.stage
        return (build(self.experiment.privacy),) if build else ()

    @property
    def gradient(self) -> GradientPrivacy | None:
        """How clients clip and noise their gradients; None: they do not."""
        build, batches = self.mode.gradient, poisson_batches(self.experiment)
        chosen = build(self.experiment.privacy) if build else None
        if chosen is None or batches is None:
            return chosen
        return dataclasses.replace(chosen, rate=batches.rate, steps=batches.steps)

    @property
    def min_replies(self) -> int:
        """The least number of usable replies of a round; 0 where an empty round is legal."""
        return 0 if self.mode.empty_rounds else self.experiment.federation.min_replies

    def refuse_model(self, tuned: TunedModel) -> None:
        """Refuse a model that sends what no stage protects.

        Raises:
          PrivacyError: for travelling buffers or batch statistics.
        """
        if self.private and (tuned.buffer_spec.names or tuned.trains_statistics):
            raise PrivacyError(
                f"privacy.mode: found {self.experiment.privacy.mode!r} with BatchNorm that trains; "
                "its statistics mix the examples of a batch and travel outside clip and noise. Use "
                "another tuning.method, or a model with layer normalisation"
            )

    def refuse_shared(self, clients: Mapping[str, npt.NDArray[np.int64]]) -> None:
        """Refuse data in which an example stands twice, where epsilon counts examples.

        Args:
          clients: client -> rows of the training table.

        Raises:
          PrivacyError: if a row occurs twice within a client, or in two clients.
        """
        if self.mode.unit != "example":
            return
        seen: set[int] = set()
        for client, rows in clients.items():
            fresh = set(rows.tolist()) - seen
            if isinstance(clients, DrawnClients) or len(fresh) < len(rows):
                raise PrivacyError(
                    f"privacy.mode: found {self.experiment.privacy.mode!r}, and client {client!r} "
                    "has an example twice, or one that another client has too; epsilon counts each "
                    "example once. Deal each example once (data.partition)"
                )
            seen |= fresh

    def algorithm(self, algorithm: Algorithm, spec: DeltaSpec) -> Algorithm:
        """Return the algorithm; with a constant denominator where the mode guarantees privacy.

        Raises:
          PrivacyError: as `refuse_combination`.
        """
        refuse_combination(self.experiment, algorithm)
        return constant_denominator(algorithm, spec) if self.private else algorithm

    def start(self, state: ServerState) -> ServerState:
        """Return the state before round 1, with a secret root where the server adds the noise."""
        if self.mode.noise_by != "server":
            return state
        simulated = self.experiment.privacy.reproducible_noise
        root = seeded_root(self.experiment.seed) if simulated else draw_root()
        return dataclasses.replace(state, root=root)

    def secret_sampler(self, num_clients: int) -> Sampler | None:
        """Return the sampler of secret cohorts; None where cohorts are public."""
        federation = self.experiment.federation
        if federation.sampling != "poisson":
            return None
        return poisson(federation.clients_per_round / num_clients)

    def goes_on(self, rounds: int) -> bool:
        """Whether a round follows after `rounds`: it is planned, and within the privacy budget."""
        return rounds < self.experiment.federation.rounds and may_go_on(self.experiment, rounds)

    def planned(self) -> dict[str, object]:
        """Return the privacy keys of `plan --json`."""
        rounds = self.experiment.federation.rounds
        if not is_settled(self.experiment):
            return {"epsilon": None, **self._described()}
        while rounds and not self.goes_on(rounds - 1):
            rounds -= 1
        return {"epsilon": epsilon_after(self.experiment, rounds), **self._described()}

    def record(self, record: RoundRecord, planned: tuple[int, int] | None) -> dict[str, object]:
        """Return the keys that privacy adds to, or replaces in, a line of `rounds.jsonl`.

        Args:
          record: of the round.
          planned: bytes (down, up) of one turn where cohorts are secret, else None.
        """
        if not self.mode.note:
            return {}
        added: dict[str, object] = {
            "epsilon": epsilon_after(self.experiment, record.round),
            "privacy_delta": self.experiment.privacy.delta,
            "privacy_unit": self.mode.unit,
            "noise_deviation": self._noise_deviation(),
            "privacy": self._note(),
        }
        if planned is None:
            return added
        expected = float(self.experiment.federation.clients_per_round)
        down, up = (round(expected * each) for each in planned)
        return {
            "cohort": expected,
            "failures": {},
            "bytes_down": down,
            "bytes_up": up,
            "messages_down": round(expected),
            "messages_up": round(expected),
            **added,
        }

    def summary(self, rounds: int) -> dict[str, object]:
        """Return the privacy keys of the summary after some rounds."""
        check: dict[str, object] = {}
        if self.private:
            mechanism, uses = mechanism_of(self.experiment), uses_after(self.experiment, rounds)
            bound = rdp_epsilon_of(mechanism, uses, self.experiment.privacy.delta)
            check = {"epsilon_rdp": None if math.isinf(bound) else bound}
        return {"epsilon": epsilon_after(self.experiment, rounds), **check, **self._described()}

    def client_epsilons(self, records: Iterable[Mapping[str, object]]) -> dict[str, object]:
        """Return `epsilon_clients`: the epsilon of each client that was in a cohort, by its name.

        Where clients add the noise, only the rounds with a client in the cohort cost it anything.
        The schedule of cohorts is public, so these figures reveal nothing of any data; a client
        that was in no cohort has spent 0 and is not listed. {} in other modes, where the whole run
        counts or cohorts are secret, and without noise.
        """
        chosen = self.experiment.privacy
        if self.mode.noise_by != "client" or not chosen.noise_multiplier:
            return {}
        turns: Counter[str] = Counter()
        for record in records:
            cohort = record["cohort"]
            assert isinstance(cohort, Sequence), "cohorts are public where sampling is fixed"
            turns.update(str(client) for client in cohort)
        mechanism, uses = mechanism_of(self.experiment), uses_a_turn(self.experiment)
        spent = {
            client: epsilon_of(mechanism, count * uses, chosen.delta)
            for client, count in sorted(turns.items(), key=lambda item: (-item[1], item[0]))
        }
        return {"epsilon_clients": spent}

    def diagnostics(self, record: RoundRecord, num_params: int) -> dict[str, object]:
        """Return the true figures of one round, for `diagnostics.jsonl`.

        `noise_to_signal` is the expected norm of the noise over the norm of the mean before it.
        """
        bound = self.experiment.privacy.clip_norm * (1 - 1e-4)
        clipped = sum(norm >= bound for norm in record.norms)
        noise = self._noise_deviation() * math.sqrt(num_params)
        seen = self.mode.noise_by == "server"  # else the server sees noised updates only
        return {
            "round": record.round,
            "cohort": list(record.cohort),
            "failures": dict(record.failures),
            "clip_fraction": clipped / len(record.norms) if record.norms and seen else None,
            "signal_norm": record.signal_norm,
            "noise_to_signal": noise / record.signal_norm if record.signal_norm and seen else None,
            "bytes_down": record.bytes_down,
            "bytes_up": record.bytes_up,
            "messages_down": record.messages_down,
            "messages_up": record.messages_up,
        }

    def _noise_deviation(self) -> float:
        """Return the standard deviation of the noise of a coordinate.

        It is added to a batch's mean gradient, the mean of updates, or one update.
        """
        gradient, experiment = self.gradient, self.experiment
        if gradient is not None:
            return gradient.deviation / (experiment.client.batch_size if gradient.divided else 1)
        cohort = experiment.federation.clients_per_round
        return experiment.privacy.deviation / (cohort if self.mode.noise_by == "server" else 1)

    def _described(self) -> dict[str, object]:
        """Return `privacy` of plans and summaries; {} in mode `none`."""
        if not self.mode.note:
            return {}
        chosen = self.experiment.privacy
        described = {
            "mode": chosen.mode,
            "delta": chosen.delta,
            "clip_norm": chosen.clip_norm if math.isfinite(chosen.clip_norm) else None,
            "noise_multiplier": chosen.noise_multiplier,
            "noise_deviation": self._noise_deviation(),
            "sampling": self.experiment.federation.sampling,
            "unit": self.mode.unit,
            "note": self._note(),
        }
        if batches := poisson_batches(self.experiment):
            described |= {"example_rate": batches.rate, "example_steps": batches.steps}
        return {"privacy": described}

    def _note(self) -> str:
        chosen = self.experiment.privacy
        note = self.mode.note.format(variant=chosen.variant)
        if not self.private:
            return f"{SIMULATION}; {note}" if chosen.reproducible_noise else note
        if chosen.reproducible_noise:
            return SIMULATION
        if not is_settled(self.experiment):
            return f"{note}; epsilon needs privacy.examples_per_client or the data"
        number = chosen.examples_per_client
        if number and chosen.delta * number >= 1:
            note = f"{note}; delta is not below 1 / {number} examples"
        return note if chosen.noise_multiplier else "no noise: not private"


def privacy_words(figures: Mapping[str, Any]) -> str:
    """Return mode, epsilon and noise of a plan or a summary as text; `none` without privacy."""
    privacy = figures.get("privacy")
    if not privacy:
        return "none"
    epsilon = figures["epsilon"]
    spent = f"epsilon {epsilon:.4g} at delta {privacy['delta']:g}" if epsilon else "no guarantee"
    if epsilon and privacy.get("unit"):
        spent += f" for one {privacy['unit']}"
    noise = f"noise deviation {privacy['noise_deviation']:.4g} a coordinate"
    return f"{privacy['note']}: {spent}, {noise}"
