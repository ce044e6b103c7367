"""The laws of every algorithm."""

from __future__ import annotations

import torch

import fedpeft.testing.world as world
from fedpeft.client.turns import DELTA
from fedpeft.server.state import Algorithm, ClientUpdate, RoundContext
from fedpeft.tuning.tuned import read_buffers, read_delta


def check_algorithm(algorithm: Algorithm) -> None:
    """Check the laws of an algorithm, on updates and in whole rounds.

    The state consists of tensors and counts its rounds; arguments are not modified; the order in
    which replies arrive changes nothing; a run can resume from any of its states; every client's
    update changes the result.

    >>> from fedpeft.server.algorithms import fedavg
    >>> check_algorithm(fedavg(lr=0.5))

    Args:
      algorithm: the algorithm.

    Raises:
      AssertionError: if a law does not hold; the message names it.
    """
    model = world.make_tuned()
    start = algorithm.init(read_delta(model), read_buffers(model))
    assert start.round == 0, "init: the state before round 1 has round = 0"
    spec, count = model.spec, 4
    generator = torch.Generator().manual_seed(0)
    names = tuple(f"client-{i}" for i in range(count))
    updates = [
        ClientUpdate(
            name, {DELTA: torch.randn(spec.num_params, generator=generator)}, 1.0 + i, spec
        )
        for i, name in enumerate(names)
    ]
    context = RoundContext(1, names, float(count), 1)
    sent = algorithm.broadcast(start, names[0])
    spec.check_flat(sent[DELTA])
    before = [update.payload[DELTA].clone() for update in updates]
    delta_before = start.delta.clone()
    combined = algorithm.combine(iter(updates), context)
    spec.check_flat(combined.delta)
    after = algorithm.apply(start, combined)
    same = all(torch.equal(u.payload[DELTA], b) for u, b in zip(updates, before, strict=True))
    assert same, "combine: it modifies its updates"
    assert torch.equal(start.delta, delta_before), "apply: it modifies its state"
    assert after.round == 1, "apply: it does not count the round"
    spec.check_flat(after.delta)
    assert bool(torch.isfinite(after.delta).all()), "apply: the new delta is not finite"
    again = algorithm.apply(start, algorithm.combine(iter(updates), context))
    assert world.same_state(after, again), "combine, apply: equal updates give different states"
    _check_everyone_matters(algorithm, updates, context)
    world.check_rounds(world.make_plan(algorithm), where="rounds")


def _check_everyone_matters(
    algorithm: Algorithm, updates: list[ClientUpdate], context: RoundContext
) -> None:
    """Check that leaving out any client changes the result."""
    whole = algorithm.combine(iter(updates), context).delta
    for left_out in updates:
        rest = [update for update in updates if update is not left_out]
        part = algorithm.combine(iter(rest), context).delta
        assert not torch.equal(whole, part), (
            f"combine: the update of {left_out.client} changes nothing"
        )
