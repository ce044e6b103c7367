"""Stages: transforms of a payload between a client and the aggregate.

    client   update ──encode──> encode ──> bytes
    server   update <──decode── decode <── bytes      (reversed)
             finish, once a round, reversed

A stage has a client half and a server half; each defaults to the identity. The same type serves the
way from server to client, with the sides exchanged: the server encodes, the client decodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.client.turns import DELTA, ClientTurn, Memory, Payload, part_of, under
from fedpeft.core import seeds
from fedpeft.core.deltas import DeltaSpec
from fedpeft.core.errors import ConfigError
from fedpeft.server.state import RoundContext, Update

Encode = Callable[[Payload, Memory, ClientTurn], tuple[Payload, Memory]]
Decode = Callable[[Payload, ClientTurn], Payload]
Finish = Callable[[Update, Memory, RoundContext], tuple[Update, Memory]]


@dataclass(frozen=True)
class Stage:
    """One transform between client and aggregate.

    Attributes:
      name: name of the stage, as in the experiment's file.
      init: delta's spec -> the memory with which a client starts.
      encode: the client half: (payload, memory, turn) -> (payload, memory); stages run in order.
      decode: the server half for each reply: (payload, turn) -> payload; in reversed order. It
        gives back the tensors of `turn.expected`, and takes no memory beyond theirs because of what
        a message claims.
      finish: the server half once a round: (update, memory, context) -> (update, memory); in
        reversed order.
      keeps_shapes: whether `encode` changes no name, type or shape, so that the form of messages is
        known without it.
    """

    name: str
    init: Callable[[DeltaSpec], Memory] = lambda spec: {}
    encode: Encode = lambda payload, memory, turn: (payload, memory)
    decode: Decode = lambda payload, turn: payload
    finish: Finish = lambda update, memory, context: (update, memory)
    keeps_shapes: bool = False


def start_memory(stages: Sequence[Stage], spec: DeltaSpec) -> Memory:
    """Return the memory, for all stages, of a client before its first turn."""
    kept: dict[str, Tensor] = {}
    for i, stage in enumerate(stages):
        kept |= under(f"{i}.{stage.name}.", stage.init(spec))
    return kept


def encode_all(
    stages: Sequence[Stage], payload: Payload, memory: Memory, turn: ClientTurn
) -> tuple[Payload, Memory]:
    """Run the client halves in order; each gets its own part of the memory."""
    kept: dict[str, Tensor] = {}
    for i, stage in enumerate(stages):
        prefix = f"{i}.{stage.name}."
        payload, part = stage.encode(payload, part_of(memory, prefix), turn)
        kept |= under(prefix, part)
    return payload, kept


def decode_all(stages: Sequence[Stage], payload: Payload, turn: ClientTurn) -> Payload:
    """Run the server halves of one reply, in reversed order."""
    for stage in reversed(stages):
        payload = stage.decode(payload, turn)
    return payload


def finish_all(
    stages: Sequence[Stage], update: Update, memory: Memory, context: RoundContext
) -> tuple[Update, Memory]:
    """Run the once-a-round server halves, in reversed order."""
    kept = dict(memory)
    for i, stage in reversed(list(enumerate(stages))):
        prefix = f"stage.{i}.{stage.name}."
        update, part = stage.finish(update, part_of(kept, prefix), context)
        kept |= under(prefix, part)
    return update, kept


def float16() -> Stage:
    """Send the delta as IEEE half precision: two bytes a number, relative error up to 2**-11.

    Numbers beyond 65,504 become infinite, and an infinite update is refused as a failure.
    """

    def encode(payload: Payload, memory: Memory, turn: ClientTurn) -> tuple[Payload, Memory]:
        return {**payload, DELTA: payload[DELTA].to(torch.float16)}, memory

    def decode(payload: Payload, turn: ClientTurn) -> Payload:
        return {**payload, DELTA: payload[DELTA].to(torch.float32)}

    return Stage("float16", encode=encode, decode=decode)


def int8(chunk: int = 256) -> Stage:
    """Send the delta as signed bytes with a float32 scale for each chunk, rounded without bias.

    q = floor(x / scale + u), u uniform in [0, 1) from the turn's seed, so that E[q * scale] = x.

    Args:
      chunk: numbers that share a scale, >= 1.

    References:
      Alistarh et al., QSGD: Communication-Efficient SGD via Gradient Quantization, NeurIPS 2017.
    """
    if chunk < 1:
        raise ConfigError(f"int8: found chunk = {chunk}, allowed is 1 or more")

    def encode(payload: Payload, memory: Memory, turn: ClientTurn) -> tuple[Payload, Memory]:
        rows = _rows(payload[DELTA], chunk)
        scales = rows.abs().amax(1, keepdim=True) / 127
        safe = torch.where(scales > 0, scales, torch.ones_like(scales))
        noise = torch.rand(rows.shape, generator=seeds.generator(turn.seed, "int8"))
        levels = (rows / safe + noise).floor().clamp(-127, 127).to(torch.int8)
        flat = levels.reshape(-1)[: payload[DELTA].numel()]
        return {**payload, DELTA: flat, "delta.scales": scales.reshape(-1)}, memory

    def decode(payload: Payload, turn: ClientTurn) -> Payload:
        levels, scales = payload[DELTA], payload["delta.scales"]
        if len(scales) != -(-len(levels) // chunk):
            raise ValueError(f"int8: found {len(scales)} scales for {len(levels)} numbers")
        if not bool(torch.isfinite(scales).all()) or bool((scales < 0).any()):
            raise ValueError(
                "int8: a scale is negative or not finite (training diverged: lower client.lr)"
            )
        rows = _rows(levels.to(torch.float32), chunk)
        flat = (rows * scales.unsqueeze(1)).reshape(-1)
        rest = {key: value for key, value in payload.items() if key != "delta.scales"}
        return {**rest, DELTA: flat[: payload[DELTA].numel()]}

    return Stage("int8", encode=encode, decode=decode)


def _rows(flat: Tensor, chunk: int) -> Tensor:
    """Divide a flat tensor into rows of `chunk` numbers; the last row is padded with zeros."""
    return torch.nn.functional.pad(flat, (0, -flat.numel() % chunk)).view(-1, chunk)


def top_k(fraction: float = 0.1) -> Stage:
    """Send the largest coordinates only; the rest is added to the client's next update.

    Args:
      fraction: share of the coordinates that is sent, in (0, 1]; at least one is sent.

    References:
      Stich et al., Sparsified SGD with Memory, NeurIPS 2018.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"top_k: found fraction = {fraction}, allowed is above 0 and up to 1")

    def init(spec: DeltaSpec) -> Memory:
        return {"residual": torch.zeros(spec.num_params, dtype=spec.dtype)}

    def encode(payload: Payload, memory: Memory, turn: ClientTurn) -> tuple[Payload, Memory]:
        total = payload[DELTA] + memory["residual"]
        count = max(1, round(fraction * total.numel()))
        places = total.abs().topk(count).indices.sort().values
        residual = total.clone()
        residual[places] = 0
        sent = {DELTA: total[places], "delta.places": places.to(torch.int32)}
        size = torch.tensor([total.numel()], dtype=torch.int32)
        return {**payload, **sent, "delta.size": size}, {"residual": residual}

    def decode(payload: Payload, turn: ClientTurn) -> Payload:
        size, places = int(payload["delta.size"]), payload["delta.places"].long()
        expected = turn.expected.get(DELTA) if turn else None  # none outside a round
        if expected is not None and size != expected.numel():
            raise ValueError(f"top_k: its delta claims {size} numbers, not {expected.numel()}")
        if len(places) != max(1, round(fraction * size)) or len(places) != len(payload[DELTA]):
            raise ValueError(f"top_k: found {len(places)} of {size} places, not {fraction} of them")
        if not 0 <= int(places.min()) <= int(places.max()) < size:
            raise ValueError(f"top_k: places {int(places.min())} to {int(places.max())} of {size}")
        if not bool((places[1:] > places[:-1]).all()):
            raise ValueError("top_k: places are not in order, each once")
        full = torch.zeros(size, dtype=payload[DELTA].dtype)
        full[places] = payload[DELTA]
        rest = {k: v for k, v in payload.items() if k not in ("delta.places", "delta.size")}
        return {**rest, DELTA: full}

    return Stage("top_k", init=init, encode=encode, decode=decode)
