"""The client half of mode `example`, with a model, designed examples and what is claimed of it.

    one example, repeated; each copy has a factor of its own, by which its loss is multiplied

Turns run through the client half of the run with its model, its passes and its gradient privacy.
Only the data, the number of steps and plain SGD are chosen here: the update of one step is then the
noised gradient. The loss is the run's own, without dropout. Batches are drawn as the run draws
them: with Poisson sampling each copy is in a batch by the client's secret coin of the run's rate,
so that a batch may be empty. The scene counts which copies the client half read.
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
from fedpeft.client.optimizers import OptimizerSettings
from fedpeft.client.passes.many import many_trainer
from fedpeft.client.private import one_by_one
from fedpeft.client.schedules import CONSTANT
from fedpeft.client.settings import LocalSettings
from fedpeft.client.turns import BUFFERS, DELTA, ClientTurn, Memory
from fedpeft.core import seeds
from fedpeft.data.examples import ClientData, ExampleSet, Federated
from fedpeft.experiment.experiment import num_together
from fedpeft.experiment.resolve import Resolved
from fedpeft.models.tasks import Batch, Scores
from fedpeft.rounds.client_half import ClientHalf, run_turns
from fedpeft.studies.audit.statistics import Floats
from fedpeft.tuning.dropout import KeyedDropout
from fedpeft.tuning.tuned import TunedModel, read_buffers, read_delta
from fedpeft.wire import messages

STEP = 0.01
"""How far a step moves by noise alone, in each coordinate: small, so that losses stay finite."""

_FACTOR = "audit_factor"
_CLIENTS = 2
_LEAST_MANY = 8  # examples expected in a Poisson batch, so that it is hardly ever empty
_TRIED = 8  # examples, of which the one with the longest gradient is taken


@dataclass
class _Copies:
    """A table of copies of one example, each with a factor of its loss; keeps what was read."""

    examples: ExampleSet
    row: int
    factors: Sequence[float]
    read: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.factors)

    def batch(self, indices: Sequence[int], *, seed: int | None) -> Batch:
        """Collate copies, and their factors under a name of their own."""
        self.read.update(indices)
        batch = self.examples.batch([self.row] * len(indices), seed=None)
        factor_B = torch.tensor([self.factors[i] for i in indices])
        return {**batch, _FACTOR: factor_B}


@dataclass(frozen=True)
class Seen:
    """What was seen of one turn.

    Attributes:
      row_P: the noised gradients of its steps, added up; noise alone is standard by claim.
      lengths: norms of the gradients of the copies in its batches, in clip bounds; those without a
        gradient are left out.
      places: positions of the copies in its batches.
    """

    row_P: Floats
    lengths: tuple[float, ...]
    places: tuple[int, ...]


@dataclass
class Scene:
    """The client half, the example and the claim.

    Attributes:
      tuned: the model.
      half: the client half, with plain SGD that moves by noise of deviation `STEP`.
      examples: the table of the run.
      row: the example that is copied.
      gradient_P: its gradient, alone, in clip bounds.
      multiplier: z.
      batch_size: B.
      rate: probability with which each copy is in a step's batch; None: batches of shuffled epochs.
      seed: of the run.
      broadcast: the values from which each turn starts, encoded.
      memories: of the clients.
    """

    tuned: TunedModel
    half: ClientHalf
    examples: ExampleSet
    row: int
    gradient_P: Floats
    multiplier: float
    batch_size: int
    rate: float | None
    seed: int
    broadcast: bytes
    memories: dict[str, Memory] = field(default_factory=dict)

    @property
    def many(self) -> int:
        """The number of examples to expect in a full batch."""
        return self.batch_size if self.rate is None else max(_LEAST_MANY, self.batch_size)

    def held(self, length: float, expected: int) -> list[float]:
        """Return what a client holds, as norms of gradients, for a number of them in a batch.

        With Poisson sampling the first copy has no gradient: before a turn the client half checks
        its gradients by the shapes of that copy, so that it is read also where no batch has it.

        Args:
          length: norm of each copy's gradient, in clip bounds.
          expected: number of copies to expect in a batch, >= 0.
        """
        if self.rate is None:
            return [length] * expected
        return [0.0, *[length] * math.ceil(expected / self.rate)]

    def along(self) -> tuple[Floats, int]:
        """Return a unit vector [P] with equal norms in the tensors that have a gradient."""
        parts = np.split(self.gradient_P, np.cumsum(self.tuned.spec.sizes)[:-1])
        norms = [float(np.linalg.norm(part)) for part in parts]
        used = sum(norm > 0 for norm in norms)
        units = [part / norm if norm else part for part, norm in zip(parts, norms, strict=True)]
        return np.concatenate(units) / math.sqrt(used), used

    def turns(self, lengths: Sequence[float], number: int, secrets: str = "") -> list[Seen]:
        """Take one turn of each client and return what was seen of it.

        Args:
          lengths: norms of the gradients of the copies that each client holds, in clip bounds.
          number: number of the round.
          secrets: names the clients' memories, and with them the secrets of their noise.
        """
        norm = float(np.linalg.norm(self.gradient_P))
        factors = [length / norm for length in lengths]
        tables = [_Copies(self.examples, self.row, factors) for _ in range(_CLIENTS)]
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
            row_P = -messages.decode(blob)[0][DELTA].double().numpy() / STEP
            places = tuple(sorted(tables[i].read - ({0} if self.rate is not None else set())))
            in_batch = tuple(lengths[place] for place in places if lengths[place])
            found.append(Seen(row_P, in_batch, places))
        return found


def build_scene(
    resolved: Resolved, data: Federated, multiplier: float, *, epochs: int = 1, steps: int = 1
) -> Scene:
    """Build the client half and choose the example.

    Args:
      resolved: the experiment that runs, with its model's labels and the clients of a pass.
      data: of all clients; one example of it is used.
      multiplier: the claimed noise multiplier z, > 0.
      epochs: of a turn.
      steps: of an epoch, with Poisson sampling; else they follow from what a client holds.
    """
    experiment = resolved.experiment
    tuned = _weighted(build_tuned(resolved, experiment.model.num_labels))
    settings = _settings(resolved, multiplier, epochs, steps)
    row, gradient_P = _longest(tuned, settings, data)
    payload = {DELTA: read_delta(tuned).cpu()}
    if tuned.buffers:
        payload[BUFFERS] = read_buffers(tuned).cpu()
    trainer = many_trainer(tuned, settings, clients_per_pass=num_together(experiment))
    stages = up_stages(resolved)[: len(up_stages(resolved)) - len(resolved.up)]
    half = ClientHalf(trainer, stages, (), tuned.spec, private=True)
    return Scene(
        tuned,
        half,
        data.train,
        row,
        gradient_P / experiment.privacy.clip_norm,
        multiplier,
        settings.batch_size,
        settings.privacy.rate if settings.privacy else None,
        experiment.seed,
        messages.encode(payload),
    )


def _settings(resolved: Resolved, multiplier: float, epochs: int, steps: int) -> LocalSettings:
    """Return the run's settings, with plain SGD and other numbers of epochs and steps."""
    settings = local_settings(resolved)
    deviation = multiplier * resolved.experiment.privacy.clip_norm
    plain = OptimizerSettings(
        "sgd",
        STEP * settings.batch_size / deviation,
        momentum=0.0,
        nesterov=False,
        weight_decay=0.0,
    )
    privacy = settings.privacy
    if privacy is not None and privacy.rate is not None:
        privacy = dataclasses.replace(privacy, steps=steps)
    return dataclasses.replace(
        settings,
        epochs=epochs,
        max_steps=None,
        prox_mu=0.0,
        optimizer=plain,
        privacy=privacy,
        schedule=CONSTANT,
        round_schedule=CONSTANT,
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
