"""What a run asks of its privacy: each answer follows from the row of its mode."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import support
import torch

import fedpeft
from fedpeft.build.privacy_of_run import PrivacyOfRun
from fedpeft.client.turns import DELTA
from fedpeft.core.errors import PrivacyError
from fedpeft.experiment.privacy import PRIVACY_MODES
from fedpeft.experiment.read import DIGITS, read_experiment
from fedpeft.server.algorithms import fedadam, fedavg
from fedpeft.server.sampling import Draw
from fedpeft.server.state import ClientUpdate, RoundContext
from fedpeft.tuning.tuned import read_buffers, read_delta

SEEDED = "privacy.reproducible_noise=true"


def privacy(mode, *sets):
    noise = ("privacy.noise_multiplier=1.5",) if PRIVACY_MODES[mode].unit else ()
    return PrivacyOfRun(read_experiment(DIGITS, (f"privacy.mode={mode}", *noise, *sets)))


def root(mode, *sets):
    model = support.tuned()
    start = fedavg().init(read_delta(model), read_buffers(model))
    return privacy(mode, *sets).start(start).root


@pytest.mark.parametrize("name", PRIVACY_MODES)
def test_a_promise_comes_with_noise_of_a_secret_root_and_with_words(name):
    mode = PRIVACY_MODES[name]
    acts = mode.stage is not None or mode.gradient is not None
    assert (mode.unit is not None) == (mode.noise_by is not None)
    assert acts == bool(mode.note)
    assert mode.noise_by == "server" or not mode.secret_cohorts


@pytest.mark.parametrize("mode", PRIVACY_MODES)
def test_only_a_promise_divides_by_the_planned_cohort(mode):
    spec = support.tuned().spec
    algorithm = privacy(mode).algorithm(fedavg(), spec)
    update = ClientUpdate("a", {DELTA: torch.ones(spec.num_params)}, 3.0, spec)
    mean = algorithm.combine(iter([update]), RoundContext(1, ("a",), 8.0, 1)).delta
    assert float(mean[0]) == (1 / 8 if PRIVACY_MODES[mode].unit else 1.0)


@pytest.mark.parametrize("mode", PRIVACY_MODES)
def test_only_a_promise_refuses_what_is_no_mean(mode):
    """Its combination would be lost: the noise is for a sum over a constant."""
    spec = support.tuned().spec
    first = dataclasses.replace(fedavg(), combine=lambda updates, context: next(iter(updates)))
    if PRIVACY_MODES[mode].unit is None:
        assert privacy(mode).algorithm(first, spec) is first
        return
    with pytest.raises(PrivacyError, match=f"algorithm: found 'fedavg' .*'{mode}'; it combines"):
        privacy(mode).algorithm(first, spec)
    privacy(mode).algorithm(fedadam(), spec)  # the negative control: its step is after the mean


@pytest.mark.system_entropy
def test_the_root_is_drawn_anew_and_stays_in_the_state():
    roots = [root("central") for _ in range(2)]
    assert roots[0].shape == (32,)
    assert not torch.equal(*roots)
    assert torch.equal(*(root("central", SEEDED) for _ in range(2)))


@pytest.mark.parametrize("mode", [name for name in PRIVACY_MODES if name != "central"])
def test_a_server_that_adds_no_noise_has_no_root(mode):
    assert not root(mode).numel()


def test_a_printed_state_does_not_show_the_root():
    model = support.tuned()
    start = fedavg().init(read_delta(model), read_buffers(model))
    assert "root" not in repr(privacy("central").start(start))
    assert "delta=" in repr(start)


@pytest.mark.parametrize(
    ("mode", "deviation"), [("central", 1.5 / 8), ("local", 1.5), ("example", 1.5 / 64)]
)
def test_the_deviation_is_that_of_what_the_noise_is_added_to(mode, deviation):
    said = privacy(mode).planned()["privacy"]
    assert said["noise_deviation"] == pytest.approx(deviation)
    assert said["note"] == f"{mode}, {PRIVACY_MODES[mode].unit} level"


def test_the_planned_rounds_end_at_the_budget():
    free = privacy("central", "federation.rounds=50")
    budget = free.summary(10)["epsilon"]
    bounded = privacy("central", "federation.rounds=50", f"privacy.epsilon={budget}")
    assert bounded.planned()["epsilon"] == pytest.approx(budget)
    assert bounded.goes_on(9) and not bounded.goes_on(49)
    assert free.goes_on(49) and not free.goes_on(50)


@pytest.mark.parametrize("mode", PRIVACY_MODES)
def test_cohorts_are_secret_only_where_the_table_allows_it(mode):
    assert privacy(mode).secret_sampler(64) is None
    secret = "federation.sampling=poisson"
    if PRIVACY_MODES[mode].secret_cohorts:
        sampler = privacy(mode, secret).secret_sampler(64)
        names = [f"c{i}" for i in range(64)]
        draws = [Draw(number, 8, 1, root(mode)) for number in range(1, 5)]
        cohorts = {tuple(sampler.draw(names, {}, draw)) for draw in draws}
        assert sampler.secret
        assert len(cohorts) == 4
        return
    with pytest.raises(PrivacyError, match=r"found 'poisson' with .*allowed is 'central' only"):
        privacy(mode, secret)


ASKS = re.compile(r"is_private|privacy\.mode (==|!=|in |not in )")


def test_no_file_compares_the_name_of_the_mode():
    """A new mode is a row of the table; a file that compares names would have to know it."""
    root = Path(fedpeft.__file__).parent
    files = {str(file.relative_to(root)): file.read_text("utf-8") for file in root.rglob("*.py")}
    assert [name for name, text in files.items() if ASKS.search(text)] == []
    assert ASKS.search("if experiment.privacy.mode == 'x'")
