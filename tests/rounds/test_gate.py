"""The gate: any message comes out valid and bounded, or as a failure of its sender."""

from __future__ import annotations

import dataclasses
import json
import struct

import pytest
import support
import torch

import fuzz_replies
from fedpeft.client.turns import DELTA
from fedpeft.core.errors import DeltaMismatchError
from fedpeft.core.text import plain
from fedpeft.data.drawn import Sizes
from fedpeft.rounds.client_half import run_turn
from fedpeft.rounds.gate import Checked, Tally, check_reply
from fedpeft.rounds.job import Failure, Reply
from fedpeft.server.algorithms import fedavg, weighted_mean
from fedpeft.server.state import RoundContext
from fedpeft.server.weights import Weights
from fedpeft.testing import world as testing
from fedpeft.wire import messages
from fedpeft.wire.forms import decode_exactly, form_of
from fedpeft.wire.stages import Stage, int8, top_k

CONTEXT = RoundContext(1, ("a",), 1.0, 1)
PLAN = support.plan()
SIZE = PLAN.spec.num_params


def checked(blob, plan=PLAN):
    return check_reply(Reply("a", blob, 0.0), plan, CONTEXT)


def blob(notes=None, **tensors):
    return messages.encode({DELTA: torch.ones(SIZE), **tensors}, {"weight": "2"} | (notes or {}))


def raw(text, data=b""):
    head = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
    return struct.pack("<Q", len(head)) + head + data


def entry(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


def headed(header):
    return raw(json.dumps(header), bytes(8))


REPLIES = {
    "a shape of words": (headed({DELTA: entry(shape=["x", 200_000_000])}), "does not fit"),
    "a shape too large": (headed({DELTA: entry(shape=[10**30, 8, "x"])}), "does not fit"),
    "a name twice": (raw('{"delta":1,"delta":2}'), "twice"),
    "NaN in the header": (raw('{"delta":NaN}'), "holds NaN"),
    "a deep header": (raw("[" * 3000), "cannot be decoded"),
    "a header of megabytes": (raw('{"a":"' + "x" * 2**21 + '"}'), "allowed are at most"),
    "a number of 5000 digits": (raw('{"delta":' + "9" * 4000 + "}"), "cannot be decoded"),
    "not UTF-8": (raw(b'{"\xff":1}'), "cannot be decoded"),
    "UTF-16": (raw('{"delta":1}'.encode("utf-16")), "cannot be decoded"),
    "numbers in notes": (headed({"__metadata__": {"weight": 3}}), "notes are not texts"),
    "a metric of words": (blob({"metric.loss": "abc"}), "loss is abc"),
    "a metric out of range": (blob({"metric.loss": "1e300"}), "loss is 1e"),
    "a metric that is not finite": (blob({"metric.loss": "nan"}), "loss is nan"),
    "a metric nobody asked for": (blob({"metric.evil": "7"}), "did not ask for: metric.evil"),
    "a surrogate": (blob({"metric.\U0001f600": "7"}), "did not ask for"),
    "a weight with separators": (blob({"weight": "1_0"}), "weight is 1_0"),
    "a weight of other digits": (blob({"weight": "\u0661"}), "weight is"),
    "a tensor more": (blob(evil=torch.ones(3)), "found tensors 'delta', 'evil'; expected 'delta'"),
    "numbers whose squares overflow": (
        messages.encode({DELTA: torch.full((SIZE,), 1e30)}),
        "allowed is 1e",
    ),
}


@pytest.mark.parametrize("name", REPLIES)
def test_a_hostile_reply_is_a_failure_in_words(name):
    sent, words = REPLIES[name]
    found = checked(sent)
    assert isinstance(found, Failure) and words in found.reason and found.reason.isprintable()


def test_an_honest_reply_passes():
    """The negative control."""
    found = checked(blob({"metric.loss": "+5.000000000e-01"}))
    assert isinstance(found, Checked) and found.metrics == {"loss": 0.5}
    assert found.update.weight == 2 and torch.equal(found.update.payload[DELTA], torch.ones(SIZE))


def test_any_error_of_a_stage_is_a_failure():
    def broken(payload, turn):
        raise MemoryError

    stage = Stage("broken", decode=broken, keeps_shapes=True)
    assert "MemoryError" in checked(blob(), support.plan(up=(stage,))).reason


def sparse(**changes):
    honest = {
        DELTA: torch.ones(SIZE // 10),
        "delta.places": torch.arange(SIZE // 10, dtype=torch.int32),
        "delta.size": torch.tensor([SIZE], dtype=torch.int32),
    }
    return messages.encode({**honest, **changes}, {"weight": "1"})


@pytest.mark.parametrize("change", [
    {"delta.size": torch.tensor([2**31 - 1], dtype=torch.int32)},
    {"delta.size": torch.tensor([-1], dtype=torch.int32)},
    {"delta.places": torch.zeros(SIZE // 10, dtype=torch.int32)},
    {"delta.places": torch.arange(SIZE // 10, dtype=torch.int32) - 1},
    {"delta.places": torch.arange(SIZE // 10, dtype=torch.int32) + SIZE},
    {"delta.places": torch.arange(SIZE // 10, dtype=torch.int64)},
])  # fmt: skip
def test_places_that_lie_are_refused_without_memory(change):
    plan = support.plan(up=(top_k(0.1),))
    assert isinstance(checked(sparse(), plan), Checked)
    assert isinstance(checked(sparse(**change), plan), Failure)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0])
def test_scales_that_cannot_be_are_refused(scale):
    scales = torch.full((-(-SIZE // 256),), scale)
    sent = {DELTA: torch.ones(SIZE, dtype=torch.int8), "delta.scales": scales}
    found = checked(messages.encode(sent), support.plan(up=(int8(),)))
    assert isinstance(found, Failure) and "a scale is" in found.reason


def test_a_stage_knows_what_it_must_give_back():
    """Chained stages get the payload of their own step, not the whole delta."""
    seen = {}

    def noted(name):
        def decode(payload, turn):
            seen[name] = turn.expected[DELTA].numel()
            return payload

        return Stage(name, decode=decode)

    chain = (noted("first"), top_k(0.1), noted("last"))
    payload = messages.decode(sparse())[0]
    decode_exactly(form_of(chain, PLAN.spec), payload, fuzz_replies._TURN)
    assert seen == {"first": SIZE, "last": SIZE // 10}


def test_the_mean_of_a_metric_is_over_those_who_report_it():
    tally = Tally()
    for client, note in (("a", {"metric.loss": "4"}), ("b", {})):
        tally.add(check_reply(Reply(client, blob(note), 0.0), PLAN, CONTEXT))
    assert tally.means() == {"train_loss": 4.0}


def liar(answers):
    """The first client claims the weight of a million million clients."""
    first = answers[0]
    tensors, notes = messages.decode(first.blob)
    return [
        Reply(first.client, messages.encode(tensors, notes | {"weight": "1e18"}), 0.0),
        *answers[1:],
    ]


def test_a_weight_over_what_was_announced_is_a_failure():
    data = testing.make_data()
    plan = dataclasses.replace(testing.make_plan(), weights=Weights(Sizes(data.clients)))
    _, records = testing.run_rounds(plan, testing.make_engine(data), change=liar)
    for record in records:
        (reason,) = record.failures.values()
        assert "weight is 1e+18; allowed is" in reason and "it announced" in reason
    _, records = testing.run_rounds(plan, testing.make_engine(data))
    assert not any(record.failures for record in records)


def test_no_client_is_more_than_its_share_of_a_round():
    """Where the share is below one n-th, the mean is that of equal weights."""
    data, seen = testing.make_data(), []

    def combine(updates, context):
        found = list(updates)
        seen.append([update.weight for update in found])
        return weighted_mean(found, context)

    for share in (1.0, 0.4, 0.1):
        plan = testing.make_plan(dataclasses.replace(fedavg(), combine=combine))
        plan = dataclasses.replace(plan, weights=Weights(Sizes(data.clients), max_share=share))
        testing.run_rounds(plan, testing.make_engine(data), 1)
    free, held, equal = seen
    assert max(free) / sum(free) > 0.4 >= max(held) / sum(held) - 1e-9
    assert set(equal) == {1.0}


@pytest.mark.parametrize("change", [
    lambda delta: {DELTA: delta * float("nan")},
    lambda delta: {DELTA: delta.double()},
    lambda delta: {DELTA: delta[:-1]},
    lambda delta: {DELTA: delta, "evil": delta.clone()},
    lambda delta: {"evil": delta},
])  # fmt: skip
def test_a_site_refuses_a_broadcast_that_is_not_what_it_must_be(change):
    half = support.make_half("none", support.settings(), norm=False)
    with pytest.raises(DeltaMismatchError, match=r"not finite|found"):
        run_turn(half, messages.encode(change(torch.ones(SIZE))), fuzz_replies._TURN)


def test_foreign_text_fits_files_and_terminals():
    assert plain("a\nb\x1b[2J\ud800") == "a b\\x1b[2J\\ud800"
    assert len(plain("\x1b" * 10**6, 100)) == 100


def test_mutated_messages_are_valid_or_failures():
    worlds = fuzz_replies.make_worlds((150, 6_000))
    report = fuzz_replies.fuzz(range(3000), worlds=worlds, measured=10)
    assert report.wrong == {}
    assert report.counts["valid"] > 100 and report.counts["failure"] > 2000


def test_the_fuzzer_finds_a_gate_that_is_open():
    """The negative control: no bound of memory, of numbers, or of errors."""
    (world, *_) = fuzz_replies.make_worlds((150,))
    for take in (
        lambda blob: bytearray(len(blob) * 8 + 2**22) and Failure("a", "no"),
        lambda blob: torch.zeros(2**20) is not None and Failure("a", "no"),
        lambda blob: {DELTA: torch.full((150,), 3e38), "buffers": torch.ones(12)},
        lambda blob: json.loads(blob),
        lambda blob: Failure("a", "\ud800"),
    ):
        open_ = fuzz_replies.World("open", world.blob, world.form, take)
        assert fuzz_replies.outcome(open_, world.blob)[0] not in ("valid", "failure")
