"""A user's own objects in a run: algorithm, stages, sampler, callbacks; what is recorded."""

from __future__ import annotations

import dataclasses
import json
import tomllib

import pytest
import torch

import fedpeft
from fedpeft.core.errors import ConfigError, RunFolderError
from fedpeft.experiment.read import DIGITS
from fedpeft.experiment.resolve import Given, resolve
from fedpeft.launch.simulate import simulate
from fedpeft.server.algorithms import fedavg, weighted_mean
from fedpeft.server.sampling import Sampler
from fedpeft.wire.stages import float16

SETTINGS = {"federation.rounds": 3, "federation.clients_per_round": 2, "client.epochs": 1}


def tuned():
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    for i, parameter in enumerate(net.parameters()):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(i))
    task = fedpeft.classification_task(lambda model, batch: model(batch["inputs"]))
    loaded = fedpeft.wrap_module(net, task=task, head=["2"])
    return fedpeft.tune(loaded, fedpeft.TuningRequest("full"))


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator)
    rows = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    return fedpeft.from_torch(
        rows, rows, clients=fedpeft.PartitionRequest("iid", clients=4, min_examples=1)
    )


def halved(updates, context):
    mean = weighted_mean(updates, context)
    return dataclasses.replace(mean, delta=mean.delta / 2)


HALVED = dataclasses.replace(fedavg(), combine=halved)


def delta(result):
    return torch.cat([p.detach().reshape(-1) for p in result.tuned.parameters.values()])


def test_an_algorithm_of_ones_own_is_what_runs():
    mine = simulate(tuned(), data(), SETTINGS, algorithm=HALVED)
    same = simulate(tuned(), data(), {**SETTINGS, "federation.options": {"lr": 0.5}})
    torch.testing.assert_close(delta(mine), delta(same))
    other = simulate(tuned(), data(), SETTINGS)  # the negative control
    assert not torch.allclose(delta(mine), delta(other))


def test_stages_of_ones_own_are_those_of_the_file():
    mine = simulate(tuned(), data(), SETTINGS, up=[float16()])
    named = simulate(tuned(), data(), {**SETTINGS, "wire.up": [{"name": "float16"}]})
    assert torch.equal(delta(mine), delta(named))
    assert mine.totals.bytes_up == named.totals.bytes_up


def test_a_plain_function_chooses_the_clients():
    result = simulate(tuned(), data(), SETTINGS, sampler=lambda clients, number: clients[:number])
    assert [len(record["cohort"]) for record in result.records] == [1, 2, 3]


def test_a_sampler_sees_what_clients_say_and_remembers():
    def draw(clients, memory, draw):
        return [client for client in clients if client not in memory][: draw.size] or clients[:2]

    def observe(memory, draw, metrics):
        return {**memory, **{client: torch.tensor(m["loss"]) for client, m in metrics.items()}}

    result = simulate(tuned(), data(), SETTINGS, sampler=Sampler(draw, observe))
    first, second, third = (record["cohort"] for record in result.records)
    assert not set(first) & set(second) and set(first) | set(second) == set(data().clients)
    assert third == first


class Watching:
    """Callbacks that write down what they are told."""

    def __init__(self, last=99):
        self.said = []
        self.callback = fedpeft.Callback(
            lambda facts: self.said.append(("start", facts["round"])),
            lambda record: self.said.append(record["round"]) or record["round"] == last,
            lambda summary: self.said.append(("end", summary["stopped"])),
        )


def test_callbacks_are_told_and_may_end_a_run():
    watching = Watching()
    simulate(tuned(), data(), SETTINGS, callbacks=[watching.callback])
    assert watching.said == [("start", 0), 1, 2, 3, ("end", "rounds")]
    short = Watching(last=2)
    result = simulate(tuned(), data(), SETTINGS, callbacks=[short.callback])
    assert short.said == [("start", 0), 1, 2, ("end", "callback")] and len(result.records) == 2


def test_a_run_that_a_callback_ended_goes_on_to_the_same_end(tmp_path):
    keys = {"model.name": "preset:tiny-vit", "client.lr": 0.05, "engine.workers": 1, **SETTINGS}
    straight = fedpeft.run(DIGITS, keys, out=tmp_path / "straight")
    cut = fedpeft.run(DIGITS, keys, out=tmp_path / "cut", callbacks=[Watching(last=1).callback])
    assert (cut["stopped"], cut["rounds"]) == ("callback", 1)
    watching = Watching()
    rest = fedpeft.run(
        DIGITS, keys, out=tmp_path / "cut", resume=True, callbacks=[watching.callback]
    )
    assert watching.said[0] == ("start", 1)
    assert rest["delta_digest"] == straight["delta_digest"]


def stored(folder):
    return tomllib.loads((folder / "experiment.toml").read_text())


def test_an_object_is_recorded_by_its_name_and_source(tmp_path):
    simulate(tuned(), data(), SETTINGS, algorithm=HALVED, out=tmp_path)
    table = stored(tmp_path)
    found = table["objects"]["federation.algorithm"]
    assert table["federation"]["algorithm"] == found["name"]
    assert found["name"].endswith("test_doors:halved") and len(found["sha256"]) == 64
    assert "passed again" in found["resumes"]


def test_only_what_is_given_again_goes_on(tmp_path):
    ended = Watching(last=1).callback
    simulate(tuned(), data(), SETTINGS, algorithm=HALVED, out=tmp_path, callbacks=[ended])
    with pytest.raises(RunFolderError, match="another experiment"):
        simulate(tuned(), data(), SETTINGS, out=tmp_path)
    rest = simulate(tuned(), data(), SETTINGS, algorithm=HALVED, out=tmp_path)
    straight = simulate(tuned(), data(), SETTINGS, algorithm=HALVED)
    assert torch.equal(delta(rest), delta(straight))


def test_an_object_without_a_name_runs_and_the_folder_says_so(tmp_path):
    def mine(updates, context):
        return weighted_mean(updates, context)

    mine.__module__ = "__main__"  # as in a notebook
    algorithm = dataclasses.replace(fedavg(), combine=mine)
    simulate(tuned(), data(), SETTINGS, algorithm=algorithm, out=tmp_path)
    assert stored(tmp_path)["objects"]["federation.algorithm"]["name"] == "object:without a name"
    assert json.loads((tmp_path / "summary.json").read_text())["rounds"] == 3


def test_an_experiment_with_an_object_is_not_run_by_name(tmp_path):
    simulate(tuned(), data(), SETTINGS, algorithm=HALVED, out=tmp_path)
    with pytest.raises(ConfigError, match=r"was passed as an object from Python; pass it again"):
        fedpeft.run(tmp_path / "experiment.toml", out=tmp_path / "again")


def test_callbacks_as_objects_do_not_reach_a_deployment(tmp_path):
    keys = {
        "engine.name": "flower",
        "engine.superlink": "127.0.0.1:1",
        "engine.insecure": True,
        "data.partition.clients": 2,
        "federation.clients_per_round": 2,
    }
    with pytest.raises(ConfigError, match="callbacks: found objects with"):
        fedpeft.run(DIGITS, keys, out=tmp_path / "run", callbacks=[fedpeft.Callback()])


def test_given_objects_take_the_place_of_names():
    experiment = fedpeft.experiment.read.validate({}, "test")
    resolved = resolve(experiment, given=Given(algorithm=HALVED))
    assert resolved.algorithm is HALVED and resolved.up == ()
    assert resolve(experiment).algorithm.combine is weighted_mean
