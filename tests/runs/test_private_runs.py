"""Private runs from the file to the folder: refusals, budget, resume, what the records hold."""

from __future__ import annotations

import contextlib
import json
import stat
import time

import numpy as np
import pytest
import torch

from fedpeft.build.privacy_of_run import SIMULATION, PrivacyOfRun
from fedpeft.core.errors import FedpeftError, PrivacyError, RunFolderError
from fedpeft.experiment.epsilon import epsilon_after
from fedpeft.experiment.read import DIGITS, read_experiment
from fedpeft.experiment.resolve import resolve
from fedpeft.launch.start import run
from fedpeft.plan.plan import make_plan
from fedpeft.runs.checkpoint import checkpoints, read_checkpoint
from fedpeft.runs.folder import RunFolder
from fedpeft.wire.privacy_accounting import Mechanism, epsilon_of

TINY = (
    "model.name=preset:tiny-vit", "client.epochs=1", "engine.workers=1", "federation.rounds=3",
    "data.partition.clients=8", "federation.clients_per_round=4",
)  # fmt: skip
CENTRAL = (*TINY, "privacy.mode=central", "privacy.noise_multiplier=2.0")
SECRET = (*CENTRAL, "federation.sampling=poisson")
SEEDED = "privacy.reproducible_noise=true"


def read(*sets):
    return read_experiment(DIGITS, sets)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    """A run with secret cohorts: its summary and its folder."""
    folder = tmp_path_factory.mktemp("secret") / "r"
    return run(read(*SECRET), folder), folder


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    """The summary of the same run with noise from its seed."""
    return run(read(*SECRET, SEEDED), tmp_path_factory.mktemp("seeded") / "r")


def test_a_private_run_keeps_its_numbers_of_clients_and_examples(secret):
    told = json.loads((secret[1] / "environment.json").read_text())
    assert told["task"] == "image-classification"
    assert {*told["data"]} == {"name", "digest", "evaluated"}


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (("privacy.mode=central",), r"privacy\.epsilon: not set.*target epsilon"),
        (("privacy.noise_multiplier=1.0", "privacy.mode=local", "federation.sampling=poisson"),
         r"federation\.sampling: found 'poisson'.*'central' only"),
        (("federation.sampling=poisson",), r"found 'poisson' with privacy\.mode = 'none'"),
        ((*CENTRAL, "federation.min_replies=2"), r"federation\.min_replies: found 2.*allowed is 1"),
        ((*CENTRAL, "federation.evaluate_clients=true"), r"evaluate_clients: found true.*labels"),
        ((*CENTRAL, "data.transforms.normalize=dataset"), r"normalize: found 'dataset'"),
        ((*CENTRAL, "federation.mode=buffered"), r"federation\.mode: found 'buffered'"),
        ((*CENTRAL, "stability.dropout=0.1"), r"stability: found with.*schedule"),
        ((*CENTRAL, "privacy.clip_norm=inf"), r"privacy\.clip_norm: found inf.*finite"),
        ((*CENTRAL, "privacy.delta=0.2"), r"privacy\.delta: found 0\.2 with 8 clients"),
        ((*CENTRAL, "privacy.noise_multiplier=0.0", "privacy.epsilon=1"), r"epsilon is\s+infinite"),
    ],
)  # fmt: skip
def test_unsound_settings_are_refused_with_the_reason(sets, words):
    with pytest.raises(PrivacyError, match=words):
        read(*sets)


def test_batchnorm_is_refused():
    model = ("model.name=preset:tiny-shufflenet", "model.num_labels=10", "tuning.method=full")
    with pytest.raises(PrivacyError, match=r"BatchNorm.*layer normalisation"):
        make_plan(read(*CENTRAL, *model))
    make_plan(read(*TINY, *model))


def test_a_target_is_met_and_written_down():
    target = resolve(read(*TINY, "privacy.mode=central", "privacy.epsilon=4.0")).experiment
    assert 3.98 < epsilon_after(target, 3) <= 4.0
    assert resolve(target).experiment == target


def test_the_record_of_a_secret_cohort_tells_nothing_of_it(secret):
    summary, path = secret
    folder = RunFolder(path)
    records = lines_of(folder.rounds)
    for record in records:
        assert (record["cohort"], record["failures"]) == (4.0, {})
        assert record["noise_deviation"] == 0.5
        assert set(record["metrics"]) == {"loss", "accuracy"}
        assert record["bytes_up"] == records[0]["bytes_up"]
    assert (
        summary["bytes_up"] + summary["bytes_down"]
        == make_plan(read(*SECRET)).figures["total_bytes"]
    )
    assert records[-1]["epsilon"] == summary["epsilon"] < summary["epsilon_rdp"]
    first, *true = lines_of(folder.diagnostics)
    assert "not private" in first["note"] and len(true) == 3
    assert stat.S_IMODE(folder.diagnostics.stat().st_mode) == 0o600
    assert all(isinstance(line["cohort"], list) for line in true)
    assert len({frozenset(line["cohort"]) for line in true}) > 1  # drawn; alike 1 time in 65,536
    assert not folder.partition.exists()


def test_the_root_is_in_the_checkpoint_only(secret):
    _, folder = secret
    (*_, newest) = checkpoints(folder / "checkpoints")
    assert stat.S_IMODE(newest.stat().st_mode) == 0o600
    root = bytes(read_checkpoint(newest).state.root.tolist())
    for file in folder.iterdir():
        if file.is_file():
            assert root not in file.read_bytes() and root.hex().encode() not in file.read_bytes()
    assert root in newest.read_bytes()


@pytest.mark.parametrize(
    "more",
    [
        pytest.param((), id="one", marks=pytest.mark.slow),
        pytest.param(("engine.workers=2",), id="two"),
    ],
)
def test_resumed_equals_uninterrupted_and_workers_change_nothing(tmp_path, more, seeded, secret):
    sets = (*SECRET, SEEDED)

    class Stop(Exception):
        pass

    def stop(done):
        raise Stop

    with pytest.raises(Stop):
        run(read(*sets, *more), tmp_path / "b", on_round=stop)
    resumed = run(read(*sets, *more), tmp_path / "b", resume=True)
    for key in ("delta_digest", "epsilon", "bytes_up", "accuracy"):
        assert resumed[key] == seeded[key]
    assert len(lines_of(tmp_path / "b" / "diagnostics.jsonl")) == 4
    assert secret[0]["delta_digest"] != seeded["delta_digest"]


def test_the_budget_stops_the_run_and_survives_a_resume(tmp_path):
    free = resolve(read(*CENTRAL)).experiment
    budget = (epsilon_after(free, 1) + epsilon_after(free, 3)) / 2
    summary = run(read(*CENTRAL, f"privacy.epsilon={budget}"), tmp_path / "r")
    assert summary["stopped"] == "privacy budget"
    assert 1 <= summary["rounds"] < 3 and summary["epsilon"] <= budget
    again = run(read(*CENTRAL, f"privacy.epsilon={budget}"), tmp_path / "r", resume=True)
    assert again == summary
    assert (
        make_plan(read(*CENTRAL, f"privacy.epsilon={budget}")).figures["epsilon"]
        == (summary["epsilon"])
    )


def test_reproducible_noise_says_so_everywhere(tmp_path):
    summary = run(read(*CENTRAL, SEEDED), tmp_path / "r")
    records = lines_of(tmp_path / "r" / "rounds.jsonl")
    plan = make_plan(read(*CENTRAL, SEEDED)).figures["privacy"]
    said = [summary["privacy"]["note"], plan["note"], *(r["privacy"] for r in records)]
    assert set(said) == {SIMULATION}


def test_local_noise_is_kept_by_the_clients(tmp_path):
    sets = (*TINY, "privacy.mode=local", "privacy.noise_multiplier=2.0")
    summary = run(read(*sets), tmp_path / "r")
    (*_, newest) = checkpoints(tmp_path / "r" / "checkpoints")
    found = read_checkpoint(newest)
    assert not found.state.root.numel()
    roots = [t for name, t in found.memories.items() if name.endswith("root")]
    assert roots and all(root.shape == (32,) for root in roots)
    assert len({bytes(root.tolist()) for root in roots}) == len(roots)
    assert torch.isfinite(torch.tensor(summary["epsilon"]))
    assert epsilon_after(resolve(read(*sets)).experiment, 1) > epsilon_after(
        resolve(read(*CENTRAL)).experiment, 1
    )


def test_example_level_is_accounted_by_epochs_and_sends_nothing_else(tmp_path):
    sets = (*TINY, "privacy.mode=example", "privacy.noise_multiplier=2.0", SEEDED)
    summary = run(read(*sets), tmp_path / "r")
    records = lines_of(tmp_path / "r" / "rounds.jsonl")
    assert not any("train_loss" in record["metrics"] for record in records)
    assert records[0]["noise_deviation"] == 2.0 / 64
    assert summary["epsilon"] == records[-1]["epsilon"] > records[0]["epsilon"] > 0
    more = resolve(read(*sets, "client.epochs=4")).experiment
    assert epsilon_after(more, 1) > 1.8 * epsilon_after(resolve(read(*sets)).experiment, 1)
    two = run(read(*sets, "engine.workers=2"), tmp_path / "two")
    assert two["delta_digest"] == summary["delta_digest"]


@pytest.mark.parametrize(("variant", "deviation"), [("author", 3.378), ("corrected", 1.511 / 64)])
def test_the_papers_mode_says_that_it_guarantees_nothing(variant, deviation):
    sets = (*TINY, "privacy.mode=paper", f"privacy.variant={variant}")
    figures = make_plan(read(*sets)).figures
    assert figures["epsilon"] is None
    assert "guarantees nothing" in figures["privacy"]["note"]
    assert figures["privacy"]["noise_deviation"] == pytest.approx(deviation, rel=1e-3)
    with pytest.raises(PrivacyError, match=r"noise_multiplier: found one with .*'paper'"):
        read(*sets, "privacy.noise_multiplier=1.0")


@pytest.mark.parametrize("mode", ["local", "example"])
def test_each_client_spends_by_the_rounds_in_which_it_was_asked(tmp_path, mode):
    sets = (*TINY, f"privacy.mode={mode}", "privacy.noise_multiplier=2.0")
    summary = run(read(*sets), tmp_path / "r")
    asked = [
        client for line in lines_of(tmp_path / "r" / "rounds.jsonl") for client in line["cohort"]
    ]
    spent = summary["epsilon_clients"]
    assert set(spent) == set(asked) and max(spent.values()) == summary["epsilon"]
    busiest, idlest = (choose(spent, key=asked.count) for choose in (max, min))
    assert asked.count(busiest) > asked.count(idlest)
    assert spent[busiest] > spent[idlest] > 0


def test_where_the_server_adds_the_noise_no_client_has_figures_of_its_own(secret):
    assert "epsilon_clients" not in secret[0]


EXAMPLE = (*TINY, "privacy.mode=example", "privacy.noise_multiplier=2.0")


def test_a_partition_that_gives_an_example_twice_is_refused():
    with pytest.raises(PrivacyError, match=r"scheme: found 'drawn' with .*'example'; it gives"):
        read(*EXAMPLE, "data.partition.scheme=drawn")
    read(*CENTRAL, "data.partition.scheme=drawn")  # the control: there the unit is a client


@pytest.mark.parametrize("rows", [{"a": [0, 1, 1], "b": [2]}, {"a": [0, 1], "b": [1, 2]}])
def test_any_data_that_gives_an_example_twice_is_refused(rows):
    clients = {name: np.array(each) for name, each in rows.items()}
    with pytest.raises(PrivacyError, match="has an example twice, or one that another client"):
        PrivacyOfRun(read(*EXAMPLE)).refuse_shared(clients)
    PrivacyOfRun(read(*EXAMPLE)).refuse_shared({"a": np.array([0, 1]), "b": np.array([2])})
    PrivacyOfRun(read(*CENTRAL)).refuse_shared(clients)


def test_example_batches_are_drawn_with_a_public_rate_and_written_down(tmp_path):
    summary = run(read(*EXAMPLE), tmp_path / "r")
    stored = (tmp_path / "r" / "experiment.toml").read_text()
    assert 'example_sampling = "poisson"' in stored and "examples_per_client = 157" in stored
    spent = epsilon_of(Mechanism(2.0, 64 / 157), 3 * summary_turns(tmp_path), 1e-3)
    assert summary["epsilon"] == pytest.approx(spent)
    assert summary["privacy"]["example_steps"] == 3
    shuffled = make_plan(read(*EXAMPLE, "privacy.example_sampling=shuffle")).figures["epsilon"]
    assert make_plan(read(*EXAMPLE)).figures["epsilon"] != shuffled


def summary_turns(path):
    cohorts = [line["cohort"] for line in lines_of(path / "r" / "rounds.jsonl")]
    everyone = [client for cohort in cohorts for client in cohort]
    return max(everyone.count(client) for client in everyone)


def test_a_run_that_shuffled_goes_on_shuffling_or_is_refused(tmp_path):
    """A folder of the version that knew no other way has no key for it."""
    begun = read(*EXAMPLE, SEEDED, "privacy.example_sampling=shuffle", "federation.rounds=1")
    run(begun, tmp_path / "r")
    file = tmp_path / "r" / "experiment.toml"
    file.write_text(file.read_text().replace('example_sampling = "shuffle"\n', ""))
    more = (*EXAMPLE, SEEDED, "federation.rounds=2")
    with pytest.raises(RunFolderError, match=r"privacy\.example_sampling is \"poisson\" here"):
        run(read(*more), tmp_path / "r", resume=True)
    resumed = run(read(*more, "privacy.example_sampling=shuffle"), tmp_path / "r", resume=True)
    straight = run(read(*more, "privacy.example_sampling=shuffle"), tmp_path / "s")
    assert resumed["delta_digest"] == straight["delta_digest"]


def test_a_poisson_run_resumes_and_workers_change_nothing(tmp_path):
    sets = (*EXAMPLE, SEEDED, "privacy.noise_multiplier=2.0")
    straight = run(read(*sets), tmp_path / "s")
    run(read(*sets, "federation.rounds=2"), tmp_path / "r")
    resumed = run(read(*sets, "engine.workers=2"), tmp_path / "r", resume=True)
    assert resumed["delta_digest"] == straight["delta_digest"]


@pytest.mark.parametrize("mode", ["central", "local", "example"])
def test_a_large_delta_is_refused_in_every_mode(mode):
    with pytest.raises(PrivacyError, match=r"privacy\.delta: found 0\.5; allowed is at most 0\.01"):
        read(*TINY, f"privacy.mode={mode}", "privacy.noise_multiplier=1.0", "privacy.delta=0.5")


EXTREME = [
    ("privacy.epsilon=1e300",), ("privacy.epsilon=1e-300",), ("privacy.epsilon=1e4",),
    ("privacy.epsilon=1e-6", "privacy.delta=1e-300"), ("privacy.noise_multiplier=1e-300",),
    ("privacy.noise_multiplier=1e300",), ("privacy.noise_multiplier=1e-3",),
    ("privacy.epsilon=1.0", "federation.rounds=1000000000"),
    ("privacy.epsilon=1.0", "privacy.clip_norm=1e-300"),
    ("privacy.epsilon=3.0", "client.epochs=100000"),
]  # fmt: skip


@pytest.mark.parametrize("sets", EXTREME, ids=" ".join)
@pytest.mark.parametrize(
    "mode", [("central",), ("central", "federation.sampling=poisson"), ("example",)], ids=" ".join
)
def test_no_number_makes_a_check_hang(mode, sets):
    began = time.process_time()
    with contextlib.suppress(FedpeftError):
        resolve(read(*TINY, f"privacy.mode={mode[0]}", *mode[1:], *sets))
    assert time.process_time() - began < 5
