from __future__ import annotations

import pytest
import support
import torch

from fedpeft.client.turns import DELTA, ClientTurn
from fedpeft.core.deltas import DeltaSpec
from fedpeft.core.errors import ConfigError
from fedpeft.data.examples import ClientData
from fedpeft.wire import messages, stages
from fedpeft.wire.stages import decode_all, encode_all, start_memory

SPEC = DeltaSpec.of({"a": torch.zeros(100)})


def turn(seed=1):
    data = support.federated()
    return ClientTurn(1, "client-0", ClientData(data.train, data.clients["client-0"]), {}, seed, 0)


def through(chain, update, memory=None, seed=1):
    """Encode, send as bytes, decode."""
    memory = start_memory(chain, SPEC) if memory is None else memory
    payload, kept = encode_all(chain, {DELTA: update}, memory, turn(seed))
    sent, _ = messages.decode(messages.encode(payload))
    return decode_all(chain, sent, turn(seed))[DELTA], kept


@pytest.mark.parametrize("chain", support.STAGES.values(), ids=support.STAGES)
def test_decoding_restores_shape_type_and_rough_value(chain):
    update = torch.randn(100, generator=torch.Generator().manual_seed(0))
    back, _ = through(chain, update)
    assert back.shape == update.shape and back.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(back, update, dim=0) > 0.7
    assert torch.isfinite(through(chain, torch.zeros(100))[0]).all()


def test_float16_error_is_within_half_precision():
    update = torch.randn(100)
    back, _ = through((stages.float16(),), update)
    assert ((back - update).abs() <= update.abs() * 2**-11 + 1e-7).all()


def test_int8_is_unbiased_and_bounded():
    update = torch.randn(100, generator=torch.Generator().manual_seed(0))
    chain = (stages.int8(chunk=100),)
    draws = torch.stack([through(chain, update, seed=s)[0] for s in range(400)])
    scale = update.abs().max() / 127
    assert ((draws - update).abs() <= scale * 1.001).all()
    assert ((draws.mean(0) - update).abs() < 4 * scale / 400**0.5).all()
    assert draws.std(0).max() > 0


def test_top_k_loses_nothing_over_time():
    chain = (stages.top_k(0.1),)
    generator = torch.Generator().manual_seed(0)
    updates = [torch.randn(100, generator=generator) for _ in range(5)]
    memory, sent = start_memory(chain, SPEC), torch.zeros(100)
    for update in updates:
        back, memory = through(chain, update, memory)
        assert int((back != 0).sum()) == 10
        sent += back
    (residual,) = memory.values()
    torch.testing.assert_close(sent + residual, sum(updates))
    assert residual.norm() > 0


def test_stages_keep_apart_memories():
    chain = (stages.top_k(0.5), stages.top_k(0.5))
    payload, kept = encode_all(
        chain[:1], {DELTA: torch.randn(100)}, start_memory(chain[:1], SPEC), turn()
    )
    assert list(kept) == ["0.top_k.residual"]
    assert list(start_memory(chain, SPEC)) == ["0.top_k.residual", "1.top_k.residual"]
    assert payload[DELTA].numel() == 50


@pytest.mark.parametrize(
    ("build", "words"),
    [(lambda: stages.int8(0), "found chunk = 0"), (lambda: stages.top_k(0.0), "fraction = 0.0")],
)
def test_options_out_of_range_are_refused(build, words):
    with pytest.raises(ConfigError, match=words):
        build()


@pytest.mark.parametrize(
    "change",
    [
        {"delta.places": torch.tensor([-1, 3], dtype=torch.int32)},
        {"delta.places": torch.tensor([1, 20], dtype=torch.int32)},
        {"delta.size": torch.tensor([2**31 - 1], dtype=torch.int32)},
        {"delta.size": torch.tensor([-20], dtype=torch.int32)},
        {"delta": torch.ones(3)},
    ],
)
def test_places_that_cannot_be_are_refused(change):
    honest = {
        "delta": torch.ones(2),
        "delta.places": torch.tensor([1, 3], dtype=torch.int32),
        "delta.size": torch.tensor([20], dtype=torch.int32),
    }
    stage = stages.top_k(0.1)
    assert stage.decode(honest, None)["delta"].nonzero().flatten().tolist() == [1, 3]
    with pytest.raises(ValueError, match=r"top_k: "):
        stage.decode({**honest, **change}, None)
