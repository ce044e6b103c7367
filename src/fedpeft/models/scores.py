"""Scores: how a batch becomes losses and what metrics are made of, example by example.

    class     cross-entropy of the classes       number    squared error
    classes   a yes or no for each class         tags      cross-entropy at each word's first token
    tokens    cross-entropy of each next token   text      the same, after a text that is read

Legend: B examples, C classes, T tokens, S tokens of another text, V vocabulary, M tallies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpeft.models.packed import apart

Batch: TypeAlias = Mapping[str, Tensor]
"""Name -> collated tensor with first axis B; `labels` holds the targets."""


@dataclass(frozen=True)
class Scores:
    """Loss and correct predictions of each example of a batch; metrics are made of their sums.

    Attributes:
      loss_B: summed loss of each example, in nats; differentiable.
      count_B: number of predictions of each example (1, or its predicted tokens).
      correct_B: number of correct predictions of each example.
      tallies_BM: what else the task's metrics are made of, by sums over a test set; None for
        nothing.

    Example:
      >>> import torch, fedpeft
      >>> scores = fedpeft.Scores(torch.tensor([0.5, 1.5]), torch.ones(2), torch.tensor([1.0, 0.0]))
      >>> float(scores.loss_B.sum() / scores.count_B.sum())
      1.0
    """

    loss_B: Tensor
    count_B: Tensor
    correct_B: Tensor
    tallies_BM: Tensor | None = None


def classify(model: nn.Module, batch: Batch) -> Scores:
    """Score one class of each example."""
    return classify_with(_logits, model, batch)


def classify_with(
    forward: Callable[[nn.Module, Batch], Tensor], model: nn.Module, batch: Batch
) -> Scores:
    """Score one class of each example by the logits [B, C] that a function returns."""
    logits_BC = _at_least_float32(forward(model, batch))
    labels_B = batch["labels"]
    return Scores(
        F.cross_entropy(logits_BC, labels_B, reduction="none"),
        torch.ones_like(labels_B, dtype=torch.float32),
        (logits_BC.argmax(-1) == labels_B).float(),
    )


def regress(model: nn.Module, batch: Batch) -> Scores:
    """Score a regression by its squared error; the tallies are those of `MAE` and `R2`."""
    value_B = _at_least_float32(_logits(model, batch)).flatten()
    target_B = batch["labels"].to(value_B.dtype)
    error_B = value_B - target_B
    tallies_BM = torch.stack([error_B.abs(), target_B, target_B.square()], 1)
    ones_B = torch.ones_like(error_B)
    return Scores(error_B.square(), ones_B, torch.zeros_like(error_B), tallies_BM)


def choose_any(model: nn.Module, batch: Batch) -> Scores:
    """Score each class as a yes or no of its own; the tallies are those of `F1`."""
    logits_BC = _at_least_float32(_logits(model, batch))
    labels_BC = batch["labels"].to(logits_BC.dtype)
    loss_BC = F.binary_cross_entropy_with_logits(logits_BC, labels_BC, reduction="none")
    found_BC, true_BC = logits_BC > 0, labels_BC > 0.5
    tallies_BM = torch.stack(
        [(found_BC & true_BC).sum(1), (found_BC & ~true_BC).sum(1), (~found_BC & true_BC).sum(1)], 1
    )
    right_B = (found_BC == true_BC).all(1).to(loss_BC.dtype)
    return Scores(loss_BC.mean(1), torch.ones_like(right_B), right_B, tallies_BM)


def tag(model: nn.Module, batch: Batch) -> Scores:
    """Score the class of each word; the tallies are those of `F1` over all but the first class."""
    logits_BTC = _at_least_float32(_logits(model, batch))
    labels_BT = batch["labels"]
    known_BT = labels_BT != -100
    loss_BT = F.cross_entropy(
        logits_BTC.transpose(1, 2), labels_BT, reduction="none", ignore_index=-100
    )
    found_BT = logits_BTC.argmax(-1)
    right_BT = (found_BT == labels_BT) & known_BT
    found_tag_BT, true_tag_BT = (found_BT > 0) & known_BT, labels_BT > 0
    tallies_BM = torch.stack(
        [
            (right_BT & true_tag_BT).sum(1),
            (found_tag_BT & ~right_BT).sum(1),
            (true_tag_BT & ~right_BT).sum(1),
        ],
        1,
    )
    return Scores(loss_BT.sum(1), known_BT.sum(1).float(), right_BT.sum(1).float(), tallies_BM)


def next_token(model: nn.Module, batch: Batch) -> Scores:
    """Score a language model; what is not learnt has label -100 and is not counted.

    Legend: T tokens, V vocabulary.
    """
    batch = apart(batch, next(model.parameters()).dtype)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits_BTV = _at_least_float32(model(**inputs, use_cache=False).logits[:, :-1])
    labels_BT = batch["labels"][:, 1:]
    known_BT = labels_BT != -100
    loss_BT = F.cross_entropy(
        logits_BTV.transpose(1, 2), labels_BT, reduction="none", ignore_index=-100
    )
    correct_BT = (logits_BTV.argmax(-1) == labels_BT) & known_BT
    return Scores(loss_BT.sum(1), known_BT.sum(1).float(), correct_BT.sum(1).float())


def translate(model: nn.Module, batch: Batch) -> Scores:
    """Score the tokens of another text, each from those before it and the text that is read.

    Legend: S tokens of the other text, V vocabulary.
    """
    labels_BS = batch["labels"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    before_BS = model.prepare_decoder_input_ids_from_labels(labels_BS)  # type: ignore[operator]  # of the library
    found = model(**inputs, decoder_input_ids=before_BS, use_cache=False).logits
    logits_BSV = _at_least_float32(found)
    known_BS = labels_BS != -100
    loss_BS = F.cross_entropy(
        logits_BSV.transpose(1, 2), labels_BS, reduction="none", ignore_index=-100
    )
    right_BS = (logits_BSV.argmax(-1) == labels_BS) & known_BS
    return Scores(loss_BS.sum(1), known_BS.sum(1).float(), right_BS.sum(1).float())


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits: Tensor = model(**inputs).logits
    return logits


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
