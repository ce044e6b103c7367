"""Real SuperLink, SuperNodes and Ray on this machine: parity, and what is killed on the way."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import bad_worker
import psutil
import pytest
from real_federation import Process, environment, federation, sets_of, until

from fedpeft.build.run import build_run
from fedpeft.core.deltas import digest_of
from fedpeft.experiment.read import DIGITS, read_experiment
from fedpeft.experiment.resolve import resolve
from fedpeft.rounds.job import Failure
from fedpeft.rounds.round import run_round

pytestmark = pytest.mark.deployment

SAME = ("round", "cohort", "failures", "metrics", "update_norm", "bytes_down", "bytes_up")


def same(records):
    return [{key: record[key] for key in SAME} for record in records]


def test_a_simulation_on_two_actors_equals_the_local_engine(tmp_path):
    """Also with clients' memories, and started again in the middle; nothing is left running."""
    sets = sets_of("data.partition.clients=6", "federation.clients_per_round=4",
                   'wire.up=[{name = "top_k", fraction = 0.3}, {name = "int8"}]')  # fmt: skip
    found = {}
    for name, runs in {
        "local": [["federation.rounds=4"]],
        "flower": [
            ["federation.rounds=2", "engine.name=flower-simulation", "engine.workers=2"],
            ["federation.rounds=4", "engine.name=flower-simulation", "engine.workers=2"],
        ],
    }.items():
        for more in runs:
            command = [sys.executable, "-m", "fedpeft", "run", str(DIGITS), *sets, "--json"]
            command += [part for each in more for part in ("--set", each)]
            command += ["--out", str(tmp_path / name)]
            command += ["--resume"] if (tmp_path / name).exists() else []
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=240, check=False,
                env=environment(tmp_path / "home"),
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout)
        lines = (tmp_path / name / "rounds.jsonl").read_text().splitlines()
        found[name + " rounds"] = same(map(json.loads, lines))
    assert found["flower"]["delta_digest"] == found["local"]["delta_digest"]
    assert found["flower"]["items"] == found["local"]["items"]
    assert found["flower rounds"] == found["local rounds"]


def test_a_deployment_equals_the_local_engine(tmp_path):
    """Two sites with data of their own; the status is that of the run; nothing is left running."""
    with federation(tmp_path, "federation.rounds=2", "federation.clients_per_round=2") as here:
        here.start()
        expected = here.local()
        code, found = here.finish(here.run())
        assert code == 0, here.superlink.text()[-3000:]
        assert found["delta_digest"] == expected["delta_digest"]
        assert found["items"] == expected["items"]
        assert found["bytes_up"] == expected["bytes_up"]
        local = (tmp_path / "local0" / "rounds.jsonl").read_text().splitlines()
        assert same(here.rounds()) == same(map(json.loads, local))
        status = json.loads(here.command("status", str(here.out), "--json").stdout)
    assert status["state"] == "finished" and status["round"] == 2
    assert [(site["name"], site["turns"]) for site in status["sites"]] == [
        ("client-00", 2), ("client-01", 2),
    ]  # fmt: skip


def test_a_server_that_is_killed_goes_on_to_the_same_delta(tmp_path):
    """The ServerApp first, then the SuperLink, which is started again on its database."""
    sets = ("federation.rounds=5", "federation.clients_per_round=2",
            'wire.up=[{name = "top_k", fraction = 0.3}]')  # fmt: skip
    with federation(tmp_path, *sets) as here:
        here.start()
        expected = here.local()
        run = here.run()
        here.wait_for_round(1, run)
        here.server_app().kill()
        here.wait_for_round(3, run)
        here.superlink.kill()
        here.start_superlink()
        code, found = here.finish(run)
        assert code == 0, run.text()
        assert found["delta_digest"] == expected["delta_digest"]
        assert len(here.rounds()) == 5 and "submitting it again" in run.text()


def test_a_site_that_is_killed_is_a_failure_and_comes_back(tmp_path):
    """A killed SuperNode costs its turns; the round goes on; the site takes part again later."""
    sets = ("federation.rounds=40", "federation.clients_per_round=2")
    with federation(tmp_path, *sets) as here:
        here.start()
        run = here.run("--set", "engine.deadline=25")
        here.wait_for_round(1, run)
        here.nodes["client-01"].kill()
        until(lambda: any(each["failures"] for each in here.rounds()), "a failure", 120)
        failed = next(each for each in here.rounds() if each["failures"])
        assert set(failed["failures"]) == {"client-01"}
        reason = failed["failures"]["client-01"]
        assert "no answer within 25 s" in reason or "is gone" in reason or "not conn" in reason
        here.start_node("client-01")
        count = len(here.rounds())
        until(
            lambda: any(not each["failures"] for each in here.rounds()[count:]),
            "the site takes part again", 240,
        )  # fmt: skip
        run.kill(signal.SIGINT)
        assert run.popen.wait(60) == 130
        assert "go on with" in run.text()


def test_too_few_sites_end_with_code_3_and_say_why(tmp_path):
    with federation(tmp_path, "federation.rounds=2", "federation.clients_per_round=2") as here:
        here.start_superlink()
        names = here.split()
        file = here.parts / names[1] / "site.toml"
        text = file.read_text("utf-8")
        file.write_text(text + '\n[allow]\nmethods = ["lora"]\n', "utf-8")
        for name in names:
            here.start_node(name)
        done = here.command("handshake", str(here.experiment), "--set", "engine.wait=90")
        assert done.returncode == 3, done.stderr
        assert "1 of 2 sites" in done.stderr and "this site allows lora" in done.stderr
        assert "this site allows lora" in here.nodes[names[1]].text()


class Without:
    """The local engine, but for a client that fails from some round on."""

    def __init__(self, engine, client, since):
        self.engine, self.client, self.since = engine, client, since
        self.clients = engine.clients

    def run(self, job):
        cohort = [each for each in job.cohort if each != self.client or job.round < self.since]
        yield from self.engine.run(dataclasses.replace(job, cohort=tuple(cohort)))
        if len(cohort) < len(job.cohort):
            yield Failure(self.client, "bad")


def test_a_site_that_misbehaves_moves_nothing(tmp_path):
    """NaN, shape, dtype, cut, huge, an old round, a refusal, no answer: one fault a round."""
    rounds = max(bad_worker.FAULTS)
    sets = (f"federation.rounds={rounds}", "federation.clients_per_round=3")
    with federation(tmp_path, *sets, clients=3) as here:
        here.start_superlink()
        names = here.split()
        for name in names[:2]:
            here.start_node(name)
        here.start_bad_node(names[2], Path(bad_worker.__file__))
        code, found = here.finish(here.run("--set", "engine.deadline=60"), 500)
        records = here.rounds()
    assert code == 0
    built = build_run(resolve(read_experiment(DIGITS, here.sets[1::2])))
    engine, state = Without(built.engine, names[2], 2), built.start
    for _ in range(rounds):
        state, _ = run_round(state, built.plan, engine)
    assert found["delta_digest"] == digest_of(state.delta)
    assert records[0]["failures"] == {}
    for number, reason in bad_worker.FAULTS.items():
        failures = records[number - 1]["failures"]
        assert set(failures) == {names[2]} and reason in failures[names[2]], failures


def test_an_actor_is_killed_and_a_simulation_interrupted(tmp_path):
    """The actor costs its round and is back in the next; Ctrl-C ends all, with exit code 130."""
    sets = sets_of("engine.name=flower-simulation", "federation.rounds=5000")
    command = [
        sys.executable,
        "-m",
        "fedpeft",
        "run",
        str(DIGITS),
        *sets,
        "--out",
        str(tmp_path / "out"),
    ]
    run = Process(command, tmp_path / "run.log", tmp_path / "home")
    try:
        until(lambda: "round 2/" in run.text(), "round 2", 180)
        actor = next(each for each in children(run) if "ClientAppActor" in each.cmdline()[0])
        actor.kill()
        until(lambda: failed_rounds(tmp_path), "a failure", 60)
        count = len(records_of(tmp_path))
        until(lambda: len(records_of(tmp_path)) > count + 20, "more rounds", 120)
        assert len(failed_rounds(tmp_path)) == 1 and "actor" in str(failed_rounds(tmp_path))
        below = children(run)
        run.popen.send_signal(signal.SIGINT)
        assert run.popen.wait(60) == 130
        assert "go on with" in run.text() and len(below) > 3
        until(lambda: not [each for each in below if lives(each)], "all have ended", 60)
    finally:
        run.end()


def children(run):
    return psutil.Process(run.popen.pid).children(recursive=True)


def records_of(folder):
    lines = (folder / "out" / "rounds.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def failed_rounds(folder):
    return [record["failures"] for record in records_of(folder) if record["failures"]]


def lives(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
