"""Tasks: how a batch becomes a loss and a metric, example by example.

    batch ──model──> outputs ──> loss_B, count_B, correct_B
                                 training loss = sum(loss_B) / sum(count_B)
                                 accuracy      = sum(correct_B) / sum(count_B)
                                 perplexity    = exp(training loss)

An example of a classification task counts once; an example of a language model counts its predicted
tokens. Every difference between tasks is a field of `Task`; `TASKS` has a row for each task that
an experiment file can name. Legend: B examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from fedpeft.core.errors import ConfigError, ModelError
from fedpeft.core.metrics import EXACT, F1, MAE, R2, RMSE, Metric, metric_named
from fedpeft.models.scores import Batch as Batch
from fedpeft.models.scores import Scores as Scores
from fedpeft.models.scores import (
    choose_any,
    classify,
    classify_with,
    next_token,
    regress,
    tag,
    translate,
)

Targets: TypeAlias = Literal["class", "number", "classes", "tags", "tokens", "text"]


@dataclass(frozen=True)
class Task:
    """A kind of learning problem: how a batch is scored, and by which metric.

    `classification_task` and `custom_task` make tasks for custom models and data, which need only
    `name`, `score` and `metric`. The other fields serve models of `transformers` and data from
    files.

    Attributes:
      name: name in records and error messages.
      score: runs the model on a batch; the only place that calls the model.
      metric: the headline metric: `accuracy` (0 to 1), `perplexity` (>= 1, less is better), `loss`
        (the mean of the task's own loss), or a custom metric.
      more: further metrics that are reported.
      inputs: kind of the model's input, and of the column that holds it; None if the user's data
        set returns batches.
      targets: what is predicted: one `class` of an example (labels [B]), a `number` (labels [B],
        float), any number of `classes` (labels [B, C], float, 0 or 1), a class of each word
        (`tags`, labels [B, T]), the `tokens` of the text itself (labels [B, T]), or another `text`
        (labels [B, S]).
      columns: kind of a column -> names that are tried before the default ones.
      new_head: whether the head is new and small, so that every tuning method trains it; else it
        is pretrained and as large as the vocabulary.
      problem_type: what the config of a model of `transformers` with a new head calls it.
      outputs: number of outputs of the head, where the task fixes it; else it is that of the
        classes.
      auto_class: the class of `transformers` that builds its models.
      class_endings: endings of the names of the library's classes for this task.
      peft_type: `TaskType` of the peft library.
      pipeline: name of the task on the hub.

    Raises:
      ConfigError: if the metric is unknown.

    Example:
      >>> import fedpeft
      >>> task = fedpeft.classification_task(lambda net, batch: net(batch["inputs"]))
      >>> task.headline.name, task.metrics(loss=2.0, count=4.0, correct=3.0)
      ('accuracy', {'loss': 0.5, 'accuracy': 0.75})
    """

    name: str
    score: Callable[[nn.Module, Batch], Scores]
    metric: str | Metric = "accuracy"
    more: tuple[Metric, ...] = ()
    inputs: Literal["image", "text", "video"] | None = None
    targets: Targets = "class"
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    new_head: bool = True
    problem_type: str = "single_label_classification"
    outputs: int | None = None
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
        return self.targets in ("tags", "tokens", "text")

    @property
    def goes_on(self) -> bool:
        """Whether it predicts how a text goes on: a language model of one stack."""
        return self.targets == "tokens"

    def metrics(
        self, loss: float, count: float, correct: float, *tallies: float
    ) -> dict[str, float]:
        """Turn sums over a test set into the reported figures: `loss` and the metrics."""
        found = {"loss": loss / count if count else math.nan}
        for metric in (self.headline, *self.more):
            assert metric.from_sums is not None, "checked when the task was made"
            figure = metric.from_sums(loss, count, correct, *tallies) if count else math.nan
            found[metric.name] = figure
        return found


def mean_loss(scores: Scores) -> Tensor:
    """Return the training loss of a batch: a scalar, in nats per prediction."""
    return scores.loss_B.sum() / scores.count_B.sum().clamp(min=1)


def classification_task(
    forward: Callable[[nn.Module, Batch], Tensor], *, name: str = "classification"
) -> Task:
    """Make a classification task for a custom module.

    Args:
      forward: runs the module on a batch and returns logits [B, C]; the batch holds the targets as
        `labels` [B], int64.
      name: name in records and error messages.

    Example:
      >>> import torch, fedpeft
      >>> task = fedpeft.classification_task(lambda net, batch: net(batch["inputs"]))
      >>> batch = {"inputs": torch.eye(3), "labels": torch.tensor([0, 1, 1])}
      >>> task.score(torch.nn.Identity(), batch).correct_B
      tensor([1., 1., 0.])
    """
    return Task(name, partial(classify_with, forward))


def custom_task(
    losses: Callable[[nn.Module, Batch], Tensor | Scores],
    *,
    name: str = "custom",
    metric: str | Metric = "loss",
) -> Task:
    """Make a task with any loss.

    Args:
      losses: runs the module on a batch and returns the loss of each example [B], differentiable;
        or `Scores`, if examples make several predictions or predictions can be correct.
      name: name in records and error messages.
      metric: `loss`; with `Scores` also `accuracy`, or `perplexity` if the labels are tokens; or a
        custom metric.

    Raises:
      ConfigError: if the metric is unknown; when used, if there is not one loss per example.

    Example:
      >>> import fedpeft
      >>> mae = fedpeft.Metric("mae", "min", lambda loss, count, correct: loss / count)
      >>> def losses(model, batch):
      ...     return (model(batch["inputs"])[:, 0] - batch["labels"]).abs()
      >>> fedpeft.custom_task(losses, metric=mae).metrics(loss=6.0, count=4.0, correct=0.0)
      {'loss': 1.5, 'mae': 1.5}
    """
    targets: Targets = "tokens" if metric == "perplexity" else "class"
    return Task(name, partial(_score_with, losses), metric, targets=targets)


def task_named(task: str | Task) -> Task:
    """Return a row of `TASKS` by its name; a `Task` is returned as it is.

    Raises:
      ModelError: if there is no such row.
    """
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise ModelError(f"task {task!r}: unknown; choose one of {', '.join(TASKS)}")
    return TASKS[task]


def _score_with(
    losses: Callable[[nn.Module, Batch], Tensor | Scores], model: nn.Module, batch: Batch
) -> Scores:
    found = losses(model, batch)
    if isinstance(found, Scores):
        return found
    if found.dim() != 1:
        raise ConfigError(
            f"custom task: its losses have shape {tuple(found.shape)}; one number per example is "
            'expected, shape (B,): use reduction="none"'
        )
    return Scores(found, torch.ones_like(found), torch.zeros_like(found))


def blank_labels(task: Task, ids_BT: Tensor, num_labels: int) -> Tensor:
    """Return labels of the right shape and type for made-up texts.

    Args:
      task: of the model.
      ids_BT: the texts.
      num_labels: number of outputs C of the head.
    """
    if task.targets in ("tokens", "text"):
        return ids_BT
    if task.targets == "tags":
        return torch.zeros_like(ids_BT)
    if task.targets == "classes":
        return torch.zeros(len(ids_BT), num_labels, device=ids_BT.device)
    dtype = torch.float32 if task.targets == "number" else torch.int64
    return torch.zeros(len(ids_BT), dtype=dtype, device=ids_BT.device)


def _classification(
    inputs: Literal["image", "text", "video"], kind: str, *more_endings: str
) -> Task:
    """Make a row for classes of `transformers` whose names end in `For` and a kind."""
    name, endings = f"{inputs}-classification", (f"For{kind}", *more_endings)
    return Task(
        name,
        classify,
        inputs=inputs,
        auto_class=f"AutoModelFor{kind}",
        class_endings=endings,
        pipeline=name,
    )


IMAGE_CLASSIFICATION = _classification(
    "image", "ImageClassification", "ForImageClassificationWithTeacher"
)
TEXT_CLASSIFICATION = _classification("text", "SequenceClassification")
VIDEO_CLASSIFICATION = _classification("video", "VideoClassification")
CAUSAL_LM = Task(
    "causal-lm",
    next_token,
    metric="perplexity",
    inputs="text",
    targets="tokens",
    new_head=False,
    auto_class="AutoModelForCausalLM",
    class_endings=("ForCausalLM", "LMHeadModel"),
    peft_type="CAUSAL_LM",
    pipeline="text-generation",
)
TEXT_REGRESSION = replace(
    TEXT_CLASSIFICATION,
    name="text-regression",
    score=regress,
    metric=RMSE,
    more=(MAE, R2),
    targets="number",
    problem_type="regression",
    outputs=1,
    columns={"label": ("score", "rating", "value", "stars")},
)
TEXT_MULTI_LABEL = replace(
    TEXT_CLASSIFICATION,
    name="text-multi-label",
    score=choose_any,
    metric=F1,
    more=(EXACT,),
    targets="classes",
    problem_type="multi_label_classification",
)
TOKEN_CLASSIFICATION = Task(
    "token-classification",
    tag,
    more=(F1,),
    inputs="text",
    targets="tags",
    columns={
        "text": ("tokens", "words"),
        "label": ("tags", "ner_tags", "pos_tags", "chunk_tags"),
    },
    auto_class="AutoModelForTokenClassification",
    class_endings=("ForTokenClassification",),
    peft_type="TOKEN_CLS",
    pipeline="token-classification",
)
SEQ2SEQ_LM = Task(
    "seq2seq-lm",
    translate,
    metric="perplexity",
    inputs="text",
    targets="text",
    columns={
        "prompt": ("source", "text", "document", "article"),
        "completion": ("target", "summary", "translation", "highlights"),
    },
    new_head=False,
    auto_class="AutoModelForSeq2SeqLM",
    class_endings=("ForConditionalGeneration",),
    peft_type="SEQ_2_SEQ_LM",
    pipeline="text2text-generation",
)
TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        *(IMAGE_CLASSIFICATION, TEXT_CLASSIFICATION, CAUSAL_LM, VIDEO_CLASSIFICATION),
        *(TEXT_REGRESSION, TEXT_MULTI_LABEL, TOKEN_CLASSIFICATION, SEQ2SEQ_LM),
    )
}
