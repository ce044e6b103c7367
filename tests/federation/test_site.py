"""Laws of a site: memories exactly once, refusals in words, nothing leaves but what was agreed."""

from __future__ import annotations

import dataclasses
import functools
import os

import pytest
import support
import torch
from safetensors import SafetensorError

from fedpeft.core.errors import ConfigError, DataError, PrivacyError
from fedpeft.core.noise import draw_root
from fedpeft.data.examples import ClientData
from fedpeft.engines.flower.requests import Request
from fedpeft.federation import journal
from fedpeft.federation.site import Limits, Prepared, Site
from fedpeft.federation.turn_store import TurnStore
from fedpeft.rounds.handshake import write_facts
from fedpeft.rounds.round import run_round
from fedpeft.rounds.round_plan import turn_seed
from fedpeft.runs.files import write_whole
from fedpeft.tuning.tuned import read_buffers, read_delta
from fedpeft.wire import messages
from fedpeft.wire.stages import Stage

DATA = support.federated()
NAME = "client-1"
FACTS = {"backbone": "a" * 64, "version.fedpeft": "0.1.0"}
WRITE = functools.partial(write_whole, mode=0o600)


def prepare(text: str, *, up: str = "top_k", **changes: object) -> Prepared:
    if text == "forbidden":
        raise ConfigError("tuning.method: found 'x'; this site allows bias")
    if text == "broken data":
        raise DataError("row 17 of /secret/patients.csv has the label 'rare disease'")
    half = support.make_half(up, support.settings(), False)
    data = ClientData(DATA.train, DATA.clients[NAME])
    return dataclasses.replace(Prepared(half, data, FACTS), **changes)


def site(tmp_path, make=prepare, **limits: object) -> Site:
    store = TurnStore(tmp_path / "turns", WRITE)
    return Site(NAME, make, store, Limits(**{"max_bytes": 10**6, **limits}))


def broadcast(scale: float = 0.0) -> bytes:
    delta = read_delta(support.tuned())
    return messages.encode({"delta": delta + scale})


def request(number: int, committed: int = 0, **changes: object) -> Request:
    asked = Request(
        "train", "run1", NAME, number, committed, turn_seed(1, number, NAME), number - 1, "text",
        broadcast(number / 10),
    )  # fmt: skip
    return dataclasses.replace(asked, **changes)


def same(one: bytes, other: bytes) -> bool:
    """Whether two messages hold the same; the order of their notes is not fixed."""
    (tensors, notes), (others, other_notes) = messages.decode(one), messages.decode(other)
    equal = tensors.keys() == others.keys() and notes == other_notes and len(one) == len(other)
    return equal and all(torch.equal(tensors[name], others[name]) for name in tensors)


def test_a_site_gives_the_bytes_of_the_local_engine(tmp_path):
    plan = support.plan(up=support.STAGES["top_k"], cohort=6)
    engine = support.engine(DATA, up=support.STAGES["top_k"])
    model = support.tuned()
    state = plan.algorithm.init(read_delta(model), read_buffers(model))
    seen, place = {}, site(tmp_path)

    class Watched:
        def clients(self):
            return engine.clients()

        def run(self, job):
            for reply in engine.run(job):
                seen[job.round, reply.client] = (job, reply.blob)
                yield reply

    for _ in range(3):
        state, _ = run_round(state, plan, Watched())
    for number in (1, 2, 3):
        job, blob = seen[number, NAME]
        asked = request(number, job.committed[NAME], blob=job.broadcast[NAME])
        assert same(place.take(asked).blob, blob)


def test_killed_between_reply_and_commit_and_resumed_it_is_as_if_nothing_had_happened(tmp_path):
    straight = [site(tmp_path / "a").take(request(n, n - 1)) for n in (1, 2, 3)]
    place = site(tmp_path / "b")
    place.take(request(1))
    place.take(request(2, 1))  # the reply was sent, the server died before its commit
    again = [site(tmp_path / "b").take(request(n, n - 1)) for n in (2, 3)]
    pairs = zip(again, straight[1:], strict=True)
    assert all(same(one.blob, other.blob) for one, other in pairs)
    kept = [site_memory(tmp_path / part) for part in ("a", "b")]
    assert kept[0].keys() == kept[1].keys() and kept[0]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def site_memory(folder):
    return TurnStore(folder / "turns", WRITE).start("run1", 3)


def test_starting_from_another_turn_changes_the_reply(tmp_path):
    """The negative control: the memory that a turn starts from matters."""
    place = site(tmp_path)
    first = place.take(request(1))
    assert not first.refused
    after_first, fresh = place.take(request(2, 1)), place.take(request(2, 0))
    assert after_first.blob and fresh.blob and not same(after_first.blob, fresh.blob)


def test_the_same_request_is_answered_without_training_again(tmp_path):
    trained = []
    charged = functools.partial(prepare, charge=lambda run, turn, digest: trained.append(turn))
    first, second = (site(tmp_path, charged).take(request(1)) for _ in range(2))
    assert first.blob == second.blob and trained == [1]


def test_with_noise_at_the_site_a_turn_is_answered_once(tmp_path):
    """Two broadcasts, one turn number: equal noise would cancel in the difference."""
    once = functools.partial(prepare, once=True)
    place = site(tmp_path, once)
    assert place.take(request(1)).blob and place.take(request(2, 1)).blob
    for number in (1, 2):
        answer = place.take(request(number, 0, blob=broadcast(5.0)))
        assert "a turn is answered once" in answer.refused and not answer.blob
    assert site(tmp_path).take(request(2, 1, blob=broadcast(5.0))).blob  # without noise it may


def test_a_lost_memory_is_refused_where_a_client_has_one(tmp_path):
    answer = site(tmp_path).take(request(5, 4))
    assert "memory after turn 4 of run run1 is not on this site's disk" in answer.refused
    assert site(tmp_path, functools.partial(prepare, up="int8")).take(request(5, 4)).blob


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"client": "other"}, "this site is 'client-1', the request is for 'other'"),
        ({"run_id": "../../etc"}, "allowed are letters, digits"),
        ({"action": "shell"}, "action: found 'shell'"),
        ({"committed": 1}, "found turn 1 after turn 1"),
        ({"committed": -1}, "found turn 1 after turn -1"),
        ({"blob": b"x" * 10**7}, "this site allows 1000000"),
        ({"experiment": "x" * 2**21}, "this site allows"),
        ({"blob": b"not a message"}, "cannot be decoded"),
        ({"blob": messages.encode({"delta": torch.zeros(3)})}, "flat delta: found float32"),
        ({"experiment": "forbidden"}, "this site allows bias"),
    ],
)
def test_what_cannot_be_is_refused_in_words(tmp_path, changes, words):
    answer = site(tmp_path).take(request(1, **changes))
    assert words in answer.refused and not answer.blob
    assert not list(tmp_path.rglob("turn-*"))


def test_an_error_about_the_sites_own_data_stays_at_the_site(tmp_path):
    answer = site(tmp_path).take(request(1, experiment="broken data"))
    assert answer.refused == "DataError at the site; its own log says more"


def test_a_failure_that_nobody_foresaw_is_an_answer(tmp_path):
    def burst(text: str) -> Prepared:
        raise ZeroDivisionError("inside /secret")

    answer = site(tmp_path, burst).take(request(1))
    assert answer.refused == "ZeroDivisionError at the site; its own log says more"


def test_a_full_disk_at_the_site_is_said_without_its_paths(tmp_path, monkeypatch):
    def full(tensors, file, notes):
        raise SafetensorError("Error while serializing: I/O error: gone (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    answer = site(tmp_path).take(request(1))
    assert "(No space left on device); its own log says which" in answer.refused
    assert str(tmp_path) not in answer.refused


def test_a_line_that_the_disk_does_not_take_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "state" / "turns.jsonl"
    journal.append(file, {"run": "a"})
    before, real = file.read_bytes(), os.write
    monkeypatch.setattr(journal.os, "write", lambda where, line: real(where, line[:5]))
    with pytest.raises(OSError, match="No space left"):
        journal.append(file, {"run": "b"})
    assert file.read_bytes() == before
    monkeypatch.undo()
    journal.append(file, {"run": "b"})
    assert [row["run"] for row in journal.rows(file, frozenset({"run"}), "count")] == ["a", "b"]


def test_a_spent_budget_is_refused_before_training(tmp_path):
    def refuse(run: str, turn: int, digest: str) -> None:
        raise PrivacyError("this site has spent what it gives")

    answer = site(tmp_path, functools.partial(prepare, charge=refuse)).take(request(1))
    assert "has spent what it gives" in answer.refused and not list(tmp_path.rglob("turn-*"))


def test_metrics_that_the_site_does_not_give_stay(tmp_path):
    open_, closed = site(tmp_path / "a"), site(tmp_path / "b", metrics=frozenset())
    notes = [messages.decode(place.take(request(1)).blob)[1] for place in (open_, closed)]
    assert set(notes[0]) == {"weight", "metric.loss"} and set(notes[1]) == {"weight"}


def test_the_number_of_examples_can_stay_too(tmp_path):
    told, hidden = (
        site(tmp_path / str(flag), num_examples=flag).take(request(1)) for flag in (True, False)
    )
    weights = [float(messages.decode(answer.blob)[1]["weight"]) for answer in (told, hidden)]
    assert weights == [float(len(DATA.clients[NAME])), 1.0]
    assert told.seconds > 0 and hidden.seconds == 0


def test_a_tensor_that_is_no_delta_does_not_leave(tmp_path):
    def smuggle(text: str) -> Prepared:
        ready = prepare(text)
        leak = Stage("leak", encode=lambda p, m, t: ({**p, "examples": torch.ones(4)}, m))
        return dataclasses.replace(ready, half=dataclasses.replace(ready.half, up=(leak,)))

    answer = site(tmp_path, smuggle).take(request(1))
    assert "holds examples; allowed are delta" in answer.refused and not answer.blob


def test_an_experiment_stays_loaded_until_another_comes(tmp_path):
    loads = []

    def counted(text: str) -> Prepared:
        loads.append(text)
        return prepare(text)

    place = site(tmp_path, counted)
    for number, text in ((1, "a"), (2, "a"), (3, "b"), (4, "a")):
        place.take(request(number, experiment=text))
    assert loads == ["a", "b", "a"]


def greet(place: Site, facts: dict[str, str] | None = None):
    blob = write_facts(facts) if facts else b""
    return place.take(Request("handshake", "run1", NAME, 0, 0, 0, 0, "text", blob))


def test_a_handshake_tells_who_the_site_is(tmp_path):
    answer = greet(site(tmp_path))
    assert answer.facts == FACTS and not answer.refused and not answer.blob
    assert greet(site(tmp_path), FACTS).refused == ""


def test_a_site_refuses_a_server_that_does_not_fit(tmp_path):
    answer = greet(site(tmp_path), FACTS | {"backbone": "b" * 64})
    assert "backbone: the server has bbbbbbbbbbbb…, the site aaaaaaaaaaaa…" in answer.refused


def test_secret_roots_survive_a_restart(tmp_path):
    """A root that a client drew is the one it goes on with."""
    root = Stage("root", init=lambda spec: {"root": draw_root()})

    def noisy(text: str) -> Prepared:
        ready = prepare(text)
        return dataclasses.replace(ready, half=dataclasses.replace(ready.half, up=(root,)))

    for number in (1, 2):
        site(tmp_path, noisy).take(request(number, number - 1))
    store = TurnStore(tmp_path / "turns", WRITE)
    before, after = store.start("run1", 1), store.start("run1", 2)
    assert before and torch.equal(before["0.root.root"], after["0.root.root"])
