"""How many clients share a pass: the table, a measurement, and what a resumed run goes on with."""

from __future__ import annotations

import pytest
import torch

from fedpeft.build import passes
from fedpeft.build.model import local_settings
from fedpeft.build.passes import default_passes, measure_passes
from fedpeft.build.run import build_run
from fedpeft.core.errors import ConfigError, RunFolderError
from fedpeft.experiment.read import DIGITS, read_experiment
from fedpeft.experiment.resolve import Resolved, resolve
from fedpeft.launch import start
from fedpeft.runs.folder import RunFolder, experiment_digest, stored_experiment
from fedpeft.tuning.tuned import read_delta

QUICK = [
    "model.name=preset:tiny-vit", "tuning.method=adapter", "client.epochs=1", "client.lr=0.05",
    "data.partition.clients=16", "data.budget=160", "data.partition.alpha=1.0", "engine.workers=1",
]  # fmt: skip


def experiment(*overrides):
    return read_experiment(DIGITS, [*QUICK, *overrides])


def chosen(*overrides):
    run = build_run(resolve(experiment(*overrides)))
    run.engine.close()
    return run.experiment.engine.clients_per_pass


def test_the_quickstart_trains_one_by_one():
    assert chosen() == 1


def test_small_batches_share_a_pass_and_leave_work_for_four_cores():
    assert chosen("client.batch_size=1", "federation.clients_per_round=12") == 3
    assert chosen("client.batch_size=1", "federation.clients_per_round=3") == 1
    assert chosen("client.batch_size=1", "tuning.method=full") == 1  # large deltas
    assert chosen("client.batch_size=1", "tuning.method=loha") == 1
    run = build_run(resolve(experiment("client.batch_size=4")))
    run.engine.close()
    assert default_passes(run.tuned, run.settings, 1000) == 16
    assert chosen("client.batch_size=1", "engine.clients_per_pass=5") == 5


def test_the_number_of_workers_does_not_decide():
    some = ["client.batch_size=1", "federation.clients_per_round=12"]
    assert chosen(*some, "engine.workers=1") == chosen(*some, "engine.workers=4") == 3


def test_one_client_a_pass_leaves_the_digest_of_an_experiment_as_it_was():
    plain, one, two = (
        experiment_digest(resolve(experiment(*o)).experiment)
        for o in ([], ["engine.clients_per_pass=1"], ["engine.clients_per_pass=2"])
    )
    assert plain == one != two


def test_a_measurement_chooses_and_leaves_the_delta_alone():
    some = ["client.batch_size=1", "federation.clients_per_round=8"]
    run = build_run(resolve(experiment(*some)))
    run.engine.close()
    before = read_delta(run.tuned)
    found = measure_passes(run.tuned, run.data, run.settings, cohort=8, workers=1)
    assert found in (1, 2, 4, 8) and torch.equal(read_delta(run.tuned), before)
    assert local_settings(Resolved(run.experiment)) == run.settings


def test_what_was_measured_is_recorded_and_resumed(tmp_path, monkeypatch):
    asked = ["engine.clients_per_pass=measure", "client.batch_size=4"]
    monkeypatch.setattr(passes, "measure_passes", lambda *args, **options: 3)
    straight = start.run(experiment(*asked, "federation.rounds=3"), tmp_path / "straight")
    start.run(experiment(*asked, "federation.rounds=2"), tmp_path / "cut")
    assert stored_experiment(RunFolder(tmp_path / "cut")).engine.clients_per_pass == 3
    monkeypatch.setattr(passes, "measure_passes", lambda *args, **options: 2)
    resumed = start.run(experiment(*asked, "federation.rounds=3"), tmp_path / "cut", resume=True)
    assert resumed["delta_digest"] == straight["delta_digest"]
    again = start.run(experiment(*asked, "federation.rounds=3"), tmp_path / "other")
    assert again["delta_digest"] != straight["delta_digest"]


def test_another_number_is_another_experiment(tmp_path):
    some = ["client.batch_size=4", "federation.rounds=1"]
    start.run(experiment(*some, "engine.clients_per_pass=3"), tmp_path / "run")
    with pytest.raises(RunFolderError, match="clients_per_pass is 2 here and 3 in the folder"):
        start.run(experiment(*some, "engine.clients_per_pass=2"), tmp_path / "run", resume=True)
    left_open = start.run(experiment(*some), tmp_path / "run", resume=True)
    assert left_open["rounds"] == 1


def test_a_folder_from_before_the_key_goes_on_one_by_one(tmp_path):
    some = ["client.batch_size=1", "federation.clients_per_round=8"]
    one = [*some, "engine.clients_per_pass=1"]
    straight = start.run(experiment(*one, "federation.rounds=2"), tmp_path / "straight")
    start.run(experiment(*one, "federation.rounds=1"), tmp_path / "old")
    file = RunFolder(tmp_path / "old").experiment
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if "clients_per_pass" not in line))
    resumed = start.run(experiment(*some, "federation.rounds=2"), tmp_path / "old", resume=True)
    assert resumed["delta_digest"] == straight["delta_digest"]


def test_other_engines_and_words_are_refused():
    with pytest.raises(ConfigError, match=r"clients_per_pass: found 4 with engine.name = 'flower'"):
        experiment("engine.name=flower", "engine.clients_per_pass=4")
    with pytest.raises(ConfigError, match=r"1 problem\n.*per_pass: found 'many'; .* 'measure'"):
        experiment("engine.clients_per_pass=many")
    with pytest.raises(ConfigError, match=r"1 problem\n.*per_pass: found 0; .* equal to 1"):
        experiment("engine.clients_per_pass=0")
