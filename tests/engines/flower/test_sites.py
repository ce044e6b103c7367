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
from fedpeft.engines.flower.sites import Greeting, Identities, Sites


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


@pytest.mark.parametrize("keys", [True, False])
def test_a_site_that_restarts_during_its_handshake_is_waited_for(keys):
    """The SuperLink then says in its place that it is gone: that is no refusal of the site's."""
    grid = Nodes(node_1=site("a"), node_2=Error(5, "no heartbeat"))
    asked = []

    def back(message):
        asked.append(message)
        if len(asked) > 3:
            grid.says[2] = site("b")
        return Nodes._take(grid, message)

    grid._take = back
    identities = Identities({"a", "b"}, lambda name, node: "", lambda node: "-ab"[node])
    sites = Sites(grid, greeting(), identities=identities if keys else None)
    assert sites.meet(2, 5.0) == ("a", "b") and not sites.refusals()


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


def bound(**owners):
    """Names bound to nodes: `a=1` is the site a behind node 1."""

    def complaint(name, node):
        return "" if owners.get(name) == node else f"site {name!r} has another key"

    names = {node: name for name, node in owners.items()}
    return Identities(frozenset(owners), complaint, lambda node: names.get(node, ""))


def test_a_foreign_key_under_a_known_name_is_refused_and_not_waited_for():
    told = []
    grid = Nodes(node_1=site("a"), node_6=site("b"))
    sites = Sites(
        grid, greeting(), identities=bound(a=1, b=2), watch=lambda *each: told.append(each)
    )
    with pytest.raises(RoundError, match=r"1 of 2 sites.*site 'b' has another key"):
        sites.meet(2, 60.0)
    (facts,) = [facts for event, facts in told if event == "refused"]
    assert (facts["node"], facts["client"]) == ("6", "b")


def test_without_keys_the_same_node_would_be_taken():
    """The negative control: a name alone is anybody's."""
    assert Sites(Nodes(node_1=site("a"), node_6=site("b")), greeting()).meet(2, 5.0) == ("a", "b")


def test_a_stranger_does_not_take_the_place_of_a_site_that_is_still_to_come(monkeypatch):
    grid = Nodes(node_1=site("a"), node_6=site("x"))
    sites = Sites(grid, greeting(), identities=bound(a=1, b=2))
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 5:
            grid.says[2] = site("b")

    monkeypatch.setattr(flower_sites.time, "sleep", sleep)
    assert sites.meet(2, 30.0) == ("a", "b")


def test_a_key_that_is_no_longer_a_sites_is_seen_at_its_reply():
    owners = {"a": 1, "b": 2}
    identities = Identities(frozenset(owners), lambda n, k: "" if owners.get(n) == k else "no", str)
    sites = Sites(Nodes(node_1=site("a"), node_2=site("b")), greeting(), identities=identities)
    sites.meet(2, 5.0)
    assert sites.complaint("b", 2) == ""
    owners["b"] = 9
    assert sites.complaint("b", 2) == "no"


def test_a_round_does_not_wait_for_a_refused_site(monkeypatch):
    grid = Nodes(node_1=site("a"), node_2=site("b"))
    sites = Sites(grid, greeting())
    sites.meet(2, 5.0)
    grid.says = {1: site("a"), 7: site("b", refused="no more")}
    sites.gather(["a", "b"])
    grid._take = lambda message: "unanswered"
    waited = []
    monkeypatch.setattr(flower_sites.time, "sleep", waited.append)
    assert sites.gather(["a", "b"]) == {"a": 1}
    assert not waited, "its next answer was waited for"
