"""Private rounds: plain FedAvg in the limit, noise as promised, the bound after compression."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import support
import torch

from fedpeft.client.turns import DELTA, ClientTurn
from fedpeft.core.errors import PrivacyError
from fedpeft.core.noise import seeded_root
from fedpeft.data.examples import ClientData
from fedpeft.rounds.client_half import PRIVATE_NOTES, run_turn
from fedpeft.rounds.job import Failure, Reply
from fedpeft.rounds.round import run_round
from fedpeft.server.algorithms import constant_denominator, fedavg
from fedpeft.server.sampling import sampler_of
from fedpeft.tuning.tuned import read_delta
from fedpeft.wire import messages, stages
from fedpeft.wire.private_stages import Guard, central, local

ROOT = seeded_root(5)
TURN = ClientTurn(1, "c", ClientData(support.federated().train, np.arange(1)), {}, 1, 0)


class Scripted:
    """Clients that answer with given updates; None does not answer."""

    def __init__(self, updates, chain):
        self.updates, self.chain = updates, chain

    def clients(self):
        return tuple(self.updates)

    def run(self, job):
        for client in job.cohort:
            update = self.updates[client]
            if update is None:
                yield Failure(client, "silent")
                continue
            memory = stages.start_memory(self.chain, support.tuned().spec)
            turn = dataclasses.replace(TURN, client=client, round=job.round)
            sent, _ = stages.encode_all(self.chain, {DELTA: update}, memory, turn)
            yield Reply(client, messages.encode(sent, PRIVATE_NOTES), 0.0)


def private_round(updates, chain, *, expected, sampler=None):
    spec = support.tuned().spec
    algorithm = constant_denominator(fedavg(), spec)
    plan = dataclasses.replace(
        support.plan(algorithm=algorithm, up=chain),
        expected_cohort=expected,
        min_replies=0,
        sampler=sampler_of(sampler or (lambda clients, number: tuple(clients))),
    )
    start = algorithm.init(torch.zeros(spec.num_params), torch.empty(0))
    state = dataclasses.replace(start, root=seeded_root(3))
    return run_round(state, plan, Scripted(updates, chain))


def updates_of(number, scale=1.0):
    size = support.tuned().spec.num_params
    generator = torch.Generator().manual_seed(number)
    return {f"c{i}": scale * torch.randn(size, generator=generator) for i in range(number)}


@pytest.mark.parametrize("build", [central, local])
def test_no_noise_and_no_clip_are_plain_fedavg(build):
    updates = updates_of(4)
    state, _ = private_round(updates, (build(Guard(math.inf, 0.0)),), expected=4.0)
    assert torch.allclose(state.delta, torch.stack([*updates.values()]).mean(0), rtol=1e-6)
    clipped, _ = private_round(updates, (build(Guard(0.5, 0.0)),), expected=4.0)
    assert not torch.allclose(clipped.delta, state.delta, rtol=1e-2)


def test_a_whole_private_run_without_noise_is_fedavg_with_equal_weights():
    model, data = support.tuned(), support.federated()
    chain = (central(Guard(math.inf, 0.0)),)
    half = support.make_half("none", support.settings(), False)
    turn = dataclasses.replace(TURN, data=ClientData(data.train, data.clients["client-3"]))
    broadcast = messages.encode({DELTA: read_delta(model)})
    plain, _ = run_turn(half, broadcast, turn)
    private, _ = run_turn(dataclasses.replace(half, up=chain, private=True), broadcast, turn)
    assert torch.equal(messages.decode(plain)[0][DELTA], messages.decode(private)[0][DELTA])
    assert messages.decode(private)[1] == dict(PRIVATE_NOTES)
    assert float(messages.decode(plain)[1]["weight"]) == len(turn.data) == 15


@pytest.mark.parametrize("answers", [0, 1, 4])
def test_noise_and_denominator_do_not_depend_on_who_answers(answers):
    updates = updates_of(4)
    silent = {c: u if i < answers else None for i, (c, u) in enumerate(updates.items())}
    quiet, _ = private_round(silent, (central(Guard(2.0, 0.0)),), expected=4.0)
    noisy, record = private_round(
        silent, (central(Guard(2.0, 1.5, reproducible=True)),), expected=4.0
    )
    noise = noisy.delta - quiet.delta
    everyone, _ = private_round(
        updates, (central(Guard(2.0, 1.5, reproducible=True)),), expected=4.0
    )
    reference, _ = private_round(updates, (central(Guard(2.0, 0.0)),), expected=4.0)
    assert torch.allclose(noise, everyone.delta - reference.delta, atol=1e-6)
    assert record.update_norm == pytest.approx(float(noisy.delta.norm()))
    assert float(quiet.delta.norm()) <= answers * 2.0 / 4.0 + 1e-6


def test_the_denominator_is_neither_the_cohort_nor_the_replies():
    updates = updates_of(4)
    state, _ = private_round(updates, (central(Guard(math.inf, 0.0)),), expected=7.0)
    torch.testing.assert_close(state.delta, torch.stack([*updates.values()]).sum(0) / 7)


def test_noise_of_the_mean_has_the_promised_deviation():
    stage, size = central(Guard(2.0, 1.5)), 100_000
    from fedpeft.server.state import RoundContext, Update

    zero = Update(torch.zeros(size), torch.empty(0), 8.0)
    context = RoundContext(1, (), 8.0, 1, root=ROOT)
    update, _ = stage.finish(zero, {}, context)
    assert float(update.delta.std()) == pytest.approx(1.5 * 2.0 / 8.0, rel=0.01)
    again, _ = stage.finish(zero, {}, dataclasses.replace(context, round=2))
    assert not torch.equal(update.delta, again.delta)


def test_local_noise_has_the_promised_deviation_and_is_each_clients_own():
    stage, size = local(Guard(2.0, 1.5)), 100_000
    sent = []
    for _ in range(2):
        memory = stage.init(support.tuned().spec)
        payload, kept = stage.encode({DELTA: torch.zeros(size)}, memory, TURN)
        assert torch.equal(kept["root"], memory["root"])
        sent.append(payload[DELTA])
    assert float(sent[0].std()) == pytest.approx(3.0, rel=0.01)
    assert not torch.equal(*sent)  # the turn's seed, which the server knows, does not give it


def test_reproducible_local_noise_comes_from_the_turn():
    stage = local(Guard(1.0, 1.0, reproducible=True))
    first, again = (stage.encode({DELTA: torch.zeros(9)}, {}, TURN)[0] for _ in range(2))
    assert torch.equal(first[DELTA], again[DELTA])


@pytest.mark.parametrize("after", [stages.int8(chunk=4), stages.float16()], ids=lambda s: s.name)
def test_the_bound_holds_after_compression_because_the_server_clips_again(after):
    chain = (central(Guard(0.5, 0.0)), after)
    longest_decoded, longest_used = 0.0, 0.0
    for seed in range(20):
        update = torch.randn(64, generator=torch.Generator().manual_seed(seed))
        turn = dataclasses.replace(TURN, seed=seed)
        sent, _ = stages.encode_all(chain, {DELTA: update}, {}, turn)
        decoded = stages.decode_all(chain[1:], sent, turn)[DELTA]
        used = stages.decode_all(chain, sent, turn)[DELTA]
        longest_decoded = max(longest_decoded, float(decoded.double().norm()))
        longest_used = max(longest_used, float(used.double().norm()))
    assert longest_used <= 0.5
    assert longest_decoded > 0.5  # without the second clip the bound breaks


def test_a_client_that_ignores_the_clip_is_clipped_by_the_server():
    cheating = dataclasses.replace(central(Guard(1.0, 0.0)), encode=stages.Stage("x").encode)
    updates = updates_of(1, scale=100.0)
    state, _ = private_round(updates, (cheating,), expected=1.0)
    assert float(state.delta.norm()) <= 1.0


def test_an_empty_private_round_is_noised_and_counted():
    state, record = private_round(
        updates_of(2), (central(Guard(1.0, 1.0)),), expected=2.0, sampler=lambda c, n: ()
    )
    assert (state.round, record.cohort, record.bytes_up) == (1, (), 0)
    assert float(state.delta.norm()) > 0


def test_a_server_without_its_secret_adds_no_noise_that_can_be_guessed():
    from fedpeft.server.state import RoundContext, Update

    zero = Update(torch.zeros(9), torch.empty(0), 8.0)
    with pytest.raises(PrivacyError, match=r"root of the noise has 0 bytes; 32 are needed"):
        central(Guard(1.0, 1.0)).finish(zero, {}, RoundContext(1, (), 8.0, 1))
    quiet, _ = central(Guard(1.0, 0.0)).finish(zero, {}, RoundContext(1, (), 8.0, 1))
    assert torch.equal(quiet.delta, zero.delta)


def released(updates, *, state=1.0, guard=None):
    """The noise that the server adds to a sum: one checkpoint back, with these updates."""
    spec = support.tuned().spec
    guard = guard or Guard(2.0, 1.5)
    algorithm = constant_denominator(fedavg(), spec)
    plan = dataclasses.replace(
        support.plan(algorithm=algorithm), expected_cohort=4.0, min_replies=0,
        sampler=sampler_of(lambda clients, number: tuple(clients)),
    )  # fmt: skip
    start = algorithm.init(torch.full((spec.num_params,), state), torch.empty(0))
    start = dataclasses.replace(start, root=ROOT)
    quiet = dataclasses.replace(guard, noise_multiplier=0.0)
    clean, noisy = (
        run_round(start, dataclasses.replace(plan, up=chain), Scripted(updates, chain))[0].delta
        for chain in ((central(quiet),), (central(guard),))
    )
    return noisy - clean


def test_one_checkpoint_back_equal_values_repeat_their_noise_and_others_draw_anew():
    """If equal noise lay on other data, the difference of the two releases would be the data."""
    updates = updates_of(4)
    changed = {**updates, "c3": updates["c3"] * torch.linspace(0.999, 1.001, len(updates["c3"]))}
    first = released(updates)
    assert torch.equal(first, released(updates))
    others = (
        released(changed), released(updates, state=1.5), released({}),
        released(updates, guard=Guard(2.0, 1.5000001)),
    )  # fmt: skip
    assert all(float((first - other).norm() / first.norm()) > 0.5 for other in others)


def test_noise_from_the_seed_stays_the_same_for_parity():
    """The negative control: on other data, noise that follows from the seed alone is equal."""
    guard, updates = Guard(2.0, 1.5, reproducible=True), updates_of(4)
    silent = {**updates, "c3": None}
    first, other = (released(each, guard=guard) for each in (updates, silent))
    torch.testing.assert_close(first, other, atol=1e-6, rtol=0)


def test_empty_rounds_of_different_states_get_different_noise():
    first, other = released({}), released({}, state=2.0)
    assert float((first - other).norm() / first.norm()) > 0.5


@pytest.mark.parametrize(
    "change", [{"origin": "b"}, {"round": 2}, {"client": "d"}, {"seed": 2}, {"version": 1}]
)
def test_local_noise_is_keyed_by_the_turn_and_by_the_update(change):
    stage, size = local(Guard(2.0, 1.5)), 1000
    memory = {"root": ROOT}

    def noise(turn, value):
        update = torch.full((size,), value)
        clipped = local(Guard(2.0, 0.0)).encode({DELTA: update}, memory, turn)[0][DELTA]
        return stage.encode({DELTA: update}, memory, turn)[0][DELTA] - clipped

    first = noise(TURN, 1e-3)
    assert torch.equal(first, noise(TURN, 1e-3))
    for other in (noise(dataclasses.replace(TURN, **change), 1e-3), noise(TURN, 2e-3)):
        assert float((first - other).norm() / first.norm()) > 0.5
