"""Evaluation: a model's summed scores over examples, in large batches under inference mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedpeft.client.batches import to_device
from fedpeft.client.frozen.tail import short_tail
from fedpeft.client.settings import LocalSettings, autocast
from fedpeft.data.examples import ExampleSet
from fedpeft.tuning.tuned import TunedModel


@dataclass(frozen=True)
class Evaluation:
    """Scores of each example of a set, so that any subset can be summed.

    Attributes:
      loss_N: summed loss of each example, in nats, float64.
      count_N: number of predictions of each example.
      correct_N: number of correct predictions of each example.
      label_N: class of each example; empty if an example has no single class.
      tallies_NM: what further metrics of the task are made of; no column where there are none.
    """

    loss_N: Tensor
    count_N: Tensor
    correct_N: Tensor
    label_N: Tensor
    tallies_NM: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    def sums(self, rows: Sequence[int] | None = None) -> tuple[float, ...]:
        """Sum loss, count, correct and each tally over some rows, or over all."""
        parts = (self.loss_N, self.count_N, self.correct_N, *self.tallies_NM.unbind(1))
        if rows is not None:
            index = torch.as_tensor(list(rows), dtype=torch.int64)
            parts = tuple(part[index] for part in parts)
        return tuple(float(part.sum()) for part in parts)

    def right(self) -> Tensor | None:
        """Return whether each example was right [N], bool; None unless each is one prediction.

        A loss that counts nothing as correct gives False everywhere.
        """
        single = bool((self.count_N == 1).all())
        right_N = self.correct_N == 1
        return right_N if single and bool((right_N | (self.correct_N == 0)).all()) else None

    @staticmethod
    def join(parts: Sequence[Evaluation]) -> Evaluation:
        """Concatenate the scores of parts of a set."""
        if not parts:
            return Evaluation(*(torch.zeros(0, dtype=torch.float64) for _ in range(4)))
        tensors = ((p.loss_N, p.count_N, p.correct_N, p.label_N, p.tallies_NM) for p in parts)
        return Evaluation(*(torch.cat(column) for column in zip(*tensors, strict=True)))


def evaluate(
    tuned: TunedModel,
    examples: ExampleSet,
    settings: LocalSettings,
    batch_size: int,
    rows: range | None = None,
) -> Evaluation:
    """Score examples of a set with the live delta of `tuned`.

    Args:
      tuned: the model, on the settings' device.
      examples: the set; never augmented.
      settings: device and precision; the rest is not used.
      batch_size: examples per forward pass; it only limits memory.
      rows: positions of the examples to score; None scores all.
    """
    tuned.model.eval()
    rows = range(len(examples)) if rows is None else rows
    with torch.inference_mode(), short_tail(tuned.model):
        starts = range(0, len(rows), batch_size)
        return Evaluation.join(
            [_score(tuned, examples, settings, rows[i : i + batch_size]) for i in starts]
        )


def _score(
    tuned: TunedModel, examples: ExampleSet, settings: LocalSettings, rows: range
) -> Evaluation:
    batch = to_device(examples.batch(rows, seed=None), settings.device)
    with autocast(settings):
        scores = tuned.loaded.task.score(tuned.model, batch)
    sums = (scores.loss_B, scores.count_B, scores.correct_B)
    loss_B, count_B, correct_B = (part.double().cpu() for part in sums)
    labels = batch.get("labels")
    label_B = labels if labels is not None and labels.ndim == 1 else torch.empty(0)
    tallies = scores.tallies_BM
    tallies_BM = torch.zeros(len(loss_B), 0) if tallies is None else tallies
    return Evaluation(loss_B, count_B, correct_B, label_B.cpu(), tallies_BM.double().cpu())
