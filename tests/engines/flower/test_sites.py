"""Who a deployment's sites are: met by handshakes, refused with reasons, found again."""

from __future__ import annotations

import fake_grid
import pytest
import support
from flwr.app import Error, Message

from fedpeft.core.errors import RoundError
from fedpeft.engines.flower import sites as flower_sites
from fedpeft.engines.flower.messages import read_request, write_answer
from fedpeft.engines.flower.requests import Answer
from fedpeft.engines.flower.sites import Greeting, Sites


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(flower_sites, "_POLL", 0.001)
    monkeypatch.setattr(flower_sites, "_AGAIN", 0.0)
    monkeypatch.setattr(flower_sites, "_ROUND_PATIENCE", 0.05)


class Nodes(fake_grid.FakeGrid):
    """Nodes that answer handshakes as told."""

    def __init__(self, **says):
        super().__init__(support.federated())
        self.says = {int(name.removeprefix("node_")): said for name, said in says.items()}

    def get_node_ids(self):
        return list(self.says)

    def _take(self, message):
        number = str(next(self.numbers))
        message.metadata.__dict__["_message_id"] = number
        self.pushed.append(read_request(message.content)[0])
        said = self.says[message.metadata.dst_node_id]
        content = said if isinstance(said, Error) else write_answer(said)
        self.inbox[number] = [Message(content, reply_to=message)]
        return number


def site(name, refused="", **facts):
    return Answer(name, 0, refused=refused, facts={"site": name, **facts})


def greeting(judge=lambda facts: []):
    return Greeting("text", "run-1", b"{}", judge)


def test_all_sites_are_met_and_keep_their_names():
    told = []
    grid = Nodes(node_7=site("b"), node_3=site("a"))
    sites = Sites(grid, greeting(), watch=lambda event, facts: told.append((event, facts)))
    assert sites.meet(2, 5.0) == ("a", "b") == sites.clients()
    assert sites.gather(["b", "a"]) == {"b": 7, "a": 3}
    assert {facts["client"] for event, facts in told if event == "met"} == {"a", "b"}
    request = grid.pushed[0]
    assert (request.action, request.client, request.blob) == ("handshake", "", b"{}")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (site("b", refused="ConfigError: this site does not take part"), "does not take part"),
        (site("b", backbone="other"), "the backbone differs"),
        (Error(1, None), "could not load the app"),
        (site("a"), "another node is site 'a' already"),
        (site("x" * 65), "it has no name"),
        (site("a\nb"), "it has no name"),
    ],
)
def test_a_site_that_does_not_fit_is_refused_with_its_reason(said, reason):
    def judge(facts):
        return ["the backbone differs"] if facts.get("backbone") == "other" else []

    told = []
    watch = lambda event, facts: told.append((event, facts))  # noqa: E731
    sites = Sites(Nodes(node_1=site("a"), node_2=said), greeting(judge), watch=watch)
    with pytest.raises(RoundError, match="handshake: 1 of 2 sites.*" + reason):
        sites.meet(2, 5.0)
    assert next(facts for event, facts in told if event == "refused")["node"] == "2"


def test_nobody_there_is_said_in_words():
    with pytest.raises(RoundError, match=r"0 of 1 sites.*No other node is connected"):
        Sites(Nodes(), greeting()).meet(1, 0.01)


def test_a_site_behind_another_node_is_found_again():
    grid = Nodes(node_1=site("a"), node_2=site("b"))
    sites = Sites(grid, greeting())
    sites.meet(2, 5.0)
    grid.says = {2: site("b"), 9: site("a")}
    assert sites.gather(["a", "b"]) == {"a": 9, "b": 2}


def test_a_site_that_came_back_while_its_old_node_still_counted_is_taken_at_once(monkeypatch):
    grid = Nodes(node_1=site("a"), node_2=site("b"))
    sites = Sites(grid, greeting())
    sites.meet(2, 5.0)
    monkeypatch.setattr(flower_sites, "_AGAIN", 60.0)
    grid.says = {1: site("a"), 2: site("b"), 9: site("a")}
    sites._poll_nodes()
    assert "another node is site 'a'" in sites.refusals()[9]
    grid.says = {2: site("b"), 9: site("a")}
    assert sites.gather(["a", "b"]) == {"a": 9, "b": 2} and not sites.refusals()


def test_a_site_that_is_away_is_left_out_of_its_round():
    grid = Nodes(node_1=site("a"), node_2=site("b"))
    sites = Sites(grid, greeting())
    sites.meet(2, 5.0)
    grid.says = {2: site("b")}
    assert sites.gather(["a", "b"]) == {"b": 2}


def test_a_resumed_run_knows_its_sites_and_takes_no_other():
    grid = Nodes(node_1=site("a"), node_2=site("new"))
    sites = Sites(grid, greeting(), names=["b", "a"])
    assert sites.meet(2, 0.05) == ("a", "b"), "b may come later"
    assert sites.gather(["a", "b"]) == {"a": 1}
    assert "this run began with a, b" in sites.refusals()[2]
