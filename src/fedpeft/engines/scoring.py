"""Evaluation of a server state, in parts that any process may take.

    delta, buffers ──> the model ──> spans of rows, each scored on one thread ──> joined in order

A span holds whole batches: neither the number of workers nor who takes a span changes a bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.client.evaluate import Evaluation, evaluate
from fedpeft.client.frozen.prefix import CHUNK
from fedpeft.client.local import LocalSettings
from fedpeft.core.errors import EngineError
from fedpeft.data.examples import ExampleSet
from fedpeft.engines.workers import one_thread
from fedpeft.tuning.tuned import TunedModel, write_buffers, write_delta

__all__ = ["Scorer", "make_scorer", "score_all"]

_BATCH = {"cpu": 64, "cuda": 256}
"""Examples a forward pass: on a CPU, activations of more leave its caches."""


@dataclass(frozen=True)
class Scorer:
    """What a process needs to score rows of the server's test set.

    Attributes:
      tuned: the model; `load` writes into it.
      examples: the test set.
      settings: give the device and the precision.
      batch_size: examples a forward pass.
    """

    tuned: TunedModel
    examples: ExampleSet
    settings: LocalSettings
    batch_size: int

    def spans(self) -> list[range]:
        """Divide the test set: whole batches, at least as many rows as a chunk of a prefix."""
        step = self.batch_size * math.ceil(CHUNK / self.batch_size)
        total = len(self.examples)
        return [range(start, min(start + step, total)) for start in range(0, total, step)]

    def load(self, delta: Tensor, buffers: Tensor) -> None:
        """Write a state's delta and travelling buffers, both flat, into the model."""
        write_delta(self.tuned, delta)
        if self.tuned.buffers:
            write_buffers(self.tuned, buffers)

    def score(self, rows: range) -> Evaluation:
        """Score some rows with what was loaded."""
        return evaluate(self.tuned, self.examples, self.settings, self.batch_size, rows)


def make_scorer(tuned: TunedModel, examples: ExampleSet, settings: LocalSettings) -> Scorer:
    """Return the scorer of a test set.

    Args:
      tuned: the model, or the rest of it where the examples are features.
      examples: the server's test set.
      settings: of local training; the batch size is read where logits are as wide as a vocabulary.
    """
    kind = torch.device(settings.device).type
    return Scorer(
        tuned,
        examples,
        settings,
        settings.batch_size if tuned.loaded.task.per_token else _BATCH.get(kind, 256),
    )


def score_all(scorer: Scorer | None, delta: Tensor, buffers: Tensor) -> Evaluation:
    """Score the whole test set in this process, with one thread.

    Args:
      scorer: of the test set.
      delta: flat, float32 [P].
      buffers: the travelling ones, flat; of length 0 where there are none.

    Raises:
      EngineError: if there is no scorer.
    """
    if scorer is None:
        raise EngineError("evaluate: this engine was made without a test set")
    with one_thread():
        scorer.load(delta, buffers)
        return Evaluation.join([scorer.score(rows) for rows in scorer.spans()])
