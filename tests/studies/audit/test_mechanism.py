"""Each fault of a private mechanism is found in ten of ten audits, through the run's own code.

Faults are put into the functions that the run calls; nothing in the audit knows of them.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

import fedpeft.build.privacy_of_run as run_privacy
import fedpeft.client.local as local_training
import fedpeft.client.passes.gradients as joint_gradients
import fedpeft.client.private as private_training
import fedpeft.wire.private_stages as private_stages
from fedpeft.build.run import build_run
from fedpeft.client.private import noised as sound_noised
from fedpeft.core import noise
from fedpeft.experiment.read import DIGITS, read_experiment
from fedpeft.experiment.resolve import resolve
from fedpeft.server.algorithms import weighted_mean
from fedpeft.studies.audit.checks import CHECKS
from fedpeft.studies.audit.mechanism import check_mechanism

SETS = [
    "model.name=preset:tiny-vit", "tuning.method=bias", "data.budget=100",
    "data.partition.clients=6", "federation.clients_per_round=3", "client.batch_size=8",
    "engine.workers=1",
]  # fmt: skip
NOISE = {"central": 4.0, "local": 8.0, "example": 1.0, "shuffled": 1.0}
SHUFFLED = ["privacy.mode=example", "privacy.example_sampling=shuffle"]
MODES = pytest.mark.parametrize(
    "mode",
    ["central", "local", "example", pytest.param("shuffled", marks=pytest.mark.slow)],
)
SEEDS = [pytest.param(1, id="once"), pytest.param(10, id="ten", marks=pytest.mark.slow)]


def audited(mode, *, seed=1, sets=()):
    """The result of each check of one audit."""
    chosen = SHUFFLED if mode == "shuffled" else [f"privacy.mode={mode}"]
    given = [*SETS, *chosen, f"privacy.noise_multiplier={NOISE[mode]}"]
    resolved = resolve(read_experiment(DIGITS, [*given, f"seed={seed}", *sets]))
    built = build_run(resolved)
    try:
        found = check_mechanism(resolved.experiment, resolved, built)
    finally:
        built.engine.close()
    return {check["name"]: check["result"] for check in found["checks"]}


def noised_by(monkeypatch, fault):
    """Let the run draw its noise from `fault(root, count, deviation, *path)`."""
    for module in (private_stages, private_training):
        monkeypatch.setattr(module, "gaussian", fault)


def clipped_by(monkeypatch, fault):
    """Let the run clip a flat tensor by `fault(flat, bound)`, and rows of gradients too."""
    monkeypatch.setattr(private_stages, "bounded", fault)

    def rows(rows_BP, bound):
        return torch.stack([fault(row_P, bound) for row_P in rows_BP])

    for module in (local_training, joint_gradients):
        monkeypatch.setattr(module, "clip_rows", rows)


def no_noise(monkeypatch):
    noised_by(monkeypatch, lambda root, count, deviation, *path: torch.zeros(count))


def half_the_noise(monkeypatch):
    noised_by(
        monkeypatch,
        lambda r, count, deviation, *path: noise.gaussian(r, count, deviation / 2, *path),
    )


def same_noise(monkeypatch):
    noised_by(
        monkeypatch,
        lambda root, count, deviation, *path: noise.gaussian(root, count, deviation, "once"),
    )


def flipped_noise(monkeypatch):
    """The same noise in every release, by turns with the other sign, a little longer each time."""

    def fault(root, count, deviation, *path):
        number = sum(part for part in path if isinstance(part, int))
        factor = (-1) ** number * (1 + 0.01 * number)
        return factor * noise.gaussian(root, count, deviation, "once")

    noised_by(monkeypatch, fault)


def moved_noise(monkeypatch):
    """Each round reads one stream from a place of its own."""

    def fault(root, count, deviation, *path):
        number = sum(part for part in path if isinstance(part, int))
        return noise.gaussian(root, count, deviation, "once").roll(7 * number)

    noised_by(monkeypatch, fault)


def noise_of_the_round(monkeypatch):
    """A round that is repeated has the same noise, whatever the noise covers."""

    def fault(root, count, deviation, *path):
        return noise.gaussian(root, count, deviation, *[p for p in path if len(str(p)) < 64])

    noised_by(monkeypatch, fault)


def noise_drawn_twice(monkeypatch):
    """Every two neighbouring coordinates share one draw."""

    def fault(root, count, deviation, *path):
        half = noise.gaussian(root, (count + 1) // 2, deviation, *path)
        return half.repeat_interleave(2)[:count]

    noised_by(monkeypatch, fault)


def known_noise(monkeypatch):
    noised_by(monkeypatch, lambda root, *rest: noise.gaussian(noise.seeded_root(5), *rest))


def no_clip(monkeypatch):
    clipped_by(monkeypatch, lambda flat, bound: flat.clone())


def clip_by_tensor(monkeypatch):
    """Each of the delta's tensors is clipped by itself."""
    sizes = []

    def fault(flat, bound):
        if not sizes:
            resolved = resolve(read_experiment(DIGITS, SETS))
            built = build_run(resolved)
            built.engine.close()
            sizes.extend(built.plan.spec.sizes)
        return torch.cat([noise.clip(part, bound) for part in flat.split(sizes)])

    clipped_by(monkeypatch, fault)


def loose_clip(monkeypatch):
    clipped_by(monkeypatch, lambda flat, bound: noise.clip(flat, 2 * bound))


def mean_of_those_who_answered(monkeypatch):
    """The sum is divided by the number of replies, or of examples in the batch."""

    def mean(algorithm, spec):
        return dataclasses.replace(algorithm, combine=weighted_mean)

    monkeypatch.setattr(run_privacy, "constant_denominator", mean)

    counts = [0]

    def rows(rows_BP, bound):
        counts[0] += len(rows_BP)
        return noise.clip_rows(rows_BP, bound)

    def noised(chosen, grad_P, batch_size, noise_P):
        count, counts[0] = max(1, counts[0]), 0
        return sound_noised(chosen, grad_P, count, noise_P)

    monkeypatch.setattr(local_training, "clip_rows", rows)
    monkeypatch.setattr(private_training, "noised", noised)


FAULTS = {
    no_noise: "noise_too_small",
    half_the_noise: "noise_too_small",
    same_noise: "noise_repeated",
    flipped_noise: "noise_repeated",
    moved_noise: "noise_repeated",
    noise_of_the_round: "noise_repeated",
    noise_drawn_twice: "noise_alike",
    known_noise: "noise_predictable",
    no_clip: "clip",
    loose_clip: "clip",
    clip_by_tensor: "clip",
    mean_of_those_who_answered: "denominator",
}


@MODES
@pytest.mark.parametrize("count", SEEDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_by_its_check(fault, mode, count, monkeypatch):
    fault(monkeypatch)
    for seed in range(1, count + 1):
        assert audited(mode, seed=seed)[FAULTS[fault]] == "found", seed


@MODES
@pytest.mark.parametrize("count", SEEDS)
def test_a_sound_mechanism_passes_every_check(mode, count):
    """The negative control; by chance one audit in a thousand may fail, of any of the checks."""
    for seed in range(1, count + 1):
        assert set(audited(mode, seed=seed).values()) <= {"passed", "noted"}, seed


@MODES
def test_more_noise_than_claimed_is_noted_and_no_fault(mode, monkeypatch):
    noised_by(monkeypatch, lambda root, n, s, *path: noise.gaussian(root, n, 3 * s, *path))
    found = audited(mode)
    assert found.pop("noise_too_large") == "noted"
    assert set(found.values()) == {"passed"}


@MODES
def test_noise_from_the_seed_is_not_compared_with_a_second_run(mode):
    found = audited(mode, sets=["privacy.reproducible_noise=true"])
    assert found.pop("noise_predictable") == "not run"
    assert set(found.values()) <= {"passed", "noted"}


OTHERS = [
    ("example", ["client.batch_size=1"]),
    pytest.param("shuffled", ["client.batch_size=1"], marks=pytest.mark.slow),
    ("example", ["engine.clients_per_pass=4"]),
    pytest.param("shuffled", ["engine.clients_per_pass=4"], marks=pytest.mark.slow),
    ("example", ["privacy.examples_per_client=4000"]),
    pytest.param("example", ["client.batch_size=64"], marks=pytest.mark.slow),  # rate 1
    pytest.param("shuffled", ["client.batch_size=64"], marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("mode", "sets"), OTHERS)
def test_other_batches_and_passes_are_checked_too(sets, mode, monkeypatch):
    allowed = {"passed", "noted"} if mode == "example" else {"passed", "noted", "not run"}
    assert set(audited(mode, sets=sets).values()) <= allowed
    clip_by_tensor(monkeypatch)
    assert audited(mode, sets=sets)["clip"] == "found"


def test_an_empty_batch_must_be_noised_too(monkeypatch):
    counts = [0]

    def rows(rows_BP, bound):
        counts[0] += len(rows_BP)
        return noise.clip_rows(rows_BP, bound)

    def noised(chosen, grad_P, batch_size, noise_P):
        count, counts[0] = counts[0], 0
        return sound_noised(chosen, grad_P, batch_size, noise_P * (count > 0))

    monkeypatch.setattr(local_training, "clip_rows", rows)
    monkeypatch.setattr(private_training, "noised", noised)
    assert audited("example")["noise_too_small"] == "found"
    assert audited("shuffled")["noise_too_small"] == "passed"


@pytest.mark.parametrize("up", ["int8", "top_k", "float16"])
@pytest.mark.parametrize("mode", ["central", "local"])
def test_stages_after_the_private_one_are_not_faults(mode, up):
    found = audited(mode, sets=[f'wire.up=[{{name="{up}"}}]'])
    assert set(found.values()) <= {"passed", "noted"} and set(found) == set(CHECKS)
