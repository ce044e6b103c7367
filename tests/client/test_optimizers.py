from __future__ import annotations

import sys

import pytest
import torch
from transformers.optimization import Adafactor

from fedpeft.client.optimizers import OptimizerSettings, make_step, state_bytes
from fedpeft.core.errors import ConfigError

CASES = {
    "sgd": OptimizerSettings("sgd", 0.1, 0.0, False, 0.0),
    "momentum": OptimizerSettings("sgd", 0.1, 0.9, False, 1e-2),
    "nesterov": OptimizerSettings("sgd", 0.1, 0.9, True, 1e-2),
    "adamw": OptimizerSettings("adamw", 0.01, weight_decay=1e-2),
}


def theirs(value, settings):
    if settings.name == "adafactor":
        return Adafactor(
            [value], settings.lr, weight_decay=settings.weight_decay,
            scale_parameter=False, relative_step=False,
        )  # fmt: skip
    if settings.name == "sgd":
        return torch.optim.SGD(
            [value], settings.lr, settings.momentum,
            nesterov=settings.nesterov, weight_decay=settings.weight_decay,
        )  # fmt: skip
    return torch.optim.AdamW([value], settings.lr, weight_decay=settings.weight_decay)


def trajectory(settings, steps=6, shape=(40,)):
    """Minimise a fixed quadratic with our step and with torch's."""
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(40, generator=generator)
    reference = ours.clone().view(shape).requires_grad_()
    scale = torch.rand(40, generator=generator)
    step, optimizer = make_step(settings, shapes=[shape]), theirs(reference, settings)
    for number in range(steps):
        rate = settings.lr / (1 + number)
        step(ours, scale * ours, rate / settings.lr)
        reference.grad = scale.view(shape) * reference.detach()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return ours, reference.detach().flatten()


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_step_agrees_with_torch(settings):
    ours, reference = trajectory(settings)
    torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(40,), (5, 8), (2, 4, 5), (40, 1)])
def test_adafactor_agrees_with_transformers(shape):
    settings = OptimizerSettings("adafactor", 0.1, weight_decay=1e-2)
    ours, reference = trajectory(settings, shape=shape)
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)
    if shape == (5, 8):
        assert not torch.allclose(ours, trajectory(settings, shape=(40,))[0], rtol=1e-3)


@pytest.mark.parametrize("name", ["sgd", "adamw", "adafactor"])
def test_rows_of_a_step_are_independent(name):
    """Several clients in a step equal one after the other, each with its own rate."""
    settings, shapes = OptimizerSettings(name, 0.1), [(2, 3), (4,), ()]
    start = torch.randn(3, 11, generator=torch.Generator().manual_seed(1))
    together, step = start.clone(), make_step(settings, shapes=shapes)
    scales = torch.tensor([[1.0], [0.5], [0.1]])
    for at_work in (3, 3, 2):
        step(together[:at_work], together[:at_work] * 2, scales[:at_work])
    for row, number in enumerate((3, 3, 2)):
        alone, step = start[row].clone(), make_step(settings, shapes=shapes)
        for _ in range(number):
            step(alone, alone * 2, float(scales[row]))
        torch.testing.assert_close(together[row], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "shapes", "expected"), [
    ("sgd", [(4, 6)], 4 * 24), ("adamw", [(4, 6)], 8 * 24),
    ("adafactor", [(4, 6), (5,), ()], 4 * (4 + 6 + 5 + 1)),
])  # fmt: skip
def test_bytes_of_the_state(name, shapes, expected):
    assert state_bytes(name, shapes) == expected


def test_eight_bits_without_their_package_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"adamw_8bit' needs the package bitsandbytes: pip inst"):
        make_step(OptimizerSettings("adamw_8bit"))


def test_eight_bits_stay_near_adamw():
    pytest.importorskip("bitsandbytes", reason="the extra `quantized` is not installed")
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 6000, generator=generator)
    scale = torch.rand(2, 6000, generator=generator) + 0.5
    found = {}
    for name in ("adamw_8bit", "adamw"):
        value, step = start.clone(), make_step(OptimizerSettings(name, 1e-2, weight_decay=0.1))
        for number in range(20):
            step(value[: 2 - number // 10], (scale * value)[: 2 - number // 10])
        found[name] = value - start
    difference = (found["adamw_8bit"] - found["adamw"]).norm(dim=1) / found["adamw"].norm(dim=1)
    assert difference.max() < 0.05
    assert not torch.equal(found["adamw_8bit"], found["adamw"])
    assert found["adamw_8bit"][0].norm() > 1.5 * found["adamw_8bit"][1].norm()


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
    with pytest.raises(ConfigError, match="'adam', allowed are sgd, adamw, adamw_8bit, adafactor"):
        make_step(OptimizerSettings("adam"))
