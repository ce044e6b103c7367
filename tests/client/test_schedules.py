from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from fedpeft.client.schedules import SCHEDULES, Schedule, factor


def theirs(name, warmup, total):
    """The factors of `transformers`, step by step."""
    value = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([value], lr=1.0)
    name = "constant_with_warmup" if name == "constant" else name
    scheduler = get_scheduler(name, optimizer, warmup, total)
    found = []
    for _ in range(total):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("warmup", "steps"), [(0, 0), (3, 3), (0.25, 3), (12, 12)])
def test_factors_are_those_of_transformers(name, warmup, steps):
    ours = [factor(Schedule(name, warmup), done, 12) for done in range(12)]
    assert ours == pytest.approx(theirs(name, steps, 12))


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_last_round_has_the_final_factor(name):
    schedule = Schedule(name, final=0.02)
    rounds = [factor(schedule, number, 10) for number in range(1, 11)]
    assert rounds[-1] == pytest.approx(0.02)
    assert rounds == sorted(rounds, reverse=True) and rounds[0] < 1
    assert factor(schedule, 15, 10) == pytest.approx(0.02)  # never below it


def test_rounds_follow_the_published_cosine():
    """The rule of Flower's fine-tuning examples, from 5e-5 to 1e-6 over 200 rounds."""
    import math

    schedule = Schedule("cosine", final=1e-6 / 5e-5)
    for number in (1, 50, 200):
        published = 1e-6 + 0.5 * (5e-5 - 1e-6) * (1 + math.cos(number * math.pi / 200))
        assert 5e-5 * factor(schedule, number, 200) == pytest.approx(published)
