"""The tables of engines: one row, one builder, each by the same name."""

from __future__ import annotations

import pytest

from fedpeft.build.engine import BUILDERS, engine_builder
from fedpeft.core.errors import ConfigError
from fedpeft.experiment.engines import ENGINES, PLACE, EngineConfig
from fedpeft.experiment.experiment import Experiment
from fedpeft.launch.start import DEPLOYMENTS


def test_each_engine_is_built_here_or_runs_elsewhere():
    deployed = {name for name, kind in ENGINES.items() if kind.deployed}
    assert set(DEPLOYMENTS) == deployed
    assert set(BUILDERS) == set(ENGINES) - deployed


@pytest.mark.parametrize("name", sorted(DEPLOYMENTS))
def test_what_runs_elsewhere_is_not_built_here(name):
    experiment = Experiment(engine=EngineConfig(name=name))
    with pytest.raises(ConfigError, match=r"Use 'local' or 'flower-simulation' here"):
        engine_builder(experiment)


def test_keys_of_a_place_are_keys_of_the_file():
    assert set(PLACE) < set(EngineConfig.model_fields)


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_workers_that_were_asked_for_are_what_a_cpu_gets(name):
    kind = ENGINES[name]
    assert kind.workers(EngineConfig(name=name, workers=3), 8) == 3
    assert kind.workers(EngineConfig(name=name), 8) == 8


def test_one_worker_computes_on_a_gpu_of_this_machine():
    gpu = EngineConfig(device="cuda", workers=2)
    assert ENGINES["local"].workers(gpu, 8) == 1
    assert list(ENGINES["local"].problems(gpu)) == [
        "engine.workers: found 2 with a GPU; allowed is 1"
    ]
