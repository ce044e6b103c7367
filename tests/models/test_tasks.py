"""Custom tasks, and the built-in ones against plain formulas."""

from __future__ import annotations

import dataclasses
import math
import pickle
from types import SimpleNamespace

import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from fedpeft.core.errors import ConfigError, ModelError
from fedpeft.core.metrics import Metric
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.models.tasks import (
    CAUSAL_LM,
    IMAGE_CLASSIFICATION,
    TASKS,
    Scores,
    Task,
    classification_task,
    custom_task,
    mean_loss,
    task_named,
)
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.prefix import probe_batch


def forward(model, batch):
    return model(batch["x"])


def squared(model, batch):
    return (model(batch["x"])[:, 0] - batch["y"]).square()


BATCH = {"x": torch.randn(5, 3), "labels": torch.tensor([0, 1, 0, 1, 1]), "y": torch.zeros(5)}


def test_classification_of_a_plain_module_is_cross_entropy():
    model = nn.Linear(3, 2)
    scores = classification_task(forward).score(model, BATCH)
    expected = F.cross_entropy(model(BATCH["x"]), BATCH["labels"])
    assert torch.allclose(mean_loss(scores), expected)
    assert scores.correct_B.sum() == (model(BATCH["x"]).argmax(-1) == BATCH["labels"]).sum()


def test_image_classification_reads_logits():
    module = load_model(ModelRequest("preset:tiny-vit", seed=1)).module
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    scores = IMAGE_CLASSIFICATION.score(module, {"pixel_values": images, "labels": labels})
    expected = F.cross_entropy(module(pixel_values=images).logits, labels, reduction="none")
    assert torch.allclose(scores.loss_B, expected)


def test_a_language_model_is_scored_as_the_library_does():
    module = load_model(ModelRequest("preset:tiny-llama", seed=1)).module
    ids = torch.randint(3, 128, (3, 9))
    labels = ids.clone()
    labels[0, 6:] = -100
    scores = CAUSAL_LM.score(module, {"input_ids": ids, "labels": labels})
    expected = module(input_ids=ids, labels=labels).loss
    assert torch.allclose(mean_loss(scores), expected, atol=1e-6)
    assert scores.count_B.tolist() == [5, 8, 8]


def test_any_loss_makes_a_task():
    model = nn.Linear(3, 1)
    task = custom_task(squared, name="regression")
    scores = task.score(model, BATCH)
    assert torch.allclose(mean_loss(scores), squared(model, BATCH).mean())
    assert task.metrics(6.0, 3.0, 0.0) == {"loss": 2.0}


def test_scores_pass_through():
    task = custom_task(
        lambda model, batch: Scores(batch["y"] + 1, batch["y"] + 2, batch["y"]), metric="accuracy"
    )
    scores = task.score(nn.Identity(), BATCH)
    assert mean_loss(scores) == 0.5
    assert task.metrics(1.0, 4.0, 3.0) == {"loss": 0.25, "accuracy": 0.75}


@pytest.mark.parametrize("task", [classification_task(forward), custom_task(squared)])
def test_tasks_of_named_functions_can_be_sent_to_a_worker(task):
    again = pickle.loads(pickle.dumps(task))
    model = nn.Linear(3, 2)
    assert torch.equal(again.score(model, BATCH).loss_B, task.score(model, BATCH).loss_B)


def test_a_mean_instead_of_losses_is_an_error():
    task = custom_task(lambda model, batch: squared(model, batch).mean())
    with pytest.raises(ConfigError, match=r"shape \(\); one number per example is expected"):
        task.score(nn.Linear(3, 1), BATCH)


def test_an_unknown_metric_is_an_error():
    with pytest.raises(ConfigError, match="metric 'f1' is unknown; choose loss, accuracy or perp"):
        custom_task(squared, metric="f1")


def test_perplexity_is_the_exponential_of_the_mean_loss():
    task = Task("lm", forward, metric="perplexity")
    assert task.metrics(8.0, 4.0, 0.0)["perplexity"] == pytest.approx(math.exp(2))
    assert math.isnan(task.metrics(0.0, 0.0, 0.0)["perplexity"])


def test_a_task_with_an_unknown_metric_is_refused_where_it_is_made():
    with pytest.raises(ConfigError, match="task 'mine': metric 'mae' is unknown; choose loss"):
        Task("mine", forward, metric="mae")


@pytest.mark.parametrize("metric", [None, 3, abs], ids=str)
def test_what_is_no_metric_is_refused_in_words(metric):
    with pytest.raises(ConfigError, match=r"task 'mine': metric .* is unknown; choose loss"):
        Task("mine", forward, metric=metric)


def test_a_metric_of_ones_own_is_reported():
    rmse = Metric("rmse", "min", lambda loss, count, correct: math.sqrt(loss / count))
    task = custom_task(squared, metric=rmse)
    assert task.metrics(12.0, 3.0, 0.0) == {"loss": 4.0, "rmse": 2.0}
    assert math.isnan(task.metrics(0.0, 0.0, 0.0)["rmse"])


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_what_a_row_says_of_the_libraries_is_true(task):
    import peft
    import transformers
    from transformers.pipelines import SUPPORTED_TASKS

    if task.targets == "text":  # the hub has models of this kind, the library no pipeline any more
        assert task.pipeline not in SUPPORTED_TASKS
    else:
        assert task.auto_class in {cls.__name__ for cls in SUPPORTED_TASKS[task.pipeline]["pt"]}
    assert hasattr(transformers, task.auto_class)
    if task.inputs == "text":
        assert task.peft_type in peft.TaskType.__members__


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-llama", "tiny-videomae"])
def test_no_name_of_a_task_is_asked(name):
    row = load_model(ModelRequest(f"preset:{name}", seed=1)).task
    labels = 3 if row.new_head else None
    known, renamed = (
        tune(
            load_model(ModelRequest(f"preset:{name}", task, labels, seed=1)), TuningRequest("lora")
        )
        for task in (row, dataclasses.replace(row, name="another"))
    )
    assert renamed.spec == known.spec
    batch = probe_batch(known)
    scores = [tuned.loaded.task.score(tuned.model, batch).loss_B for tuned in (known, renamed)]
    assert torch.equal(*scores)
    other = dataclasses.replace(row, new_head=not row.new_head)  # the fields decide, not the name
    changed = load_model(ModelRequest(f"preset:{name}", other, seed=1))
    assert tune(changed, TuningRequest("lora")).spec != known.spec


def test_an_unknown_task_is_an_error():
    with pytest.raises(ModelError, match="task 'translation': unknown; choose one of image-class"):
        task_named("translation")
    assert task_named(CAUSAL_LM) is CAUSAL_LM is task_named("causal-lm")


def scored(task, logits, labels):
    net = Fixed(logits)
    scores = task.score(net, {"input_ids": logits, "labels": labels})
    sums = [scores.loss_B.sum(), scores.count_B.sum(), scores.correct_B.sum()]
    return task.metrics(*map(float, (*sums, *scores.tallies_BM.double().sum(0))))


class Fixed(torch.nn.Module):
    """A model that gives the same logits whatever it is asked."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, **inputs):
        return SimpleNamespace(logits=self.logits)


def test_metrics_of_a_regression_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(50, 1, generator=generator)
    target = value[:, 0] + 0.3 * torch.randn(50, generator=generator) + 1
    found = scored(TASKS["text-regression"], value, target)
    pair = target.numpy(), value[:, 0].numpy()
    assert found["rmse"] == pytest.approx(sklearn.metrics.root_mean_squared_error(*pair), rel=1e-5)
    assert found["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(*pair), rel=1e-5)
    assert found["r2"] == pytest.approx(sklearn.metrics.r2_score(*pair), rel=1e-4)
    assert found["loss"] == pytest.approx(float(F.mse_loss(value[:, 0], target)))


def test_metrics_of_several_classes_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 4, generator=generator)
    target = (logits + torch.randn(50, 4, generator=generator) > 0.5).float()
    found = scored(TASKS["text-multi-label"], logits, target)
    pair = target.numpy(), (logits > 0).numpy()
    assert found["f1"] == pytest.approx(sklearn.metrics.f1_score(*pair, average="micro"))
    assert found["exact_match"] == pytest.approx(sklearn.metrics.accuracy_score(*pair))
    loss = F.binary_cross_entropy_with_logits(logits, target)
    assert found["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_metrics_of_tags_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 12, 4, generator=generator)
    target = torch.randint(0, 4, (8, 12), generator=generator)
    target = torch.where(torch.rand(8, 12, generator=generator) < 0.5, logits.argmax(-1), target)
    target[torch.rand(8, 12, generator=generator) < 0.3] = -100
    found = scored(TASKS["token-classification"], logits, target)
    known = target != -100
    pair = target[known].numpy(), logits.argmax(-1)[known].numpy()
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(*pair))
    expected = sklearn.metrics.f1_score(*pair, labels=[1, 2, 3], average="micro")
    assert found["f1"] == pytest.approx(expected)
    assert found["loss"] == pytest.approx(float(F.cross_entropy(logits[known], target[known])))


def test_the_loss_of_a_written_text_is_that_of_the_library():
    ids = {"pad_token_id": 0, "decoder_start_token_id": 0, "vocab_size": 30}
    config = T5Config(**ids, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(config).eval()
    read = torch.tensor([[5, 6, 7, 1], [8, 1, 0, 0]])
    labels = torch.tensor([[3, 4, 1], [9, 1, -100]])
    batch = {"input_ids": read, "attention_mask": (read != 0).long(), "labels": labels}
    scores = TASKS["seq2seq-lm"].score(model, batch)
    assert scores.count_B.tolist() == [3, 2]
    assert torch.allclose(mean_loss(scores), model(**batch).loss)
