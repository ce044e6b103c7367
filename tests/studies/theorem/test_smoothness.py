"""The descent lemma: exact on quadratics, a proven constant, a small network, and a violation."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from fedpeft.studies.theorem.smoothness import (
    Search,
    beta_on_segment,
    bound_between,
    gradient_at,
    hessian_product,
    peak_at,
)


def points(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, size, generator=generator, dtype=torch.float64))  # type: ignore[return-value]


def quadratic(eigenvalues: list[float]):
    generator = torch.Generator().manual_seed(1)
    size = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    hessian = basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T
    return [lambda w: 0.5 * w @ hessian @ w, lambda w: w.sum()]


def test_the_constant_of_a_quadratic_is_its_largest_eigenvalue_in_size():
    surface = quadratic([1.0, 2.0, 3.0, -7.0])
    search = Search(points=3, iterations=200, tolerance=1e-12, factor=1.0)
    found = beta_on_segment(surface, *points(4), search)
    assert found == pytest.approx(7.0, rel=1e-9)


def test_equality_where_the_hessian_is_beta_times_one():
    found = bound_between(quadratic([4.0] * 6), points(6), 2, beta=4.0)
    assert found.slack == pytest.approx(0, abs=1e-12) and found.holds
    assert found.p_theta > 0 and found.p_delta > 0


def test_a_hundredth_of_beta_violates_the_quadratic():
    found = bound_between(quadratic([4.0, 3.0, 2.0, 3.5]), points(4), 0, beta=4.0)
    assert found.holds and found.slack > 0
    assert not dataclasses.replace(found, beta=0.04).holds


def test_the_parts_add_up_and_a_frozen_backbone_has_none():
    start, end = points(6)
    end[:2] = start[:2]
    found = bound_between(quadratic([1.0, 2, 3, 4, 5, 6]), (start, end), 2, beta=6.0)
    assert found.p_theta == 0 == found.inner_theta
    assert found.p_delta == pytest.approx(3.0 * float((end - start).square().sum()))
    assert found.slack == pytest.approx(found.p_delta - found.remainder)


def test_softmax_regression_keeps_to_its_proven_constant():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    labels = torch.arange(40) % 3
    surface = [lambda w: torch.nn.functional.cross_entropy(x @ w.view(5, 3), labels)]
    proven = 0.5 * float(torch.linalg.eigvalsh(x.T @ x / 40)[-1])
    start, end = points(15)
    assert beta_on_segment(surface, start, end, Search(factor=1.0)) <= proven
    assert bound_between(surface, (start, end), 0, beta=proven).holds


def test_small_network_after_rounds_of_federated_averaging():
    """Trunk weights are theta; biases and the last layer are delta. Eight clients."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(8, 20, 4, generator=generator, dtype=torch.float64)
    labels = (x[..., 0] * x[..., 1] > 0).long()

    def loss(w: Tensor, x: Tensor = x, labels: Tensor = labels) -> Tensor:
        trunk, bias, last = w[:64].view(4, 16), w[64:80], w[80:].view(16, 2)
        logits = torch.tanh(x @ trunk + bias) @ last
        return torch.nn.functional.cross_entropy(logits.reshape(-1, 2), labels.reshape(-1))

    surface = [loss]
    clients = [[lambda w, i=i: loss(w, x[i], labels[i])] for i in range(8)]
    for frozen in (0, 64):
        start = end = 0.5 * torch.randn(112, generator=generator, dtype=torch.float64)
        mask = (torch.arange(112) >= frozen).double()
        for _ in range(5):
            turns = []
            for client in clients:
                w = end
                for _ in range(3):
                    w = w - 0.3 * mask * gradient_at(client, w)
                turns.append(w)
            end = torch.where(mask > 0, torch.stack(turns).mean(0), end)
        beta = beta_on_segment(surface, start, end, Search())
        found = bound_between(surface, (start, end), 64, beta=beta)
        assert found.holds and found.slack > 0
        assert (found.p_theta == 0) == (frozen == 64)


def test_work_in_parts_is_work_at_once():
    parts = [lambda w: (w**4).sum(), lambda w: (w[0] * w[1:]).sum()]
    start, end = points(5)
    whole = [lambda w: parts[0](w) + parts[1](w)]
    exact = torch.autograd.functional.hessian(whole[0], start)
    assert torch.allclose(hessian_product(parts, start, end), exact @ end)
    assert torch.allclose(hessian_product(whole, start, end), exact @ end)
    assert torch.allclose(gradient_at(parts, start), gradient_at(whole, start))
    assert not torch.allclose(hessian_product(parts[:1], start, end), exact @ end)


def test_a_shared_start_changes_no_bit():
    surface = [lambda w: torch.tanh(w @ w.flip(0)), lambda w: (w**3).sum()]
    start, end = points(6)
    search = Search(points=3)
    shared = beta_on_segment(surface, start, end, search, peak_at(surface, start, search))
    assert shared == beta_on_segment(surface, start, end, search)
    at_end = peak_at(surface, end, search)
    assert shared != beta_on_segment(surface, start, end, search, at_end)
