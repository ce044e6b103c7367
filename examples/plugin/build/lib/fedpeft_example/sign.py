"""One bit a number, with error feedback: what rounding loses is added to the next update.

    p = update + error      sent = mean|p| sign(p)      error <- p - sent

References:
  Karimireddy et al., Error Feedback Fixes SignSGD and other Gradient Compression Schemes,
  ICML 2019, Algorithm 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpeft import Stage
from fedpeft.client.turns import DELTA, ClientTurn, Memory, Payload
from fedpeft.core.deltas import DeltaSpec

__all__ = ["sign"]

_BITS = (1, 2, 4, 8, 16, 32, 64, 128)


def sign() -> Stage:
    """Send the signs of the delta and one scale: an eighth of a byte a number."""

    def init(spec: DeltaSpec) -> Memory:
        return {"error": torch.zeros(spec.num_params, dtype=spec.dtype)}

    def encode(payload: Payload, memory: Memory, turn: ClientTurn) -> tuple[Payload, Memory]:
        total_P = payload[DELTA] + memory["error"]
        scale = total_P.abs().mean()
        signs_P = torch.where(total_P >= 0, 1.0, -1.0)
        sent = {
            DELTA: _pack(total_P >= 0),
            "delta.scale": scale.reshape(1),
            "delta.size": torch.tensor([total_P.numel()], dtype=torch.int32),
        }
        return {**payload, **sent}, {"error": total_P - scale * signs_P}

    def decode(payload: Payload, turn: ClientTurn) -> Payload:
        size, packed = int(payload["delta.size"]), payload[DELTA]
        if not 0 < size <= 8 * packed.numel() < size + 8 or packed.dtype != torch.uint8:
            raise ValueError(f"sign: {packed.numel()} bytes came for {size} numbers")
        signs_P = torch.where(_unpack(packed)[:size], 1.0, -1.0)
        rest = {k: v for k, v in payload.items() if k not in ("delta.scale", "delta.size")}
        return {**rest, DELTA: payload["delta.scale"] * signs_P}

    return Stage("sign", init=init, encode=encode, decode=decode)


def _pack(bits_P: Tensor) -> Tensor:
    """Pack booleans [P] into bytes [ceil(P / 8)]."""
    padded = F.pad(bits_P.to(torch.int32), (0, -bits_P.numel() % 8)).reshape(-1, 8)
    return (padded * torch.tensor(_BITS, dtype=torch.int32)).sum(1).to(torch.uint8)


def _unpack(packed: Tensor) -> Tensor:
    """Unpack bytes [N] into booleans [8 N]."""
    masks = torch.tensor(_BITS, dtype=torch.uint8)
    return ((packed.unsqueeze(1) & masks) != 0).reshape(-1)
