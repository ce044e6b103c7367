"""The life of a simulation, without Ray: it starts late, says why it ended, and ends when told."""

from __future__ import annotations

import os

import flwr.simulation
import pytest

from fedpeft.core.errors import EngineError
from fedpeft.engines.flower import simulation as flower_simulation
from fedpeft.engines.flower.simulation import Resources, Simulation, VirtualNodes, quiet_environment


class FakeGrid:
    def get_node_ids(self):
        return [5, 3]


@pytest.fixture
def flower(monkeypatch):
    """Replace Flower's simulation; returns what it was called with."""
    seen = {}

    def run(*, server_app, client_app, num_supernodes, backend_config):
        seen.update(nodes=num_supernodes, backend=backend_config)
        server_app._main(FakeGrid(), None)
        seen["ended"] = True

    monkeypatch.setattr(flwr.simulation, "run_simulation", run)
    return seen


def test_it_starts_with_the_first_grid_and_ends_when_told(flower):
    simulation = Simulation(print, Resources(actors=3, cpus=2.0, gpus=0.25), 7)
    assert not flower
    assert simulation.nodes() == [3, 5]
    simulation.alive()
    simulation.close()
    assert flower["ended"] and flower["nodes"] == 7
    each = flower["backend"]["client_resources"]
    assert each == {"num_cpus": 2.0, "num_gpus": 0.25, "max_restarts": -1}
    assert flower["backend"]["init_args"]["num_cpus"] == 6


def test_a_cluster_decides_how_many_actors_there_are(flower):
    simulation = Simulation(print, Resources(address="auto"), 1)
    simulation.open()
    simulation.close()
    arguments = flower["backend"]["init_args"]
    assert arguments["address"] == "auto" and "num_cpus" not in arguments


@pytest.mark.parametrize("error", [RuntimeError("ActorPool is empty"), SystemExit(700)])
def test_a_simulation_that_cannot_start_says_why(error, monkeypatch):
    def run(**_):
        raise error

    monkeypatch.setattr(flwr.simulation, "run_simulation", run)
    simulation = Simulation(print, Resources(), 1)
    with pytest.raises(EngineError, match=f"has ended: {error}.*engine.client_gpus"):
        simulation.open()
    simulation.close()


def test_what_is_said_is_the_first_cause(monkeypatch):
    def run(**_):
        raise RuntimeError("An error was encountered.") from ValueError("ActorPool is empty.")

    monkeypatch.setattr(flwr.simulation, "run_simulation", run)
    with pytest.raises(EngineError, match=r"has ended: ActorPool is empty\. Look at"):
        Simulation(print, Resources(), 1).open()


def test_a_cluster_that_does_not_answer_is_not_waited_for(flower):
    with pytest.raises(EngineError, match=r"engine\.ray: no cluster answers at 127\.0\.0\.1:1"):
        Simulation(print, Resources(address="127.0.0.1:1"), 1).open()
    assert not flower


def test_one_that_does_not_start_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(flower_simulation, "_START_SECONDS", 0.05)
    monkeypatch.setattr(flwr.simulation, "run_simulation", lambda **_: time_passes())
    with pytest.raises(EngineError, match=r"did not start in 0\.05 s"):
        Simulation(print, Resources(), 1).open()


def time_passes():
    import time

    time.sleep(0.5)


def test_doors_are_taken_in_turn():
    doors = VirtualNodes(["a", "b", "c"], lambda: [7, 8])
    assert doors.clients() == ("a", "b", "c")
    assert doors.gather(["c", "a", "b"]) == {"c": 7, "a": 8, "b": 7}


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    quiet_environment()
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "1"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
