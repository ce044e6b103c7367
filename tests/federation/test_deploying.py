"""Submitting a run, following its true status, submitting it again; and what `check` refuses."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import pytest

from fedpeft.cli.running import _summary_lines
from fedpeft.core.errors import ConfigError, EngineError, NotFiniteError, RoundError, RunFolderError
from fedpeft.experiment.read import DIGITS, read_experiment
from fedpeft.experiment.resolve import resolve
from fedpeft.federation import deploying
from fedpeft.federation.control import RunState, Unreachable
from fedpeft.runs.folder import RunFolder
from fedpeft.runs.ledger import Ledger, read_ledger
from fedpeft.runs.status import read_status

SETS = [
    "engine.name=flower",
    "engine.superlink=127.0.0.1:8000",
    "data.partition.clients=2",
    "federation.clients_per_round=2",
    "federation.rounds=2",
]
LINE = {"round": 1, "metrics": {"loss": 1.0}, "bytes_up": 3, "bytes_down": 4, "seconds": 0.5}


class FakeControl:
    """A SuperLink whose runs go as told: a list of lists of states, or of errors."""

    def __init__(self, folder, runs):
        self.folder = folder
        self.runs = runs
        self.started = []
        self.stopped = []
        self.states = []

    def start(self, configuration, *signed, **options):
        self.started.append(configuration)
        self.states = iter(self.runs[len(self.started) - 1])
        return len(self.started)

    def state(self, run):
        state = next(self.states)
        if isinstance(state, BaseException):
            raise state
        if state.how == "completed":
            (self.folder.path / "summary.json").write_text('{"rounds": 2}')
        return state

    def stop(self, run):
        self.stopped.append(run)

    def close(self):
        pass


@pytest.fixture
def link(monkeypatch, tmp_path):
    """Make `Control` a fake one."""
    folder = RunFolder(tmp_path / "out")
    folder.path.mkdir()

    def make(*runs):
        control = FakeControl(folder, runs)
        monkeypatch.setattr(deploying, "Control", lambda link: control)
        monkeypatch.setattr(deploying, "_POLL", 0.001)
        return control

    return make


def deploy(link, *sets, on_round=lambda done: None):
    experiment = read_experiment(DIGITS, [*SETS, *sets])
    return deploying.deploy(experiment, link.folder, on_round, resume=False)


RUNNING = RunState("running")
DONE = RunState("finished", "completed")


def failed(details):
    return RunState("finished", "failed", details)


def test_a_run_is_followed_to_its_summary(link):
    control = link([RunState("pending"), RUNNING, DONE])
    assert deploy(control) == {"rounds": 2, "run_dir": str(control.folder.path)}
    (configuration,) = control.started
    assert configuration["out"] == str(control.folder.path) and not configuration["resume"]
    assert 'name = "flower"' in configuration["experiment"] and not control.stopped


def test_rounds_are_told_as_they_come(link):
    control, told = link([RUNNING, RUNNING, DONE]), []
    control.folder.rounds.write_text("")
    states = iter(control.runs[0])

    def state(run):
        with control.folder.rounds.open("a") as opened:
            opened.write(json.dumps(LINE | {"round": len(told) + 1}) + "\n")
        (control.folder.path / "summary.json").write_text("{}")
        return next(states)

    control.state = state
    deploy(control, on_round=lambda done: told.append(done.record["round"]))
    assert told == [1, 2, 3]


def test_a_server_that_died_is_submitted_again_with_resume(link):
    control = link([RUNNING, failed("Task failed with unknown error.")], [RUNNING, DONE])
    deploy(control)
    assert [each["resume"] for each in control.started] == [False, True]


def test_a_server_that_dies_again_and_again_is_given_up(link):
    control = link(*[[failed("No heartbeat")]] * 3)
    with pytest.raises(
        EngineError, match="failed 3 times without a new round; the last time: No heartbeat"
    ):
        deploy(control, "engine.retries=2")
    assert len(control.started) == 3


def test_a_server_that_gets_on_may_die_as_often_as_it_likes(link):
    control = link(*[[RUNNING, failed("No heartbeat")]] * 5, [DONE])
    start = control.start

    def one_more_round(configuration, *signed, **options):
        lines = "".join(
            json.dumps(LINE | {"round": n + 1}) + "\n" for n in range(len(control.started))
        )
        control.folder.rounds.write_text(lines)
        return start(configuration, *signed, **options)

    control.start = one_more_round
    deploy(control, "engine.retries=1")
    assert len(control.started) == 6


def test_files_are_named_from_the_root(link):
    sets = ['engine.root_certificates="ca.crt"', 'engine.signatures=["a.json"]']
    experiment = deploying._absolute_files(read_experiment(DIGITS, [*SETS, *sets]))
    assert experiment.engine.root_certificates.endswith("/ca.crt")
    assert experiment.engine.signatures[0].startswith("/")


def test_termination_is_taken_as_an_interruption():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        with deploying._terminated_as_interrupted():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("code", "kind"), [(2, ConfigError), (3, RoundError)], ids=["bad input", "too few replies"]
)
def test_a_verdict_of_the_server_is_final(link, code, kind):
    details = f"ServerApp failed with exception: [fedpeft exit {code}] data: no such file"
    control = link([failed(details)])
    with pytest.raises(kind, match=r"^data: no such file$"):
        deploy(control)
    assert len(control.started) == 1


def test_a_server_whose_numbers_are_not_finite_is_not_started_again(link):
    details = "ServerApp failed with exception: [fedpeft exit 4] not finite: round 2: lower lr"
    control = link([failed(details)])
    with pytest.raises(NotFiniteError, match=r"^round 2: lower lr$"):
        deploy(control)
    assert len(control.started) == 1


def test_a_run_that_somebody_stopped_says_how_to_go_on(link):
    with pytest.raises(EngineError, match="run 1 was stopped at the SuperLink"):
        deploy(link([RunState("finished", "stopped")]))


def test_a_superlink_that_comes_back_is_waited_for(link):
    control = link([Unreachable("gone"), RUNNING, failed("")], [DONE])
    assert deploy(control)["rounds"] == 2


def test_a_superlink_that_stays_away_is_an_engine_error(link):
    control = link([Unreachable("gone")] * 1000)
    with pytest.raises(EngineError, match="gone"):
        deploy(control, "engine.wait=0.02")


def test_an_interrupted_run_is_stopped(link):
    control = link([RUNNING, KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        deploy(control)
    assert control.stopped == [1]


def test_a_run_folder_elsewhere_is_said(link, tmp_path):
    control = link([DONE])
    control.state = lambda run: DONE
    control.folder.path.rmdir()
    summary = deploy(control)
    assert summary["stopped"] == "on the server"
    assert "is on the SuperLink's machine" in next(_summary_lines(summary))


def test_a_handshake_gives_the_table_of_sites(link, tmp_path):
    control = link([DONE])
    ledger = Ledger(control.folder.path)
    ledger.fix(["a"])
    experiment = read_experiment(DIGITS, SETS)
    assert deploying.greet_sites(experiment, control.folder.path)["names"] == ["a"]
    assert control.started[0]["task"] == "handshake"


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("engine.superlink=10.0.0.7:8000", "is not this machine: anyone on the network could"),
        ("engine.superlink=somewhere", "needs the SuperLink's HOST:PORT"),
        ("stability.dropout=0.1", "simulates clients that fail"),
        ("federation.evaluate_clients=true", "does not know the sites' data"),
        ("federation.mode=buffered", "a deployment is synchronous"),
        ('engine.root_certificates="ca.crt"|engine.insecure=true', "set one of the two"),
    ],
)
def test_check_refuses_what_a_deployment_cannot_do(more, problem):
    with pytest.raises(ConfigError, match=problem):
        read_experiment(DIGITS, [*SETS, *more.split("|")])


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "[::1]:1"])
def test_loopback_needs_no_certificate(address):
    read_experiment(DIGITS, [*SETS, f'engine.superlink="{address}"'])


def test_plain_text_elsewhere_is_allowed_in_plain_words():
    sets = [*SETS, "engine.superlink=10.0.0.7:8000", "engine.insecure=true"]
    assert read_experiment(DIGITS, sets).engine.insecure


def test_the_number_of_sites_must_be_said():
    with pytest.raises(ConfigError, match="needs the number of its sites"):
        read_experiment(DIGITS, SETS[:2])


def test_a_ledger_counts_and_is_read_again(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.watch("met", {"client": "a", "facts": {"examples": "7"}})
    ledger.fix(["a"])
    ledger.watch("asked", {"round": 1, "client": "a", "bytes": 10})
    ledger.watch("answered", {"round": 1, "client": "a", "bytes": 12, "seconds": 1.0})
    ledger.watch("failed", {"round": 2, "client": "a", "reason": "gone"})
    ledger.watch("refused", {"node": "5", "client": "b", "reason": "another backbone"})
    ledger.save()
    again = Ledger(tmp_path)
    assert again.run_id == ledger.run_id and again.names == ("a",)
    table = read_ledger(tmp_path)
    row = table["sites"]["a"]
    assert (row["turns"], row["failures"], row["bytes_up"], row["bytes_down"]) == (1, 1, 12, 10)
    assert row["last_failure"] == "gone" and table["refused"] == {"5": "another backbone"}
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["met", "asked", "answered", "failed", "refused"]


def test_a_secret_cohort_leaves_no_trace(tmp_path):
    """Privacy that rests on a secret cohort: nothing says who took part."""
    ledger = Ledger(tmp_path, secret=True)
    ledger.watch("met", {"client": "a", "facts": {}})
    for event in ("asked", "answered", "failed", "dropped"):
        ledger.watch(event, {"round": 1, "client": "a", "bytes": 10, "reason": "gone"})
    ledger.save()
    row = read_ledger(tmp_path)["sites"]["a"]
    assert (row["turns"], row["failures"], row["bytes_up"], row["bytes_down"]) == (0, 0, 0, 0)
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 1


def test_a_table_of_sites_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "sites.json").write_text("[]")
    with pytest.raises(RunFolderError, match=r"sites.json holds a list, expected an object"):
        read_ledger(tmp_path)
    (tmp_path / "sites.json").write_text('{"sites": {}}')
    with pytest.raises(RunFolderError, match=r"sites.json: lacks a key that names the run"):
        read_ledger(tmp_path)


def test_the_status_of_a_run_at_work(tmp_path):
    from fedpeft.experiment.read import dump_experiment
    from fedpeft.runs.lock import locked

    (tmp_path / "experiment.toml").write_text(dump_experiment(read_experiment(DIGITS, SETS)))
    (tmp_path / "rounds.jsonl").write_text(
        json.dumps(LINE | {"metrics": {"loss": 1.0, "accuracy": 0.5}, "epsilon": 2.0}) + "\n"
    )
    ledger = Ledger(tmp_path)
    ledger.watch("met", {"client": "a", "facts": {"examples": "7"}})
    ledger.fix(["a", "b"])
    with locked(tmp_path):
        found = read_status(tmp_path)
    assert (found["state"], found["round"], found["rounds"]) == ("running", 1, 2)
    assert found["metrics"]["accuracy"] == 0.5 and found["epsilon"] == 2.0
    assert [site["name"] for site in found["sites"]] == ["a", "b"]
    assert found["sites"][0]["seconds_since"] <= 5 and found["sites"][1]["last_contact"] is None
    assert read_status(tmp_path)["state"] == "stopped"


@pytest.mark.parametrize("missing", ["flwr.app", "ray"])
def test_an_engine_that_is_not_installed_says_how_to_install_it(missing, monkeypatch):
    from fedpeft.engines.flower.messages import require_flower

    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(EngineError, match=r"pip install 'fedpeft\[flower\]'"):
        require_flower(simulation=True)


def test_objects_of_your_own_stay_on_the_local_engine():
    import support

    import fedpeft

    with pytest.raises(ConfigError, match="objects of your own stay in this process"):
        fedpeft.simulate(
            support.tuned(),
            support.federated(),
            {"engine.name": "flower-simulation", "federation.clients_per_round": 2},
        )


def test_what_is_built_here_refuses_a_deployment():
    from fedpeft.build.run import build_run

    with pytest.raises(ConfigError, match="only `fedpeft run` and `fedpeft handshake`"):
        build_run(resolve(read_experiment(DIGITS, SETS)))


def test_a_plan_shows_no_partition_of_what_the_sites_have():
    from fedpeft.plan.plan import make_plan

    assert make_plan(read_experiment(DIGITS, SETS)).partition is None
    assert make_plan(read_experiment(DIGITS, SETS[2:])).partition is not None


class Clock:
    """Time that passes in sleeps alone."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_a_followed_run_is_asked_after_ever_less(link, monkeypatch, tmp_path):
    """The SuperLink writes a line for each question; rounds are read from the folder."""
    clock, asked = Clock(), []

    class Slow:
        def state(self, run):
            asked.append(clock.now)
            return RunState("finished" if clock.now > 600 else "running", "completed")

    monkeypatch.setattr(deploying, "time", clock)
    watcher = deploying._Watcher(RunFolder(tmp_path / "out"), 2, lambda done: None)
    deploying._follow(Slow(), 1, watcher, 5.0)
    assert 40 < len(asked) < 60 and clock.now < 620
    asked.clear()
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "summary.json").write_text("{}")
    clock.now = 590.0
    deploying._follow(Slow(), 1, watcher, 5.0)
    assert clock.now <= 602 and len(asked) <= 12, "the end of a run is seen at once, without haste"


def test_a_handshake_that_is_stopped_is_not_to_be_resumed(link, tmp_path):
    control = link([RunState("finished", "stopped")])
    experiment = read_experiment(DIGITS, SETS)
    with pytest.raises(EngineError, match="the handshake was stopped at the SuperLink") as error:
        deploying.greet_sites(experiment, tmp_path / "place")
    assert "--resume" not in str(error.value) and control.started
