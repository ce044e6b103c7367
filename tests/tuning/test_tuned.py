from __future__ import annotations

import support
import torch

from fedpeft.tuning.tuned import move, read_buffers, read_delta, write_buffers, write_delta


def test_moving_keeps_the_live_tensors():
    tuned = support.tuned(norm=True)
    move(tuned, "cpu")
    delta, buffers = read_delta(tuned) + 1, read_buffers(tuned) + 1
    write_delta(tuned, delta)
    write_buffers(tuned, buffers)
    live = {**dict(tuned.model.named_parameters()), **dict(tuned.model.named_buffers())}
    named = {**tuned.parameters, **tuned.buffers}
    assert all(live[name] is tensor for name, tensor in named.items())
    assert torch.equal(read_delta(tuned), delta) and torch.equal(read_buffers(tuned), buffers)
