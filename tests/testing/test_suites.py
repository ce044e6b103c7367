"""The conformance suites: our own parts pass, and each law sees what breaks it."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from fedpeft import testing
from fedpeft.client.turns import DELTA
from fedpeft.data.schemes import PARTITIONS, Deal
from fedpeft.engines.local import LocalEngine
from fedpeft.experiment.tables import ALGORITHMS, SAMPLERS, STAGES
from fedpeft.rounds.job import Reply
from fedpeft.server.algorithms import fedavg, weighted_mean
from fedpeft.server.sampling import Sampler, fixed
from fedpeft.tuning.methods import METHODS
from fedpeft.wire import stages
from fedpeft.wire.stages import Stage

PROMISES = {"int8": {"unbiased": True}, "top_k": {"feeds_back": True}}


@pytest.mark.parametrize("name", STAGES)
def test_our_stages_conform(name):
    testing.check_stage(STAGES[name](), **PROMISES.get(name, {}))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_our_algorithms_conform(name):
    testing.check_algorithm(ALGORITHMS[name]())


@pytest.mark.parametrize("name", SAMPLERS)
def test_our_samplers_conform(name):
    testing.check_sampler(SAMPLERS[name]())


@pytest.mark.parametrize("name", [name for name, row in PARTITIONS.items() if row.deal])
def test_our_partitions_conform(name):
    testing.check_partition(PARTITIONS[name])


@pytest.mark.parametrize("name", ["head", "bias", "adapter", "lora"])
def test_our_methods_conform(name):
    testing.check_method(METHODS[name], name=name)


def test_the_local_engine_conforms():
    testing.check_engine(lambda half, data: LocalEngine(half, data, block=2))


def _loses_shape(payload, turn):
    return {DELTA: payload[DELTA][:-1]}


def _in_place(payload, memory, turn):
    payload[DELTA].mul_(0.5)
    return payload, memory


def _grows(payload, memory, turn):
    extra = payload[DELTA].abs().gt(0.5).nonzero().flatten()  # as long as the values decide
    return {**payload, "delta.extra": extra}, memory


counter = itertools.count()


def _restless(payload, memory, turn):
    return {DELTA: payload[DELTA] + next(counter)}, memory


@pytest.mark.parametrize(
    ("stage", "promises", "law"),
    [
        (Stage("x", decode=_loses_shape), {}, "decoding an update changes its shape"),
        (Stage("x", encode=_in_place), {}, "encode modifies its update"),
        (Stage("x", encode=_restless), {}, "equal turns send different bytes"),
        (stages.float16(), {"feeds_back": True}, "the updates sent and the memory do not add up"),
        (stages.top_k(0.5), {"unbiased": True}, "the mean over seeds is not the update"),
    ],
)
def test_a_stage_that_breaks_a_law_is_seen(stage, promises, law):
    with pytest.raises(AssertionError, match=law):
        testing.check_stage(stage, **promises)


def test_a_stage_whose_length_follows_the_values_cannot_be_planned():
    with pytest.raises(Exception, match=r"data-dependent|bytes are planned|nonzero"):
        testing.check_stage(Stage("x", encode=_grows, decode=lambda p, t: {DELTA: p[DELTA]}))


def _only_first(updates, context):
    first, *_ = updates
    return weighted_mean([first], context)


def _last_weight(updates, context):
    found = list(updates)
    for update in found:
        update.payload[DELTA].mul_(update.weight)
    return weighted_mean(found, context)


@pytest.mark.parametrize(
    ("changes", "law"),
    [
        ({"combine": _only_first}, "the update of client-1 changes nothing"),
        ({"combine": _last_weight}, "modifies its updates"),
        ({"apply": lambda state, update: state}, "does not count the round"),
    ],
)
def test_an_algorithm_that_breaks_a_law_is_seen(changes, law):
    with pytest.raises(AssertionError, match=law):
        testing.check_algorithm(dataclasses.replace(fedavg(), **changes))


def _observe_in_place(memory, draw, metrics):
    if "seen" in memory:
        memory["seen"].add_(1)
    return {"seen": memory.get("seen", torch.zeros(1))}


@pytest.mark.parametrize(
    ("sampler", "law"),
    [
        (Sampler(lambda clients, memory, draw: clients[:1] * 2), "appears twice"),
        (Sampler(lambda clients, memory, draw: ["nobody"]), "not all clients of the run"),
        (Sampler(lambda c, memory, draw: [c[next(counter) % 10]]), "equal draws differ"),
        (
            dataclasses.replace(fixed(), observe=_observe_in_place),
            "observe: it modifies its memory",
        ),
    ],
)
def test_a_sampler_that_breaks_a_law_is_seen(sampler, law):
    with pytest.raises(AssertionError, match=law):
        testing.check_sampler(sampler)


def _twice(labels, request, tries):
    parts = np.array_split(np.random.RandomState(request.seed).permutation(len(labels)), 9)
    return Deal([*parts, parts[0]], 1, 40)


def _seedless(labels, request, tries):
    return Deal(np.array_split(np.arange(len(labels)), 10), 1, 40)


@pytest.mark.parametrize(
    ("deal", "law"), [(_twice, "given twice"), (_seedless, "another seed deals the same")]
)
def test_a_partition_that_breaks_a_law_is_seen(deal, law):
    with pytest.raises(AssertionError, match=law):
        testing.check_partition(dataclasses.replace(PARTITIONS["iid"], deal=deal))


def test_a_method_whose_options_move_is_seen():
    row = METHODS["bias"]

    def resolve(options):
        found = row.resolve({})
        return dataclasses.replace(found, options={**found.options, "n": len(options)})

    with pytest.raises(AssertionError, match="resolving them twice"):
        testing.check_method(dataclasses.replace(row, resolve=resolve))


def test_an_engine_that_changes_replies_is_seen():
    class Lossy(LocalEngine):
        def run(self, job):
            for answer in super().run(job):
                start, end = answer.blob[:-60], answer.blob[-56:]
                yield Reply(answer.client, start + bytes(4) + end, 0.0)

    with pytest.raises(AssertionError, match=r"no stage: (another state|other metrics)"):
        testing.check_engine(lambda half, data: Lossy(half, data))
