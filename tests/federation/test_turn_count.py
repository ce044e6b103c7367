"""A site counts its turns itself: whatever a server calls them, and over restarts."""

from __future__ import annotations

import functools

import pytest
import support

from fedpeft.core.errors import ConfigError, EngineError
from fedpeft.data.examples import ClientData
from fedpeft.engines.flower.requests import Request
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.resolve import resolve
from fedpeft.experiment.site_file import SiteConfig
from fedpeft.federation import site_setup
from fedpeft.federation.site import Limits, Prepared, Site
from fedpeft.federation.turn_count import check_turn, count_turn
from fedpeft.federation.turn_store import TurnStore
from fedpeft.runs.files import write_whole
from fedpeft.tuning.tuned import read_delta
from fedpeft.wire import messages

NAME = "client-0"


def own(tmp_path, **allow: object) -> SiteConfig:
    table = {"name": NAME, "state": str(tmp_path / "state"), "data": {"source": "digits"}}
    return SiteConfig.model_validate({**table, "allow": {"max_rounds": 3, **allow}})


def site(tmp_path, **allow: object) -> Site:
    """A site as after a start: nothing of an earlier one but its disk."""
    data, trained = support.federated(), own(tmp_path, **allow)
    experiment = resolve(Experiment.model_validate({})).experiment
    ready = Prepared(
        support.make_half("none", support.settings(), False),
        ClientData(data.train, data.clients[NAME]),
        {"site": NAME},
        charge=functools.partial(site_setup._charge, trained, experiment),
    )
    store = TurnStore(tmp_path / "state" / "turns", write_whole)
    return Site(NAME, lambda text: ready, store, Limits(10**6))


def request(number: int, scale: float = 0.0, run: str = "run1") -> Request:
    blob = messages.encode({"delta": read_delta(support.tuned()) + scale})
    return Request("train", run, NAME, number, 0, 1, 0, "text", blob)


@pytest.mark.parametrize("numbers", [(1, 2, 3, 4), (200, 5000, 7, 10**9), (4, 3, 2, 1)])
def test_the_count_is_the_sites_whatever_the_server_calls_its_turns(tmp_path, numbers):
    refused = [site(tmp_path).take(request(number)).refused for number in numbers]  # restarted
    assert refused[:3] == ["", "", ""]
    assert "trained 3 turns of this run, by its own count; it allows 3" in refused[3]


def test_one_turn_with_other_broadcasts_is_counted_each_time(tmp_path):
    place = site(tmp_path)
    refused = [place.take(request(1, scale)).refused for scale in (0.0, 0.1, 0.2, 0.3)]
    assert refused[:3] == ["", "", ""] and "(allow.max_rounds)" in refused[3]


def test_the_same_request_counts_once_but_two_in_turns_count_each_time(tmp_path):
    place = site(tmp_path)
    assert {place.take(request(1)).refused for _ in range(9)} == {""}
    refused = [place.take(request(number)).refused for number in (2, 1, 2)]
    assert refused[:2] == ["", ""] and "(allow.max_rounds)" in refused[2]


def test_a_turn_of_an_absurd_number_is_refused_in_words(tmp_path):
    for number in (10**30, 10**400):
        answer = site(tmp_path).take(request(number))
        assert "allowed is up to 2147483647" in answer.refused


def test_runs_of_new_names_are_counted_together_where_the_owner_says_so(tmp_path):
    refused = [site(tmp_path, max_turns=2).take(request(1, run=f"r{i}")).refused for i in range(3)]
    assert refused[:2] == ["", ""] and "2 turns over all runs" in refused[2]
    free = [site(tmp_path / "free").take(request(1, run=f"r{i}")).refused for i in range(5)]
    assert set(free) == {""}, "by default each run has its own count"


def test_a_count_that_cannot_be_read_stops_the_site(tmp_path):
    place = own(tmp_path)
    count_turn(place, "run1", 1, "x")
    file = tmp_path / "state" / "turns.jsonl"
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text(file.read_text() + '{"run"')
    with pytest.raises(EngineError, match="remove an incomplete last line"):
        check_turn(place, "run1", "y")
    with pytest.raises(ConfigError, match="by its own count"):
        file.write_text('{"run": "a", "request": "x"}\n' * 3)
        check_turn(place, "a", "y")
