"""A whole deployment in one process: our apps and Flower's messages, without its processes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedpeft.build.model import load_run_data
from fedpeft.core.errors import ConfigError, RoundError
from fedpeft.engines.flower import sites as flower_sites
from fedpeft.engines.flower.app import AppFailure, client_app, server_app
from fedpeft.engines.flower.requests import Answer
from fedpeft.experiment.read import DIGITS, dump_experiment, read_experiment
from fedpeft.experiment.resolve import resolve
from fedpeft.experiment.site_file import read_site
from fedpeft.federation.serving import data_digest, for_sites, serve
from fedpeft.federation.site_setup import make_site
from fedpeft.federation.split import ServerAddress, split
from fedpeft.launch.start import run
from fedpeft.runs.folder import RunFolder, read_summary
from fedpeft.runs.status import read_status
from fedpeft.wire import messages

SETS = [
    "model.name=preset:tiny-vit",
    "client.lr=0.05",
    "client.epochs=1",
    "engine.workers=1",
    "data.partition.clients=2",
    "federation.clients_per_round=2",
    "federation.rounds=3",
    'wire.up=[{name = "top_k", fraction = 0.3}]',
]


def test_sites_get_nothing_that_concerns_the_server_alone():
    own = ["federation.algorithm=fedadam", "answers.num_examples=3", "federation.options={}"]
    plain, changed = (read_experiment(DIGITS, [*SETS, *more]) for more in ([], own))
    assert for_sites(changed) == for_sites(plain)
    assert for_sites(read_experiment(DIGITS, [*SETS, "seed=2"])) != for_sites(plain)


class SiteGrid:
    """A grid whose nodes run our client app, each with a site of its own."""

    def __init__(self, folders):
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 2, 1
        self.sites = {
            node: make_site(read_site(folder / "site.toml"))
            for node, folder in enumerate(folders, 1)
        }
        self.names = {node: folder.name for node, folder in enumerate(folders, 1)}
        self.app = client_app(self.answer)
        self.inbox = {}
        self.stops_after = None

    def answer(self, request, node):
        return self.sites[int(node["number"])].take(request)

    def get_node_ids(self):
        return list(self.sites)

    def push_messages(self, pushed):
        (message,) = pushed
        number = str(len(self.inbox) + 1)
        message.metadata.__dict__["_message_id"] = number
        if len(self.inbox) == self.stops_after:
            raise KeyboardInterrupt
        node = message.metadata.dst_node_id
        config = {"site": self.names[node], "number": node}
        context = Context(2, node, config, RecordDict(), {})
        self.inbox[number] = [self.app(message, context)]
        return [number]

    def pull_messages(self, numbers):
        (number,) = numbers
        found, self.inbox[number] = self.inbox[number], []
        return found


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """An experiment, its parts, and what the local engine makes of it."""
    folder = tmp_path_factory.mktemp("federation")
    experiment = read_experiment(DIGITS, SETS)
    *sites, server = split(experiment, folder / "parts", ServerAddress())
    local = run(experiment, folder / "local")
    return sites, server / "experiment.toml", folder / "local", local


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(flower_sites, "_POLL", 0.001)
    monkeypatch.setattr(flower_sites, "_ROUND_PATIENCE", 0.05)


def configuration(file: Path, out: Path, task: str = "run", *, resume: bool = False, sets=()):
    """What `fedpeft run` submits: the experiment, resolved."""
    text = dump_experiment(resolve(read_experiment(file, sets)).experiment)
    return {"task": task, "experiment": text, "out": str(out), "resume": resume}


def lines(folder: Path):
    whole = [json.loads(line) for line in RunFolder(folder).rounds.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in whole]


def test_a_deployment_equals_the_local_engine_also_when_it_is_killed(parts, tmp_path):
    sites, file, local, expected = parts
    for site in sites:
        assert not (site / "state").exists()
    grid, out = SiteGrid(sites), tmp_path / "out"
    grid.stops_after = 2 + 2 + 1  # handshakes, round 1, and one of the two messages of round 2
    with pytest.raises(KeyboardInterrupt):
        serve(grid, configuration(file, out))
    assert len(lines(out)) == 1
    again = SiteGrid(sites)
    serve(again, configuration(file, out, resume=True))
    ended = read_summary(RunFolder(out))
    assert ended["delta_digest"] == expected["delta_digest"]
    assert ended["items"] == expected["items"]
    assert lines(out) == lines(local)
    status = read_status(out)
    assert status["state"] == "finished" and [s["turns"] for s in status["sites"]] == [3, 3]
    assert sum(s["bytes_up"] for s in status["sites"]) == status["bytes_up"]
    serve(again, configuration(file, out, resume=True))
    assert lines(out) == lines(local), "a finished run is left as it is"


def test_sites_get_the_same_words_wherever_the_server_is(parts, tmp_path):
    sites, file, *_ = parts
    texts = []
    for sets in (["engine.superlink=127.0.0.1:1"], ["engine.superlink=127.0.0.1:2"]):
        grid = SiteGrid(sites)
        honest = grid.answer

        def heard(request, node, honest=honest):
            texts.append(request.experiment)
            return honest(request, node)

        grid.app = client_app(heard)
        serve(grid, configuration(file, tmp_path / "out", "handshake", sets=sets))
    assert len(set(texts)) == 1 and "superlink" not in texts[0]


def test_names_that_mean_something_to_the_server_alone_stay_there(parts, tmp_path):
    sites, file, *_ = parts
    grid, texts = SiteGrid(sites), []
    honest = grid.answer

    def heard(request, node):
        texts.append(request.experiment)
        return honest(request, node)

    grid.app = client_app(heard)
    sets = ["federation.algorithm=fedavgm", "federation.rounds=1"]
    serve(grid, configuration(file, tmp_path / "out", sets=sets))
    assert texts and all("fedavgm" not in text for text in texts)
    assert "fedavgm" in (tmp_path / "out" / "experiment.toml").read_text()


def test_a_handshake_trains_nothing(parts, tmp_path):
    sites, file, *_ = parts
    serve(SiteGrid(sites), configuration(file, tmp_path / "out", "handshake"))
    table = json.loads((tmp_path / "out" / "sites.json").read_text())
    assert table["names"] == [site.name for site in sites]
    assert not RunFolder(tmp_path / "out").rounds.exists()


def test_what_a_server_evaluates_on_is_recorded(parts, tmp_path):
    """The digest is of what the model sees: other test examples give another one."""
    sites, file, *_ = parts
    serve(SiteGrid(sites), configuration(file, tmp_path / "a", sets=["federation.rounds=1"]))
    data = json.loads((tmp_path / "a" / "environment.json").read_text())["data"]
    test = load_run_data(resolve(read_experiment(file, []))).test
    assert data["digest"] == data_digest(test) and data["evaluated"] == len(test)
    assert len(data["digest"]) == 64 != data_digest(first(test, len(test) - 1))
    found = json.loads((tmp_path / "a" / "sites.json").read_text())
    assert (found["evaluated"], found["unused"]) == (len(test), 0)


def test_examples_of_the_server_that_nobody_uses_are_counted(parts, tmp_path):
    sites, *_ = parts
    sets = [*SETS, "engine.name=flower", "engine.superlink=127.0.0.1:1", "data.source=digits"]
    whole = {"task": "handshake", "out": str(tmp_path / "b"), "resume": False}
    text = dump_experiment(resolve(read_experiment(DIGITS, sets)).experiment)
    serve(SiteGrid(sites), {**whole, "experiment": text})
    found = json.loads((tmp_path / "b" / "sites.json").read_text())
    assert found["unused"] > found["evaluated"] > 0


def first(examples, count):
    """The first examples of a table, as a table."""

    class First:
        def __len__(self):
            return count

        def batch(self, indices, *, seed):
            return examples.batch(indices, seed=seed)

    return First()


def test_a_site_with_another_backbone_is_refused(parts, tmp_path):
    sites, file, *_ = parts
    config = configuration(file, tmp_path / "out", sets=["engine.wait=5"])
    grid = SiteGrid(sites)
    honest = grid.answer

    def lie(request, node):
        said = honest(request, node)
        facts = dict(said.facts) | ({"backbone": "0" * 64} if node["number"] == 2 else {})
        return Answer(said.client, said.round, facts=facts)

    grid.app = client_app(lie)
    with pytest.raises(RoundError, match=r"1 of 2 sites.*backbone: the server has"):
        serve(grid, config)


def claiming(grid, **said):
    """Let site 2 say something else in its replies, and in its handshake."""
    honest = grid.answer

    def lie(request, node):
        answer = honest(request, node)
        if node["number"] != 2:
            return answer
        if request.action == "handshake":
            return dataclasses.replace(answer, facts={**answer.facts, **said.get("facts", {})})
        tensors, notes = messages.decode(answer.blob)
        blob = messages.encode(tensors, notes | said.get("notes", {}))
        return dataclasses.replace(answer, blob=blob)

    grid.app = client_app(lie)
    return grid


def test_a_site_weighs_no_more_than_it_announced(parts, tmp_path):
    sites, file, *_ = parts
    serve(
        claiming(SiteGrid(sites), notes={"weight": "1e18"}), configuration(file, tmp_path / "out")
    )
    for line in lines(tmp_path / "out"):
        assert "the number of examples that it announced" in line["failures"][sites[1].name]
    table = json.loads((tmp_path / "out" / "sites.json").read_text())
    assert set(table["examples"]) == {site.name for site in sites}


def test_what_a_site_announced_stays_for_the_run(parts, tmp_path):
    """A site that comes back and announces more is not believed."""
    sites, file, *_ = parts
    grid, out = SiteGrid(sites), tmp_path / "out"
    grid.stops_after = 2 + 2 + 1
    with pytest.raises(KeyboardInterrupt):
        serve(grid, configuration(file, out))
    again = claiming(SiteGrid(sites), facts={"examples": "900000"}, notes={"weight": "900000"})
    serve(again, configuration(file, out, resume=True))
    assert "it announced" in lines(out)[-1]["failures"][sites[1].name]


def test_a_site_that_announces_too_much_is_refused(parts, tmp_path):
    sites, file, *_ = parts
    sets = ["engine.wait=5", f"federation.site_examples={{{sites[1].name} = 5}}"]
    config = configuration(file, tmp_path / "out", sets=sets)
    with pytest.raises(RoundError, match=r"examples: the site announces \d+, at most 5 are"):
        serve(SiteGrid(sites), config)


def test_a_head_alone_is_tuned_at_sites_too(parts, tmp_path):
    """Nothing below the head trains, and the server has no training examples to cut at."""
    sites, file, *_ = parts
    sets = ["tuning.method=head", "federation.rounds=1", "wire.up=[]"]
    serve(SiteGrid(sites), configuration(file, tmp_path / "out", sets=sets))
    assert len(lines(tmp_path / "out")) == 1


def test_a_server_app_says_its_verdict(parts, tmp_path):
    _, file, *_ = parts
    app = server_app(serve)
    context = Context(2, 1, {}, RecordDict(), configuration(file, Path("relative")))
    with pytest.raises(AppFailure, match=r"^\[fedpeft exit 2\] --out: found relative"):
        app._main(SiteGrid([]), context)


def test_a_client_app_answers_what_it_cannot_read():
    app = client_app(lambda request, node: Answer("", 0))
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 2, 1
    message = Message(RecordDict(), 1, "train")
    message.metadata.__dict__["_message_id"] = "1"
    reply = app(message, Context(2, 1, {}, RecordDict(), {}))
    assert "cannot be read" in reply.content["fedpeft"]["refused"]


def test_what_a_server_is_sent_is_checked(tmp_path):
    with pytest.raises(ConfigError, match="colour: unknown key"):
        serve(SiteGrid([]), {"task": "run", "experiment": "colour = 1", "out": str(tmp_path)})
