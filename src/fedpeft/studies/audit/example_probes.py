"""Probe turns of mode `example`: batches that are designed to show what a private step does.

    one example, repeated, its loss multiplied by a factor for each copy:

    factor 0      no gradient: what is released is the noise alone
    factor huge   a gradient of 10000 C: B of them add at most B C along any direction
    factor small  gradients g of 0.9 C: what is released is n g / B, not n g / n      B: batch size

Turns run through the client half of the run with its model, its passes and its gradient privacy.
Only the data, batches of a known size, one epoch and plain SGD are chosen here: the update of one
step is then the noised gradient. Poisson sampling chooses which examples stand in a batch, and
nothing after that; its coins are not audited. The loss is the run's own, without dropout.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from fedpeft.build.model import build_tuned, local_settings, up_stages
from fedpeft.client.local import LocalSettings
from fedpeft.client.optimizers import OptimizerSettings
from fedpeft.client.passes.many import many_trainer
from fedpeft.client.private import one_by_one
from fedpeft.client.turns import BUFFERS, DELTA, ClientTurn, Memory
from fedpeft.core import seeds
from fedpeft.data.examples import ClientData, ExampleSet, Federated
from fedpeft.experiment.experiment import num_together
from fedpeft.experiment.resolve import Resolved
from fedpeft.models.tasks import Batch, Scores
from fedpeft.rounds.client_half import ClientHalf, run_turns
from fedpeft.studies.audit.checks import EXACT, Observed
from fedpeft.studies.audit.contributions import lone_norms, twin_of
from fedpeft.studies.audit.probes import HUGE, least_norm
from fedpeft.studies.audit.statistics import Floats
from fedpeft.tuning.dropout import KeyedDropout
from fedpeft.tuning.tuned import TunedModel, read_buffers, read_delta
from fedpeft.wire import messages

__all__ = ["observe_examples"]

_FACTOR = "audit_factor"
_CLIENTS = 2
_ROUNDS = 4
_STEPS = 4
_BELOW = 0.9
_STEP = 0.01  # how far a step moves by noise alone: small, so that losses stay finite
_MOST_TURNS = 64
_TRIED = 8  # examples, of which the one with the longest gradient is taken


@dataclass
class _Copies:
    """A table of copies of one example, each with a factor of its loss; keeps what was asked."""

    examples: ExampleSet
    row: int
    factors: Sequence[float]
    asked: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.factors)

    def batch(self, indices: Sequence[int], *, seed: int | None) -> Batch:
        """Collate copies, and their factors under a name of their own."""
        self.asked = list(indices)
        batch = self.examples.batch([self.row] * len(indices), seed=None)
        factor_B = torch.tensor([self.factors[i] for i in indices])
        return {**batch, _FACTOR: factor_B}


def observe_examples(resolved: Resolved, data: Federated, multiplier: float) -> Observed:
    """Take turns of mode `example` with designed batches.

    Args:
      resolved: the experiment that runs, with its model's labels and the clients of a pass.
      data: of all clients; one example of it is used.
      multiplier: the claimed noise multiplier z, > 0.
    """
    scene = _scene(resolved, data, multiplier)
    size = scene.batch_size
    many_TP = scene.noise(size, range(1, _ROUNDS + 1))
    later = range(_ROUNDS + 1, 2 * _ROUNDS + 1)
    few_TP = scene.noise(size // 2, later) if size > 1 else None
    sums_TP = scene.noise(size * _STEPS, range(1, _ROUNDS + 1), secrets="steps")
    simulated = resolved.experiment.privacy.reproducible_noise
    along_P, tensors = scene.along()
    turns = _num_turns(multiplier, size, tensors)
    huge = scene.excesses([HUGE] * size, along_P, turns=turns)
    lone = scene.excesses([HUGE, *[0.0] * (size - 1)], along_P, turns=2)
    scores = (sum(huge) / math.sqrt(turns), *lone)
    norms = _twin_norms(resolved, data, multiplier)
    least = least_norm(multiplier / (size * math.sqrt(turns)), len(scores))
    apart = scene.residuals([_BELOW] * size, turns=2)
    apart += scene.residuals([_BELOW] * (size // 2), turns=4) if size > 1 else []
    return Observed(
        many_TP if few_TP is None else np.concatenate([many_TP, few_TP]),
        scene.tuned.spec.sizes,
        None if simulated else scene.noise(size, range(1, 3), secrets="again"),
        sums_TP / math.sqrt(_STEPS),
        clip_scores=scores,
        clip_norms=norms,
        least_norm=1 + EXACT if norms else least,
        denominator_scores=tuple(apart) if size > 1 else (),
        few_TP=few_TP,
        many_TP=None if few_TP is None else many_TP,
    )


def _num_turns(multiplier: float, batch_size: int, tensors: int) -> int:
    """Return how many batches show a clip of each tensor."""
    over = math.sqrt(max(2, tensors)) - 1
    needed = (10 * multiplier / (over * batch_size)) ** 2
    return max(2, math.ceil(min(_MOST_TURNS, needed)))


def _twin_norms(resolved: Resolved, data: Federated, multiplier: float) -> tuple[float, ...]:
    """Return the norms of single examples' contributions, in clip bounds."""
    twin = _scene(resolved.changed(privacy=twin_of(resolved.experiment).privacy), data, multiplier)
    others = [0.0] * (twin.batch_size - 1)

    def release(length: float) -> Floats:
        twin.memories.clear()
        row, _ = twin.released([length, *others], 1)[0]
        return row * multiplier

    values = float(torch.linalg.vector_norm(messages.decode(twin.broadcast)[0][DELTA]))
    return lone_norms(release, values=values * multiplier / _STEP)


@dataclass
class _Scene:
    """The client half, the example and the claim.

    Attributes:
      tuned: the model.
      half: the client half, with plain SGD that moves by noise of deviation `_STEP`.
      examples: the table of the run.
      row: the example that is copied.
      gradient_P: its gradient, alone, in clip bounds.
      multiplier: z.
      batch_size: B.
      seed: of the run.
      broadcast: the values from which each turn starts, encoded.
      memories: of the clients.
      taken: number of rounds that `_turns` took.
    """

    tuned: TunedModel
    half: ClientHalf
    examples: ExampleSet
    row: int
    gradient_P: Floats
    multiplier: float
    batch_size: int
    seed: int
    broadcast: bytes
    memories: dict[str, Memory] = field(default_factory=dict)
    taken: int = 0

    def noise(self, examples: int, rounds: range, *, secrets: str = "") -> Floats:
        """Return what turns of some rounds release [T, P], one row for each client and round.

        Args:
          examples: number of examples, none of which has a gradient.
          rounds: numbers of the rounds.
          secrets: names the clients' memories, and with them the secrets of their noise.
        """
        none = [0.0] * examples
        return np.stack([row for n in rounds for row, _ in self.released(none, n, secrets)])

    def along(self) -> tuple[Floats, int]:
        """Return a unit vector [P] with equal norms in the tensors that have a gradient."""
        parts = np.split(self.gradient_P, np.cumsum(self.tuned.spec.sizes)[:-1])
        norms = [float(np.linalg.norm(part)) for part in parts]
        used = sum(norm > 0 for norm in norms)
        units = [part / norm if norm else part for part, norm in zip(parts, norms, strict=True)]
        return np.concatenate(units) / math.sqrt(used), used

    def excesses(self, lengths: Sequence[float], along_P: Floats, *, turns: int) -> list[float]:
        """Return by how many deviations batches exceed one clip bound an example.

        Args:
          lengths: norms of the examples' gradients, in clip bounds.
          along_P: unit vector.
          turns: number of turns.
        """
        bound = sum(length > 0 for length in lengths) / self.multiplier
        return [float(row @ along_P) - bound for row, _ in self._turns(lengths, turns)]

    def residuals(self, lengths: Sequence[float], *, turns: int) -> list[float]:
        """Return how far releases are from (sum of gradients) / B, in deviations of the noise.

        Args:
          lengths: norms of the examples' gradients, in clip bounds, all below 1.
          turns: number of turns.
        """
        unit_P = self.gradient_P / np.linalg.norm(self.gradient_P)
        return [
            float(row @ unit_P) - sum(lengths[i] for i in asked) / self.multiplier
            for row, asked in self._turns(lengths, turns)
        ]

    def _turns(self, lengths: Sequence[float], turns: int) -> list[tuple[Floats, list[int]]]:
        found: list[tuple[Floats, list[int]]] = []
        while len(found) < turns:
            self.taken += 1
            found += self.released(lengths, 2 * _ROUNDS + self.taken)
        return found[:turns]

    def released(
        self, lengths: Sequence[float], number: int, secrets: str = ""
    ) -> list[tuple[Floats, list[int]]]:
        """Return noised gradients [P] of one turn of each client, and the copies in their batches.

        Args:
          lengths: norms of the examples' gradients, in clip bounds.
          number: number of the round.
          secrets: names the clients' memories.
        """
        norm = float(np.linalg.norm(self.gradient_P))
        tables = [
            _Copies(self.examples, self.row, [length / norm for length in lengths])
            for _ in range(_CLIENTS)
        ]
        turns = [
            ClientTurn(
                number,
                f"audit-probe-{i}",
                ClientData(table, np.arange(len(lengths))),
                self.memories.get(f"{secrets}{i}", {}),
                seeds.derive(self.seed, "audit", "example", number, i),
                number - 1,
            )
            for i, table in enumerate(tables)
        ]
        found = []
        for i, (blob, memory) in enumerate(run_turns(self.half, self.broadcast, turns)):
            self.memories[f"{secrets}{i}"] = memory
            update_P = messages.decode(blob)[0][DELTA]
            found.append((-update_P.double().numpy() / _STEP, tables[i].asked))
        return found


def _scene(resolved: Resolved, data: Federated, multiplier: float) -> _Scene:
    experiment = resolved.experiment
    tuned = _weighted(build_tuned(resolved, experiment.model.num_labels))
    deviation = multiplier * experiment.privacy.clip_norm
    settings = local_settings(resolved)
    plain = OptimizerSettings(
        "sgd",
        _STEP * settings.batch_size / deviation,
        momentum=0.0,
        nesterov=False,
        weight_decay=0.0,
    )
    assert settings.privacy is not None, "mode `example`"
    fixed = dataclasses.replace(settings.privacy, rate=None, steps=0)
    settings = dataclasses.replace(settings, epochs=1, prox_mu=0.0, optimizer=plain, privacy=fixed)
    row, gradient_P = _longest(tuned, settings, data)
    payload = {DELTA: read_delta(tuned).cpu()}
    if tuned.buffers:
        payload[BUFFERS] = read_buffers(tuned).cpu()
    trainer = many_trainer(tuned, settings, clients_per_pass=num_together(experiment))
    stages = up_stages(resolved)[: len(up_stages(resolved)) - len(resolved.up)]
    half = ClientHalf(trainer, stages, (), tuned.spec, private=True)
    return _Scene(
        tuned,
        half,
        data.train,
        row,
        gradient_P / experiment.privacy.clip_norm,
        multiplier,
        settings.batch_size,
        experiment.seed,
        messages.encode(payload),
    )


def _weighted(tuned: TunedModel) -> TunedModel:
    """Return the model without dropout, with a loss that each example's factor multiplies."""
    score = tuned.loaded.task.score
    for module in tuned.model.modules():
        if isinstance(module, KeyedDropout):
            module.p = 0.0

    def weighted(model: nn.Module, batch: Batch) -> Scores:
        rest = {name: value for name, value in batch.items() if name != _FACTOR}
        scores = score(model, rest)
        if _FACTOR not in batch:
            return scores
        return dataclasses.replace(scores, loss_B=scores.loss_B * batch[_FACTOR])

    task = dataclasses.replace(tuned.loaded.task, score=weighted)
    return dataclasses.replace(tuned, loaded=dataclasses.replace(tuned.loaded, task=task))


def _longest(tuned: TunedModel, settings: LocalSettings, data: Federated) -> tuple[int, Floats]:
    """Return the example with the longest gradient of the first few, and that gradient [P]."""
    rows = next(iter(data.clients.values()))[:_TRIED].tolist()
    tuned.model.eval()
    found = []
    for row in rows:
        batch = data.train.batch([row], seed=None)
        on_device = {name: value.to(settings.device) for name, value in batch.items()}
        keys_B = torch.zeros(1, dtype=torch.int64, device=settings.device)
        gradient: Tensor = one_by_one(tuned, on_device, keys_B)[0][0]
        found.append((row, gradient.double().cpu().numpy()))
    return max(found, key=lambda pair: float(np.linalg.norm(pair[1])))
