from __future__ import annotations

import random

import numpy as np
import torch

from fedpeft.core import seeds


def test_derive_depends_on_every_step_of_the_path():
    paths = [
        (1, "a", 2),
        (1, 2, "a"),
        (2, "a", 2),
        (1, "b", 2),
        (1, "a", 3),
        (1, "a", "2"),
        (1, "a"),
        (1,),
    ]
    values = {seeds.derive(*path) for path in paths}
    assert len(values) == len(paths)
    assert seeds.derive(1, "a", 2) == seeds.derive(1, "a", 2)


def test_derive_is_pinned_across_machines():
    assert seeds.derive(1, "cohort", 7) == 1844340305101753384


def test_isolated_seeds_the_generators_and_restores_them():
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = (torch.rand(1).item(), np.random.rand(), random.random())
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    with seeds.isolated(9):
        first = (torch.rand(1).item(), np.random.rand(), random.random())
    with seeds.isolated(9):
        second = (torch.rand(1).item(), np.random.rand(), random.random())
    assert first == second != expected
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


def test_uniforms_depend_on_their_key_alone():
    keys = torch.tensor([3, -9, 2**62, 3])
    together = seeds.uniforms(keys, 50)
    alone = torch.stack([seeds.uniforms(key, 50) for key in keys])
    assert torch.equal(together, alone)
    assert torch.equal(together[0], together[3])
    assert not torch.equal(together[0], together[1])


def test_uniforms_are_uniform():
    drawn = seeds.uniforms(torch.arange(2000), 50)
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = torch.histc(drawn, 20, 0, 1) / drawn.numel()
    assert (counts - 0.05).abs().max() < 0.003
    rows, columns = drawn.mean(1), drawn.mean(0)
    assert abs(rows.std().item() - (1 / 12 / 50) ** 0.5) < 0.003
    assert abs(columns.std().item() - (1 / 12 / 2000) ** 0.5) < 0.003
