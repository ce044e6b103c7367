"""Evaluation of a server state, in parts that any process can compute.

    delta, buffers ──> the model ──> spans of rows, each scored on one thread ──> joined in order

A span consists of whole batches, so that the number of workers and the distribution of spans among
them do not change a single bit of the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.client.evaluate import Evaluation, evaluate
from fedpeft.client.frozen.prefix import CHUNK
from fedpeft.client.settings import LocalSettings
from fedpeft.core.errors import EngineError
from fedpeft.data.examples import ExampleSet
from fedpeft.engines.workers import one_thread
from fedpeft.tuning.tuned import TunedModel, write_buffers, write_delta

_BATCH = {"cpu": 64, "cuda": 256}
"""Examples per forward pass: on a CPU, the activations of more examples do not fit its caches."""


@dataclass(frozen=True)
class Scorer:
    """The model, the data and the settings with which a process scores the server's test set.

    Attributes:
      tuned: the model; `load` writes into it.
      examples: the test set.
      settings: settings of local training, with the device and the precision.
      batch_size: examples per forward pass.
    """

    tuned: TunedModel
    examples: ExampleSet
    settings: LocalSettings
    batch_size: int

    def spans(self) -> list[range]:
        """Divide the test set into spans of whole batches, at least as long as a prefix's chunk."""
        step = self.batch_size * math.ceil(CHUNK / self.batch_size)
        total = len(self.examples)
        return [range(start, min(start + step, total)) for start in range(0, total, step)]

    def load(self, delta: Tensor, buffers: Tensor) -> None:
        """Write the delta and the buffers of a server state, both flat, into the model."""
        write_delta(self.tuned, delta)
        if self.tuned.buffers:
            write_buffers(self.tuned, buffers)

    def score(self, rows: range) -> Evaluation:
        """Score some rows with the loaded state."""
        return evaluate(self.tuned, self.examples, self.settings, self.batch_size, rows)


def make_scorer(tuned: TunedModel, examples: ExampleSet, settings: LocalSettings) -> Scorer:
    """Return the scorer of a test set.

    Args:
      tuned: the model, or the rest of it where the examples are features.
      examples: the server's test set.
      settings: settings of local training; their batch size is used for language models, whose
        logits are as wide as a vocabulary.
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
      scorer: scorer of the test set.
      delta: flat, float32 [P].
      buffers: the buffers that are sent, flat; of length 0 where there are none.

    Raises:
      EngineError: if there is no scorer.
    """
    if scorer is None:
        raise EngineError("evaluate: this engine was made without a test set")
    with one_thread():
        scorer.load(delta, buffers)
        return Evaluation.join([scorer.score(rows) for rows in scorer.spans()])
