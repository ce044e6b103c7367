"""The laws of every stage."""

from __future__ import annotations

import torch
from torch import Tensor

import fedpeft.testing.world as world
from fedpeft.client.turns import DELTA, ClientTurn, Memory
from fedpeft.core.deltas import DeltaSpec
from fedpeft.data.examples import ClientData
from fedpeft.rounds.sizes import wire_bytes
from fedpeft.wire import messages
from fedpeft.wire.stages import Stage, decode_all, encode_all, start_memory

_SPEC = DeltaSpec(("w",), ((200,),))


def check_stage(stage: Stage, *, unbiased: bool = False, feeds_back: bool = False) -> None:
    """Check the laws of a stage, on small updates and in whole rounds.

    Decoding restores shape and type, and gives finite numbers only; equal turns send equal bytes;
    arguments are not modified; the number of bytes is known before training; the order in which
    replies arrive changes nothing; a run can resume from any of its states.

    >>> from fedpeft.wire.stages import float16
    >>> check_stage(float16())

    Args:
      stage: the stage.
      unbiased: whether the mean of decoded updates over seeds should equal the update.
      feeds_back: whether what the stage leaves out should be sent later: the sum of the decoded
        updates and of the memory equals the sum of all updates.

    Raises:
      AssertionError: if a law does not hold; the message names it.
    """
    update = torch.randn(_SPEC.num_params, generator=torch.Generator().manual_seed(0))
    for name, value in {"an update": update, "a zero update": torch.zeros_like(update)}.items():
        back, _, _ = _through(stage, value)
        assert back.shape == value.shape, f"{stage.name}: decoding {name} changes its shape"
        assert back.dtype == value.dtype, f"{stage.name}: decoding {name} changes its type"
        assert bool(torch.isfinite(back).all()), f"{stage.name}: {name} comes back not finite"
    _check_purity(stage, update)
    _check_sizes(stage)
    world.check_rounds(world.make_plan(up=(stage,)), where=stage.name)
    if unbiased:
        _check_mean(stage, update)
    if feeds_back:
        _check_feedback(stage)


def _turn(seed: int = 1) -> ClientTurn:
    data = world.make_data()
    return ClientTurn(1, "client-0", ClientData(data.train, data.clients["client-0"]), {}, seed, 0)


def _through(
    stage: Stage, update: Tensor, memory: Memory | None = None, seed: int = 1
) -> tuple[Tensor, Memory, bytes]:
    """Encode an update as bytes and decode it; return the result, the new memory and the bytes."""
    kept = start_memory((stage,), _SPEC) if memory is None else memory
    payload, after = encode_all((stage,), {DELTA: update}, kept, _turn(seed))
    blob = messages.encode(payload)
    tensors, _ = messages.decode(blob)
    return decode_all((stage,), tensors, _turn(seed))[DELTA], after, blob


def _check_purity(stage: Stage, update: Tensor) -> None:
    memory = start_memory((stage,), _SPEC)
    before, kept = update.clone(), {name: value.clone() for name, value in memory.items()}
    _, after, first = _through(stage, update, memory)
    _, again, second = _through(stage, update, memory)
    assert torch.equal(update, before), f"{stage.name}: encode modifies its update"
    assert world.same_tensors(memory, kept), f"{stage.name}: encode modifies its memory"
    assert first == second, f"{stage.name}: equal turns send different bytes"
    assert world.same_tensors(after, again), f"{stage.name}: equal turns leave different memories"


def _check_sizes(stage: Stage) -> None:
    """Check that the bytes of a plan, from shapes alone, are those that are sent."""
    tuned = world.make_tuned()
    planned = wire_bytes(tuned, (stage,))
    memory = start_memory((stage,), tuned.spec)
    update = torch.randn(tuned.spec.num_params, generator=torch.Generator().manual_seed(1))
    sent, _ = encode_all((stage,), {DELTA: update}, memory, _turn())
    found = len(messages.encode(sent))
    assert planned == found, f"{stage.name}: {planned} bytes are planned, {found} are sent"


def _check_mean(stage: Stage, update: Tensor) -> None:
    draws = torch.stack([_through(stage, update, seed=seed)[0] for seed in range(400)])
    error = (draws.mean(0) - update).abs()
    bound = 5 * draws.std(0).max() / 400**0.5 + 1e-6
    assert bool((error <= bound).all()), f"{stage.name}: the mean over seeds is not the update"


def _check_feedback(stage: Stage) -> None:
    generator = torch.Generator().manual_seed(2)
    memory, sent, total = start_memory((stage,), _SPEC), torch.zeros(200), torch.zeros(200)
    for _ in range(5):
        update = torch.randn(200, generator=generator)
        back, memory, _ = _through(stage, update, memory)
        sent, total = sent + back, total + update
    kept = sum(memory.values(), torch.zeros(200))
    close = torch.allclose(sent + kept, total, rtol=1e-4, atol=1e-4)
    assert close, f"{stage.name}: the updates sent and the memory do not add up to all updates"
