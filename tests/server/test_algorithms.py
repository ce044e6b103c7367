from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fedpeft.client.turns import BUFFERS, DELTA
from fedpeft.core.deltas import DeltaSpec
from fedpeft.core.errors import ConfigError, DeltaMismatchError, RoundError
from fedpeft.server import algorithms
from fedpeft.server.algorithms import fedavg, weighted_mean
from fedpeft.server.sampling import fixed_cohort
from fedpeft.server.state import ClientUpdate, RoundContext, Update

CONTEXT = RoundContext(1, ("a", "b"), 2.0, 1)
NONE = torch.empty(0)
NINE = DeltaSpec(("w",), ((9,),))
ONE = DeltaSpec(("w",), ((1,),))


def updates(weights=(1.0, 3.0)):
    generator = torch.Generator().manual_seed(0)
    return [
        ClientUpdate(str(i), {DELTA: torch.randn(9, generator=generator)}, weight, NINE)
        for i, weight in enumerate(weights)
    ]


def test_weighted_mean_is_the_closed_form():
    first, second = updates()
    mean = weighted_mean(iter([first, second]), CONTEXT)
    expected = 0.25 * first.payload[DELTA] + 0.75 * second.payload[DELTA]
    torch.testing.assert_close(mean.delta, expected)
    assert mean.weight == 4


def test_fedavg_of_identical_clients_is_the_identity():
    (one,) = updates((2.0,))
    same = [ClientUpdate(str(i), one.payload, float(i + 1), NINE) for i in range(7)]
    torch.testing.assert_close(weighted_mean(same, CONTEXT).delta, one.payload[DELTA])
    start = fedavg().init(torch.ones(9), NONE)
    moved = fedavg().apply(start, Update(one.payload[DELTA], NONE, 1.0))
    torch.testing.assert_close(moved.delta, 1 + one.payload[DELTA])
    assert moved.round == 1 and start.round == 0


def test_combining_does_not_change_its_inputs():
    given = updates()
    before = [update.payload[DELTA].clone() for update in given]
    weighted_mean(given, CONTEXT)
    assert all(torch.equal(u.payload[DELTA], b) for u, b in zip(given, before, strict=True))


def test_buffers_are_averaged_and_set():
    payloads = [{DELTA: torch.zeros(1), BUFFERS: torch.full((2,), value)} for value in (0.0, 4.0)]
    mean = weighted_mean(
        [ClientUpdate("a", payloads[0], 1, ONE), ClientUpdate("b", payloads[1], 3, ONE)], CONTEXT
    )
    state = fedavg().apply(fedavg().init(torch.zeros(1), torch.full((2,), 9.0)), mean)
    assert state.buffers.tolist() == [3.0, 3.0]


def test_no_update_is_an_error():
    with pytest.raises(RoundError, match="no client answered"):
        weighted_mean([], CONTEXT)


def test_deltas_of_different_shapes_have_no_mean():
    one, _ = updates()
    other = ClientUpdate("b", {DELTA: torch.zeros(1)}, 1.0, ONE)
    with pytest.raises(DeltaMismatchError, match="b and 0 train deltas of different shapes"):
        weighted_mean([one, other], CONTEXT)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: algorithms.fedadam(tau=0.0), "tau: found 0.0; allowed is above 0"),
        (lambda: algorithms.fedadam(tau=1e30), "tau: found 1e\\+30; allowed is above 0 up to 1e"),
        (lambda: algorithms.fedavgm(momentum=1.0), "momentum: found 1.0; allowed is 0 up to 1.0"),
        (lambda: algorithms.fedprox(mu=-1.0), "mu: found -1.0"),
        (lambda: algorithms.fedavg(lr=float("nan")), "lr: found nan"),
    ],
)
def test_an_option_out_of_range_is_refused(build, words):
    with pytest.raises(ConfigError, match=words):
        build()


def apply_twice(algorithm, u):
    state = algorithm.init(torch.zeros_like(u), NONE)
    for _ in range(2):
        state = algorithm.apply(state, Update(u, NONE, 1.0))
    return state


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
def test_adaptive_algorithms_follow_their_paper(name):
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 1e-2}
    s = SimpleNamespace(**options)
    if name == "fedadagrad":
        del options["beta2"]
    u = torch.tensor([0.5, -2.0, 1e-4])
    x, m, v = torch.zeros(3), torch.zeros(3), torch.full((3,), s.tau**2)
    for _ in range(2):
        m = s.beta1 * m + (1 - s.beta1) * u
        v = {
            "fedadam": s.beta2 * v + (1 - s.beta2) * u**2,
            "fedyogi": v - (1 - s.beta2) * u**2 * torch.sign(v - u**2),
            "fedadagrad": v + u**2,
        }[name]
        x = x + s.lr * m / (v.sqrt() + s.tau)
    torch.testing.assert_close(apply_twice(getattr(algorithms, name)(**options), u).delta, x)


def test_fedavgm_with_no_momentum_is_fedavg():
    u = torch.tensor([0.5, -2.0])
    plain = apply_twice(fedavg(), u).delta
    assert torch.equal(apply_twice(algorithms.fedavgm(momentum=0.0), u).delta, plain)
    heavy = apply_twice(algorithms.fedavgm(momentum=0.9), u).delta
    torch.testing.assert_close(heavy, u + 1.9 * u)


def test_cohorts_have_the_asked_size_and_no_doubles():
    clients = [f"c{i}" for i in range(64)]
    for rate in (0.125, 0.0625, 0.03125, 0.015625, 1):
        cohort = fixed_cohort(clients, int(64 * rate), seed=1, round=3)
        assert len(set(cohort)) == len(cohort) == int(64 * rate)
    draws = {fixed_cohort(clients, 8, seed=1, round=r) for r in range(20)}
    assert len(draws) == 20


def test_a_cohort_larger_than_the_clients_is_refused():
    with pytest.raises(ConfigError, match="found 3, allowed are 1 to 2"):
        fixed_cohort(["a", "b"], 3, seed=1, round=1)
