"""Tasks: how a batch becomes a loss and a metric, example by example.

    batch ──model──> outputs ──> loss_B, count_B, correct_B
                                 training loss = sum(loss_B) / sum(count_B)
                                 accuracy      = sum(correct_B) / sum(count_B)
                                 perplexity    = exp(training loss)

An example of a classification task counts once; an example of a language model counts its predicted
tokens. All that differs between tasks is a field of `Task`; `TASKS` has a row for each task that an
experiment file can name. Legend: B examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpeft.core.errors import ConfigError, ModelError
from fedpeft.core.metrics import Metric, metric_named

__all__ = [
    "CAUSAL_LM",
    "IMAGE_CLASSIFICATION",
    "TASKS",
    "TEXT_CLASSIFICATION",
    "VIDEO_CLASSIFICATION",
    "Batch",
    "Scores",
    "Task",
    "classification_task",
    "custom_task",
    "mean_loss",
    "task_named",
]

Batch: TypeAlias = Mapping[str, Tensor]
"""Collated tensors, first axis B; `labels` holds the targets."""


@dataclass(frozen=True)
class Scores:
    """What a batch scored, example by example; sums over examples are what tasks report.

    Attributes:
      loss_B: summed loss of each example, in nats; differentiable.
      count_B: how many predictions each example makes (1, or its predicted tokens).
      correct_B: how many of them were right.
    """

    loss_B: Tensor
    count_B: Tensor
    correct_B: Tensor


@dataclass(frozen=True)
class Task:
    """A kind of learning problem: all in which one task differs from another.

    `classification_task` and `custom_task` make tasks of models and data of the user's own, which
    need a name, `score` and a metric alone. The other fields serve models of `transformers` and
    data from files.

    Attributes:
      name: for records and errors.
      score: runs the model on a batch; the only place that calls the model.
      metric: the headline: `accuracy` (0 to 1), `perplexity` (>= 1, less is better), `loss` (the
        mean of the task's own loss), or a metric of the user's own.
      inputs: what the model takes, and the kind of the column that holds it; None where the
        user's data set gives batches.
      targets: what is predicted: one `class` of each example (labels [B]), or `tokens`, those of
        the text itself (labels [B, T]).
      columns: kind of a column -> names under which it is looked for before the usual ones.
      new_head: whether the head is new and small, so that every tuning method trains it; else it
        is pretrained and as large as the vocabulary.
      auto_class: the class of `transformers` that makes its models.
      class_endings: what the names of the library's classes for it end in.
      peft_type: `TaskType` of the peft library.
      pipeline: the hub's name for it.

    Raises:
      ConfigError: if the metric is unknown.
    """

    name: str
    score: Callable[[nn.Module, Batch], Scores]
    metric: str | Metric = "accuracy"
    inputs: Literal["image", "text", "video"] | None = None
    targets: Literal["class", "tokens"] = "class"
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    new_head: bool = True
    auto_class: str = ""
    class_endings: tuple[str, ...] = ()
    peft_type: str = "SEQ_CLS"
    pipeline: str = ""

    def __post_init__(self) -> None:
        metric_named(self.metric, where=f"task {self.name!r}")

    @property
    def headline(self) -> Metric:
        """The metric by which runs are judged."""
        return metric_named(self.metric, where=f"task {self.name!r}")

    @property
    def per_token(self) -> bool:
        """Whether a prediction, and a label, belongs to each token and not to each example."""
        return self.targets != "class"

    def metrics(self, loss: float, count: float, correct: float) -> dict[str, float]:
        """Turn sums over a test set into the reported figures: `loss` and the headline metric."""
        metric = self.headline
        assert metric.from_sums is not None, "checked when the task was made"
        figure = metric.from_sums(loss, count, correct) if count else math.nan
        return {"loss": loss / count if count else math.nan, metric.name: figure}


def mean_loss(scores: Scores) -> Tensor:
    """The training loss of a batch: a scalar, in nats a prediction."""
    return scores.loss_B.sum() / scores.count_B.sum().clamp(min=1)


def classification_task(
    forward: Callable[[nn.Module, Batch], Tensor], *, name: str = "classification"
) -> Task:
    """Make a task of a module of the user's own that classifies.

    Args:
      forward: runs the module on a batch and returns logits [B, C]; the batch holds the targets as
        `labels` [B], int64.
      name: for records and errors.
    """
    return Task(name, partial(_classify_with, forward))


def custom_task(
    losses: Callable[[nn.Module, Batch], Tensor | Scores],
    *,
    name: str = "custom",
    metric: str | Metric = "loss",
) -> Task:
    """Make a task of any loss.

    Args:
      losses: runs the module on a batch and returns the loss of each example [B], differentiable;
        or `Scores`, where examples count more than once or something can be right.
      name: for records and errors.
      metric: `loss`; with `Scores` also `accuracy`, or `perplexity` where the labels are tokens;
        or a metric of the user's own.

    Raises:
      ConfigError: if the metric is unknown; when used, if the losses are not one number an example.

    Example:
      >>> mae = Metric("mae", "min", lambda loss, count, correct: loss / count)
      >>> def losses(model, batch):
      ...     return (model(batch["inputs"])[:, 0] - batch["labels"]).abs()
      >>> custom_task(losses, metric=mae).metrics(6.0, 4.0, 0.0)
      {'loss': 1.5, 'mae': 1.5}
    """
    targets: Literal["class", "tokens"] = "tokens" if metric == "perplexity" else "class"
    return Task(name, partial(_score_with, losses), metric, targets=targets)


def task_named(task: str | Task) -> Task:
    """Return a row of `TASKS` by its name; a task stays as it is.

    Raises:
      ModelError: if there is no such row.
    """
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise ModelError(f"task {task!r}: unknown; choose one of {', '.join(TASKS)}")
    return TASKS[task]


def _classify(model: nn.Module, batch: Batch) -> Scores:
    return _classify_with(_logits, model, batch)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits: Tensor = model(**inputs).logits
    return logits


def _classify_with(
    forward: Callable[[nn.Module, Batch], Tensor], model: nn.Module, batch: Batch
) -> Scores:
    logits_BC = _at_least_float32(forward(model, batch))
    labels_B = batch["labels"]
    return Scores(
        F.cross_entropy(logits_BC, labels_B, reduction="none"),
        torch.ones_like(labels_B, dtype=torch.float32),
        (logits_BC.argmax(-1) == labels_B).float(),
    )


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _score_with(
    losses: Callable[[nn.Module, Batch], Tensor | Scores], model: nn.Module, batch: Batch
) -> Scores:
    found = losses(model, batch)
    if isinstance(found, Scores):
        return found
    if found.dim() != 1:
        raise ConfigError(
            f"custom task: its losses have shape {tuple(found.shape)}; one number an example is "
            'wanted, shape (B,): use reduction="none"'
        )
    return Scores(found, torch.ones_like(found), torch.zeros_like(found))


def _next_token(model: nn.Module, batch: Batch) -> Scores:
    """Legend: T tokens, V vocabulary. Padding has label -100 and counts for nothing."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits_BTV = _at_least_float32(model(**inputs, use_cache=False).logits[:, :-1])
    labels_BT = batch["labels"][:, 1:]
    known_BT = labels_BT != -100
    loss_BT = F.cross_entropy(
        logits_BTV.transpose(1, 2), labels_BT, reduction="none", ignore_index=-100
    )
    correct_BT = (logits_BTV.argmax(-1) == labels_BT) & known_BT
    return Scores(loss_BT.sum(1), known_BT.sum(1).float(), correct_BT.sum(1).float())


IMAGE_CLASSIFICATION = Task(
    "image-classification",
    _classify,
    inputs="image",
    auto_class="AutoModelForImageClassification",
    class_endings=("ForImageClassification", "ForImageClassificationWithTeacher"),
    pipeline="image-classification",
)
TEXT_CLASSIFICATION = Task(
    "text-classification",
    _classify,
    inputs="text",
    auto_class="AutoModelForSequenceClassification",
    class_endings=("ForSequenceClassification",),
    pipeline="text-classification",
)
VIDEO_CLASSIFICATION = Task(
    "video-classification",
    _classify,
    inputs="video",
    auto_class="AutoModelForVideoClassification",
    class_endings=("ForVideoClassification",),
    pipeline="video-classification",
)
CAUSAL_LM = Task(
    "causal-lm",
    _next_token,
    metric="perplexity",
    inputs="text",
    targets="tokens",
    new_head=False,
    auto_class="AutoModelForCausalLM",
    class_endings=("ForCausalLM", "LMHeadModel"),
    peft_type="CAUSAL_LM",
    pipeline="text-generation",
)
TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (IMAGE_CLASSIFICATION, TEXT_CLASSIFICATION, CAUSAL_LM, VIDEO_CLASSIFICATION)
}
