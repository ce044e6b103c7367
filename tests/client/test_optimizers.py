from __future__ import annotations

import pytest
import torch

from fedpeft.client.optimizers import OptimizerSettings, make_step
from fedpeft.core.errors import ConfigError

CASES = {
    "sgd": OptimizerSettings("sgd", 0.1, 0.0, False, 0.0),
    "momentum": OptimizerSettings("sgd", 0.1, 0.9, False, 1e-2),
    "nesterov": OptimizerSettings("sgd", 0.1, 0.9, True, 1e-2),
    "adamw": OptimizerSettings("adamw", 0.01, weight_decay=1e-2),
}


def theirs(value, settings):
    if settings.name == "sgd":
        return torch.optim.SGD(
            [value], settings.lr, settings.momentum,
            nesterov=settings.nesterov, weight_decay=settings.weight_decay,
        )  # fmt: skip
    return torch.optim.AdamW([value], settings.lr, weight_decay=settings.weight_decay)


def trajectory(settings, steps=6):
    """Minimise a fixed quadratic with our step and with torch's."""
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(40, generator=generator)
    reference = ours.clone().requires_grad_()
    scale = torch.rand(40, generator=generator)
    step, optimizer = make_step(settings), theirs(reference, settings)
    for _ in range(steps):
        step(ours, scale * ours)
        reference.grad = scale * reference.detach()
        optimizer.step()
    return ours, reference.detach()


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_step_agrees_with_torch(settings):
    ours, reference = trajectory(settings)
    torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-7)


def test_sgd_is_bit_equal_to_torch():
    ours, reference = trajectory(CASES["nesterov"])
    assert torch.equal(ours, reference)


def test_nesterov_differs_from_plain_momentum():
    assert not torch.allclose(trajectory(CASES["nesterov"])[0], trajectory(CASES["momentum"])[0])


@pytest.mark.parametrize("settings", [CASES["nesterov"], CASES["adamw"]], ids=["sgd", "adamw"])
def test_inactive_parameters_do_not_decay(settings):
    value = torch.ones(2)
    make_step(settings, torch.tensor([1.0, 0.0]))(value, torch.zeros(2))
    assert value[1] == 1 and value[0] < 1


def test_unknown_optimizer_is_refused():
    with pytest.raises(ConfigError, match="'adam', allowed are sgd, adamw"):
        make_step(OptimizerSettings("adam"))
