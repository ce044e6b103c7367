"""The bare loop: a session that trains clients one after the other with ordinary modules.

Hugging Face model, peft layers, torch.optim: no messages, no engine, no server. It also trains all
clients' examples as one batch with a single delta (`fused`), the bound for many clients at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bench.contestants.work import (
    accuracy,
    batch_of,
    delta_of,
    make_model,
    make_optimizer,
    read_work,
    save_delta,
    set_delta,
    train,
)

__all__ = ["open_session"]


def open_session(folder: str) -> Mapping[str, Callable[..., Any]]:
    """Load a folder of work.

    Returns:
      `round(number, threads)`: train a round's cohort and average, in seconds;
      `fused(number, group, threads)`: train groups of clients as one batch, in seconds and losses;
      `finish(out)`: write the delta, return the accuracy.
    """
    work = read_work(Path(folder))
    model = make_model(work)
    state = {name: value.clone() for name, value in work.start.items()}

    def round(number: int, threads: int) -> float:
        torch.set_num_threads(threads)
        began = time.perf_counter()
        total, sums = 0.0, {name: torch.zeros_like(value) for name, value in state.items()}
        for client in work.cohort(number):
            set_delta(model, state)
            train(work, model, number, client)
            weight = float(work.plan["sizes"][client])
            for name, value in delta_of(model).items():
                sums[name].add_(value - state[name], alpha=weight)
            total += weight
        for name, value in sums.items():
            state[name].add_(value, alpha=1 / total)
        return time.perf_counter() - began

    def fused(number: int, group: int, threads: int) -> dict[str, float]:
        torch.set_num_threads(threads)
        began = time.perf_counter()
        cohort = work.cohort(number)
        first = last = float("nan")
        for start in range(0, len(cohort), group):
            set_delta(model, state)
            optimizer = make_optimizer(work, model)
            model.train()
            turns = [list(work.steps(number, client)) for client in cohort[start : start + group]]
            for together in zip(*turns, strict=True):
                batch = batch_of(work.train, [row for rows in together for row in rows])
                optimizer.zero_grad()
                loss = model(**batch).loss
                loss.backward()
                optimizer.step()
                last = float(loss.detach())
                first = last if first != first else first
        return {"seconds": time.perf_counter() - began, "first_loss": first, "last_loss": last}

    def finish(out: str) -> float:
        save_delta(state, Path(out))
        set_delta(model, state)
        return accuracy(work, model)

    return {"round": round, "fused": fused, "finish": finish}
