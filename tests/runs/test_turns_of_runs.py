"""Steps, schedules, added-up batches and clips in whole runs: resumed, on workers, in passes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fedpeft.build.client_side import client_side, take
from fedpeft.build.model import build_tuned, load_run_data
from fedpeft.client.turns import ClientTurn
from fedpeft.core.errors import ConfigError, PrivacyError, RunFolderError
from fedpeft.data.examples import ClientData
from fedpeft.engines.flower.requests import Request
from fedpeft.engines.workers import one_thread
from fedpeft.experiment.callbacks import Callback
from fedpeft.experiment.epsilon import uses_a_turn
from fedpeft.experiment.read import DIGITS, dump_experiment, read_experiment, validate
from fedpeft.experiment.resolve import Given, resolve
from fedpeft.launch.start import run
from fedpeft.rounds.client_half import run_turn
from fedpeft.tuning.tuned import read_delta
from fedpeft.wire import messages

TINY = (
    "model.name=preset:tiny-vit", "data.partition.clients=8", "federation.rounds=3",
    "federation.clients_per_round=4", "engine.workers=1", "engine.clients_per_pass=1",
    "federation.eval_every=3",
)  # fmt: skip
TURN = (
    "client.epochs=9", "client.max_steps=5", "client.batch_size=16", "client.accumulation=2",
    "client.gradient_clip=0.5", "client.optimizer=adafactor", "client.lr=0.01",
    "client.schedule=linear", "client.warmup=2", "client.round_schedule=cosine",
    "client.round_final=0.2", "tuning.method=adapter",
)  # fmt: skip


def read(*sets):
    return read_experiment(DIGITS, (*TINY, *TURN, *sets))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("turns") / "r"
    return run(read(), folder), folder


def delta(folder: Path) -> torch.Tensor:
    stored = safetensors.torch.load_file(folder / "delta.safetensors")
    return torch.cat([stored[name].flatten() for name in sorted(stored)])


def test_a_resumed_run_equals_one_in_one_go(straight, tmp_path):
    halt = Callback(on_round=lambda line: line["round"] == 1)
    stopped = run(read(), tmp_path / "r", given=Given(callbacks=(halt,)))
    resumed = run(read(), tmp_path / "r", resume=True)
    assert stopped["rounds"] == 1 and resumed["delta_digest"] == straight[0]["delta_digest"]


def test_two_workers_equal_one(straight, tmp_path):
    found = run(read("engine.workers=2"), tmp_path / "r")
    assert found["delta_digest"] == straight[0]["delta_digest"]


def test_a_pass_of_four_clients_is_as_near_as_rounding(straight, tmp_path):
    run(read("engine.clients_per_pass=4"), tmp_path / "r")
    one, many = delta(straight[1]), delta(tmp_path / "r")
    assert (one - many).norm() < 1e-4 * one.norm()


@pytest.mark.parametrize("change", [
    "client.max_steps=4", "client.accumulation=1", "client.gradient_clip=0.4",
    "client.schedule=cosine", "client.warmup=1", "client.round_schedule=linear",
    "client.round_final=0.3", "client.round_warmup=2",
])  # fmt: skip
def test_every_key_matters(straight, tmp_path, change):
    """The negative control of the laws above."""
    assert run(read(change), tmp_path / "r")["delta_digest"] != straight[0]["delta_digest"]


def test_a_turn_on_flower_equals_one_of_the_local_engine():
    resolved = resolve(read("model.num_labels=10"))
    tuned, data = build_tuned(resolved, 10), load_run_data(resolved)
    blob = messages.encode({"delta": read_delta(tuned)})
    half = client_side(resolved, tuned, data).half()
    client, text = list(data.clients)[3], dump_experiment(resolved.experiment)
    one = ClientTurn(2, client, ClientData(data.train, data.clients[client]), {}, 7, 1)
    with one_thread():
        expected, _ = run_turn(half, blob, one)
    for version in (1, 2):
        request = Request("train", "run", client, 2, 0, 7, version, text, blob)
        answer, _ = take(request, b"")
        assert answer.refused == "" and (answer.blob == expected) == (version == 1)


def test_more_rounds_would_change_a_schedule_over_the_rounds(straight):
    with pytest.raises(RunFolderError, match=r"rounds is 4 here and 3 .* client\.round_sch"):
        run(read("federation.rounds=4"), straight[1], resume=True)


def test_a_resolved_experiment_says_how_a_turn_ends():
    plain = read_experiment(DIGITS, TINY).client
    assert (plain.epochs, plain.max_steps) == (5, None)  # those of the file
    own = validate({"client": {"max_steps": 7}}, "x")
    once = resolve(own).experiment
    assert (once.client.epochs, once.client.max_steps) == (None, 7)
    assert resolve(validate(tomllib.loads(dump_experiment(once)), "x")).experiment == once


@pytest.mark.parametrize(("change", "words"), [
    ("client.max_steps=0", "client.max_steps: found 0; allowed is greater than or equal to 1"),
    ("client.schedule=step", "client.schedule: found 'step'"),
    ("client.warmup=2.5", "client.warmup: found 2.5; allowed is a share below 1 or a whole number"),
    ("client.round_warmup=9", r"round_warmup: found 9; allowed is at most 3 \(federation.rounds\)"),
    ("client.round_final=0", "client.round_final: found 0; allowed is greater than 0"),
    ("client.gradient_clip=0", "client.gradient_clip: found 0; allowed is greater than 0"),
    ("client.optimizer=adam", "client.optimizer: found 'adam'; allowed is"),
])  # fmt: skip
def test_what_cannot_be_is_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        read(change)


EXAMPLE = ("privacy.mode=example", "privacy.noise_multiplier=1.0")
PAPER = ("privacy.mode=paper", "privacy.epsilon=5")


@pytest.mark.parametrize("mode", [EXAMPLE, PAPER], ids=["example", "paper"])
@pytest.mark.parametrize(("change", "words"), [
    ("client.gradient_clip=1.0", "gradient_clip: found 1.0 .* that mode clips gradients itself"),
    ("client.accumulation=2", "accumulation: found 2 .* raise batch_size"),
    ("client.by_length=true", "by_length: found True .* drawn by secret coins"),
])  # fmt: skip
def test_what_noised_gradients_do_not_allow_is_refused(mode, change, words):
    with pytest.raises((ConfigError, PrivacyError), match=words):
        read_experiment(DIGITS, (*TINY, *mode, change))
    assert read_experiment(DIGITS, (*TINY, *mode, "client.max_steps=3", "client.schedule=linear"))


@pytest.mark.parametrize(("sets", "uses"), [
    (("client.epochs=3", "privacy.example_sampling=shuffle"), 3),
    (("client.epochs=3", "client.max_steps=2", "privacy.example_sampling=shuffle"), 2),
    (("client.epochs=3",), 3 * 4),
    (("client.epochs=3", "client.max_steps=5"), 5),
    (("client.epochs=3", "client.max_steps=99"), 12),
])  # fmt: skip
def test_epsilon_counts_the_steps_that_are_taken(sets, uses):
    chosen = (*EXAMPLE, "client.batch_size=8", "privacy.examples_per_client=30")
    assert uses_a_turn(resolve(read_experiment(DIGITS, (*TINY, *chosen, *sets))).experiment) == uses
