"""One client and one round equal centralised training: a loop of torch, and `transformers.Trainer`.

Both see the same examples in the same order, with AdamW, warm-up and cosine, and clipped gradients.
The losses of all steps agree within 1e-5, and so do the trained parameters.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as hf

from fedpeft.client.batches import batches, dropout_keys
from fedpeft.client.local import local_trainer
from fedpeft.client.optimizers import OptimizerSettings
from fedpeft.client.schedules import Schedule
from fedpeft.client.settings import LocalSettings
from fedpeft.core.deltas import DeltaSpec
from fedpeft.data.examples import Federated
from fedpeft.data.tensors import TextExamples, flat_tokens
from fedpeft.engines.local import LocalEngine
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.models.tasks import mean_loss
from fedpeft.rounds.client_half import ClientHalf
from fedpeft.rounds.round import run_round
from fedpeft.rounds.round_plan import RoundPlan
from fedpeft.server.algorithms import fedavg
from fedpeft.server.sampling import fixed
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.tuned import read_buffers, read_delta

SIZE, EXAMPLES = 4, 37
CLIP, RATE, WARMUP = 0.2, 5e-3, 5


def tuned(dropout):
    loaded = load_model(ModelRequest("preset:tiny-llama"))
    options = {"r": 4, "lora_dropout": dropout, "init_lora_weights": "gaussian"}
    return tune(loaded, TuningRequest("lora", options, seed=1))


def data():
    draw = np.random.default_rng(0)
    rows = [draw.integers(3, 50, size).tolist() for size in draw.integers(3, 12, EXAMPLES)]
    tokens, offsets = flat_tokens(rows)
    examples = TextExamples(tokens, offsets, None, 0)
    every = {"alone": np.arange(EXAMPLES)}
    return Federated(examples, examples, every, None, None, None, "texts", {})


def settings(steps, **changes):
    chosen = {
        "epochs": None, "max_steps": steps, "batch_size": SIZE, "gradient_clip": CLIP,
        "optimizer": OptimizerSettings("adamw", RATE, weight_decay=0.01),
        "schedule": Schedule("cosine", WARMUP),
    }  # fmt: skip
    return LocalSettings(**{**chosen, **changes})


def federated(steps, dropout=0.0, **changes):
    """Train one client for one round; return the loss of each batch, the delta, and the turn."""
    losses, turns = [], []

    def build():
        model = tuned(dropout)
        task = model.loaded.task

        def score(module, batch):
            scores = task.score(module, batch)
            losses.append(float(mean_loss(scores).detach()))
            return scores

        recorded = replace(model, loaded=replace(model.loaded, task=replace(task, score=score)))
        trainer = local_trainer(recorded, settings(steps, **changes))

        def train(payload, some):
            turns.extend(some)
            return trainer(payload, some)

        return ClientHalf(train, (), (), model.spec)

    model = tuned(dropout)
    plan = RoundPlan(fedavg(), fixed(), model.spec, DeltaSpec((), ()), 1, 1.0)
    start = plan.algorithm.init(read_delta(model), read_buffers(model))
    engine = LocalEngine(build, data(), num_workers=1)
    state, _ = run_round(start, plan, engine)
    engine.close()
    return losses, state.delta, turns[0]


def by_hand(turn, steps, dropout=0.0, clip=CLIP):
    """The same training as a plain loop over the model of `transformers` with `peft`'s layers."""
    model = tuned(dropout)
    optimizer = torch.optim.AdamW(model.parameters.values(), RATE, weight_decay=0.01)
    scheduler = hf.get_cosine_schedule_with_warmup(optimizer, WARMUP, steps)
    order = [(e, rows) for e in range(steps) for rows in batches(turn, SIZE, e)][:steps]
    losses = []
    for number, (_, rows) in enumerate(order, 1):
        optimizer.zero_grad()
        with model.dropout.using(dropout_keys(turn, rows, number)):
            batch = turn.data.examples.batch(rows.tolist(), seed=None)
            loss = model.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters.values(), clip)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses, read_delta(model)


def worst(ours, theirs):
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_one_client_and_one_round_equal_a_plain_loop(dropout):
    """Fifty steps; the negative control is another clip."""
    ours, delta, turn = federated(50, dropout)
    theirs, expected = by_hand(turn, 50, dropout)
    assert len(ours) == 50 and worst(ours, theirs) < 1e-5
    torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-5)
    assert ours[-1] < ours[0] - 0.02
    assert worst(ours, by_hand(turn, 50, dropout, clip=0.4)[0]) > 1e-4


class Order(torch.utils.data.Dataset):
    """A turn's examples, in the order of its batches."""

    def __init__(self, turn, steps, each):
        epochs = range(math.ceil(steps * each * SIZE / EXAMPLES) + each)
        self.rows = [i for e in epochs for rows in batches(turn, SIZE, e) for i in rows.tolist()]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        return self.rows[place]


def trainers(turn, steps, folder):
    """The same training by `transformers.Trainer`, whose order of examples alone is replaced."""

    class Ordered(hf.Trainer):
        def _get_train_sampler(self, *args):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    options = hf.TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=SIZE, learning_rate=RATE,
        weight_decay=0.01, max_grad_norm=CLIP, lr_scheduler_type="cosine", warmup_steps=WARMUP,
        logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
        optim="adamw_torch", remove_unused_columns=False,
    )  # fmt: skip
    model = tuned(0.0)
    rows = turn.data.examples
    trainer = Ordered(
        model.model, options, train_dataset=Order(turn, steps, 1),
        data_collator=lambda some: rows.batch(some, seed=None),
    )  # fmt: skip
    trainer.remove_callback(hf.PrinterCallback)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return losses, read_delta(model)


def test_one_client_and_one_round_equal_the_trainer(tmp_path, monkeypatch):
    """Whole batches only: `Trainer` does not end an epoch in the middle of a list."""
    monkeypatch.setattr(f"{__name__}.EXAMPLES", 36)
    ours, delta, turn = federated(50)
    theirs, expected = trainers(turn, 50, tmp_path)
    assert len(theirs) == 50 and worst(ours, theirs) < 1e-5
    torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-5)
    other = federated(50, schedule=Schedule("linear", WARMUP))[0]
    assert worst(other, theirs) > 1e-4
