"""Send mutated messages through the gate: each must come out valid and bounded, or as a failure.

    honest message ──mutate, by (seed, number)──> gate ──> valid | failure | neither

    python scripts/fuzz_replies.py --count 200000             # prints the number that are neither
    python scripts/fuzz_replies.py --count 50000 --start 150000    # goes on after a stop

Memory is measured for each message: what Python takes (tracemalloc) and what torch takes, over
4 x (bytes of the message + bytes of the dense delta) + 1 MiB counts as neither.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import struct
import sys
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedpeft.client.turns import BUFFERS, DELTA, ClientTurn, LocalResult, Memory, Payload
from fedpeft.core.deltas import DeltaSpec
from fedpeft.core.errors import DeltaMismatchError
from fedpeft.core.noise import draw_root
from fedpeft.data.examples import NO_DATA
from fedpeft.rounds.client_half import ClientHalf, reply_notes, run_turn
from fedpeft.rounds.gate import Checked, check_reply
from fedpeft.rounds.job import Failure, Reply
from fedpeft.rounds.round_plan import RoundPlan
from fedpeft.server.algorithms import fedavg
from fedpeft.server.sampling import fixed
from fedpeft.server.state import RoundContext
from fedpeft.wire import messages
from fedpeft.wire.forms import Form, form_of
from fedpeft.wire.private_stages import Guard, central, local
from fedpeft.wire.stages import Stage, encode_all, float16, int8, start_memory, top_k

__all__ = ["Report", "World", "fuzz", "make_worlds", "mutated", "outcome"]

_TURN = ClientTurn(1, "a", NO_DATA, {}, seed=1, version=0)
_CONTEXT = RoundContext(1, ("a",), 1.0, 1)
_LARGEST = 1e15


def packed() -> Stage:
    """Compress the delta; its length follows the numbers, so only `expected` bounds it."""

    def encode(payload: Payload, memory: Memory, turn: ClientTurn) -> tuple[Payload, Memory]:
        data = zlib.compress(payload[DELTA].numpy().tobytes())
        return {**payload, DELTA: torch.frombuffer(bytearray(data), dtype=torch.uint8)}, memory

    def decode(payload: Payload, turn: ClientTurn) -> Payload:
        expected = turn.expected[DELTA]
        most = expected.numel() * expected.element_size()
        if payload[DELTA].dtype != torch.uint8:
            raise ValueError("packed: found no bytes")
        data = zlib.decompressobj().decompress(payload[DELTA].numpy().tobytes(), most)
        return {**payload, DELTA: torch.frombuffer(bytearray(data), dtype=torch.float32)}

    return Stage("packed", encode=encode, decode=decode)


CHAINS: Mapping[str, tuple[Stage, ...]] = {
    "plain": (),
    "float16": (float16(),),
    "int8": (int8(64),),
    "top_k": (top_k(0.1),),
    "top_k+int8": (top_k(0.2), int8(16)),
    "top_k+float16": (top_k(0.2), float16()),
    "central": (central(Guard(1.0, 0.5)),),
    "central+int8": (central(Guard(1.0, 0.5)), int8(64)),
    "local+top_k": (local(Guard(1.0, 0.5)), top_k(0.5)),
    "packed": (packed(),),
}


@dataclass(frozen=True)
class World:
    """One kind of message, an honest one, and the gate that it passes.

    Attributes:
      name: its stages and the size of its delta.
      blob: an honest message.
      form: the form of such messages.
      take: message -> what comes out of the gate.
    """

    name: str
    blob: bytes
    form: Form
    take: Callable[[bytes], Checked | Failure | Payload]

    @property
    def dense(self) -> Mapping[str, Tensor]:
        """The tensors of a valid payload, without numbers."""
        assert self.form.steps[0] is not None
        return self.form.steps[0]


def make_worlds(sizes: Sequence[int] = (150, 60_000)) -> list[World]:
    """Make replies of every chain of stages for deltas of some sizes, and broadcasts."""
    worlds = []
    for size in sizes:
        for name, chain in CHAINS.items():
            buffers = 12 if name in ("plain", "top_k", "int8") else 0
            worlds.append(_reply_world(f"{name}/{size}", chain, size, buffers))
        for name in ("plain", "float16", "int8"):
            worlds.append(_broadcast_world(f"broadcast {name}/{size}", CHAINS[name], size))
    return worlds


def _honest(
    chain: Sequence[Stage], spec: DeltaSpec, buffers: int, notes: Mapping[str, str]
) -> bytes:
    generator = torch.Generator().manual_seed(spec.num_params)
    payload = {DELTA: torch.randn(spec.num_params, generator=generator) / 8}
    if buffers:
        payload[BUFFERS] = torch.rand(buffers, generator=generator)
    memory = {**start_memory(chain, spec)}
    for name in memory:
        if name.endswith("root"):
            memory[name] = draw_root()
    return messages.encode(encode_all(chain, payload, memory, _TURN)[0], notes)


def _specs(size: int, buffers: int) -> tuple[DeltaSpec, DeltaSpec]:
    return DeltaSpec(("w",), ((size,),)), DeltaSpec(
        ("b",) * bool(buffers), ((buffers,),) * bool(buffers)
    )


def _reply_world(name: str, chain: Sequence[Stage], size: int, buffers: int) -> World:
    spec, buffer_spec = _specs(size, buffers)
    plan = RoundPlan(fedavg(), fixed(), spec, buffer_spec, 1, 1.0, up=chain)
    form = form_of(chain, spec, buffer_spec)

    def take(blob: bytes) -> Checked | Failure:
        return check_reply(Reply("a", blob, 0.0), plan, _CONTEXT)

    return World(name, _honest(chain, spec, buffers, reply_notes(9.0, {"loss": 0.5})), form, take)


def _broadcast_world(name: str, chain: Sequence[Stage], size: int) -> World:
    spec, buffer_spec = _specs(size, 0)
    seen: list[Payload] = []

    def trainer(broadcast: Payload, turns: Sequence[ClientTurn]) -> Iterator[LocalResult]:
        seen.append(broadcast)
        yield LocalResult({DELTA: torch.zeros(1)}, 1.0, {})

    half = ClientHalf(trainer, (), chain, spec, buffer_spec=buffer_spec)

    def take(blob: bytes) -> Payload | Failure:
        try:
            run_turn(half, blob, _TURN)
        except DeltaMismatchError as error:
            return Failure("a", str(error)[:500])
        return seen.pop()

    return World(name, _honest(chain, spec, 0, {}), form_of(chain, spec, buffer_spec), take)


# what a hostile header, note or tensor may hold

_VALUES: Sequence[Any] = (
    None, True, False, 0, -1, 1, 1.0, -0.0, 1e308, float("nan"), float("inf"), 2**31, 2**53,
    2**63, 10**30,
    10**400, "", "x", "F32", "F64", "I8", "BOOL", "\ud800", "\x00", "\x1b[2J", "漢", "9" * 500,
    "x" * 5000, [], {},
    [[]], [0], ["x", 200_000_000], [10**30, 8, "x"], [-1], [0, 10**18], [2**31, 2**31, 0], [[1]],
    {"a": []},
    [1] * 3000, [0, 4], [4, 0], [0, 2**62],
)  # fmt: skip
_NOTES: Sequence[tuple[str, Any]] = (
    ("weight", "1e300"), ("weight", "1e18"), ("weight", "nan"), ("weight", "-1"), ("weight",
    "0"), ("weight", ""),
    ("weight", "1_0"), ("weight", " 1 "), ("weight", "\u0661"), ("weight", "9" * 4000),
    ("weight", 5), ("weight", None),
    ("weight", "0x10"), ("weight", "infinity"), ("weight", "1e-400"), ("metric.loss", "abc"),
    ("metric.loss", "nan"),
    ("metric.loss", "1e300"), ("metric.loss", "-inf"), ("metric.loss", [1]), ("metric.evil",
    "7"), ("metric.", "1"),
    ("\ud800", "1"), ("metric.\ud800", "1"), ("weight", "\ud800"), ("x" * 9000, "y"), ("a",
    "x" * 2**20), ("", ""),
)  # fmt: skip
_NUMBERS = (np.nan, np.inf, -np.inf, 3e38, 1e16, -1.0, 0.0, 2**31 - 1, -(2**31), 127, -128, 1e-45)


def _split(blob: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack_from("<Q", blob)
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def _joined(header: object, data: bytes, text: str | None = None) -> bytes:
    written = (json.dumps(header) if text is None else text).encode(errors="surrogatepass")
    written += b" " * (-len(written) % 8)
    return struct.pack("<Q", len(written)) + written + data


def _bytes(draw: random.Random, blob: bytes) -> bytes:
    """Damage bytes anywhere, most often in the header."""
    data = bytearray(blob)
    for _ in range(draw.choice((1, 1, 2, 8, 64))):
        place = draw.randrange(min(len(data), draw.choice((8, 200, len(data)))))
        data[place] = draw.randrange(256)
    return bytes(data)


def _length(draw: random.Random, blob: bytes) -> bytes:
    """Cut, repeat or extend a message."""
    place = draw.randrange(len(blob))
    kinds = (
        lambda: blob[:place],
        lambda: blob[place:],
        lambda: blob + bytes(draw.choice((1, 8, 4096))),
        lambda: blob[:place] + blob,
        lambda: (
            struct.pack("<Q", draw.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(blob)))) + blob[8:]
        ),
        lambda: b"",
        lambda: draw.randbytes(draw.randrange(300)),
    )
    return draw.choice(kinds)()


def _header(draw: random.Random, blob: bytes) -> bytes:
    """Change entries of the header: types, shapes, offsets, names."""
    header, data = _split(blob)
    for _ in range(draw.choice((1, 1, 2))):
        name = draw.choice([name for name in header if name != "__metadata__"] or [""])
        entry = header.get(name)
        kind = draw.randrange(7)
        if kind == 0 and isinstance(entry, dict):
            entry[draw.choice(("dtype", "shape", "data_offsets", "other"))] = draw.choice(_VALUES)
        elif kind == 1 and isinstance(entry, dict) and isinstance(entry.get("shape"), list):
            entry["shape"] = [*entry["shape"], draw.choice((0, 1, 2, -1, 2**40))]
        elif kind == 2:
            header[name] = draw.choice(_VALUES)
        elif kind == 3:
            header[draw.choice(("other", "", "\ud800", "delta.size", BUFFERS, "x" * 3000))] = entry
        elif kind == 4:
            header.pop(name, None)
        elif kind == 5:
            header["__metadata__"] = draw.choice(_VALUES)
        elif isinstance(entry, dict):
            entry["dtype"] = draw.choice(("F64", "F32", "I32", "F16", "BF16", "I8", "U8", "I64"))
    return _joined(header, data)


def _text(draw: random.Random, blob: bytes) -> bytes:
    """Write a header that no JSON writer would."""
    header, data = _split(blob)
    text = json.dumps(header)
    kinds = (
        lambda: text[:-1] + "," + text[1:],  # every name twice
        lambda: "[" * draw.choice((1000, 20_000)),
        lambda: '{"a":' * draw.choice((1000, 5000)) + "1" + "}" * 1000,
        lambda: "[" + "{}," * draw.choice((100, 10_000)) + "1]",
        lambda: text.replace("0", "NaN", 1),
        lambda: text.replace("0", "9" * draw.choice((20, 5000)), 1),
        lambda: text.replace('"F32"', '"\\ud800"'),
        lambda: draw.choice(("null", "1", '"x"', "[]", "{}", "", "\ufeff" + text)),
        lambda: text + " " * draw.choice((8, 30_000, 2**20)),
        lambda: text[: draw.randrange(len(text))],
    )
    return _joined(None, data, draw.choice(kinds)())


def _notes(draw: random.Random, blob: bytes) -> bytes:
    """Say something else of the weight and the metrics."""
    header, data = _split(blob)
    notes = dict(header.get("__metadata__", {}))
    for _ in range(draw.choice((1, 1, 3))):
        name, value = draw.choice(_NOTES)
        notes[name] = value
    header["__metadata__"] = notes
    return _joined(header, data)


def _tensors(draw: random.Random, blob: bytes) -> bytes:
    """Send other numbers, types, lengths or names in a message that is well formed."""
    tensors, notes = messages.decode(blob)
    sent = {name: tensor.clone() for name, tensor in tensors.items()}
    for _ in range(draw.choice((1, 1, 2))):
        name = draw.choice(list(sent) or [DELTA])
        tensor = sent.get(name, torch.zeros(1))
        kind = draw.randrange(8)
        if kind == 0 and tensor.numel():
            flat = tensor.numpy().reshape(-1)
            with np.errstate(all="ignore"):
                flat[draw.randrange(len(flat))] = np.array(draw.choice(_NUMBERS)).astype(flat.dtype)
        elif kind == 1:
            sent[name] = tensor[: draw.randrange(tensor.numel() + 1)].clone()
        elif kind == 2:
            sent[name] = torch.cat([tensor, tensor])
        elif kind == 3:
            sent[name] = tensor.to(
                draw.choice((torch.float64, torch.int64, torch.float16, torch.uint8))
            )
        elif kind == 4:
            sent[draw.choice(("other", "delta.places", "delta.size", "delta.scales", BUFFERS))] = (
                tensor.clone()
            )
        elif kind == 5:
            sent.pop(name, None)
        elif kind == 6 and tensor.numel():
            size = tensor.numel() * tensor.element_size()
            sent[name] = torch.frombuffer(bytearray(draw.randbytes(size)), dtype=tensor.dtype)
        elif tensor.numel() > 1:
            sent[name] = tensor[
                torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(1))
            ]
    if draw.random() < 0.1 and sent.get(DELTA, torch.zeros(1)).dtype == torch.uint8:
        bomb = zlib.compress(bytes(draw.choice((10**3, 10**7))))
        sent[DELTA] = torch.frombuffer(bytearray(bomb), dtype=torch.uint8)
    return messages.encode(sent, notes)


MUTATIONS = (_bytes, _length, _header, _header, _text, _notes, _tensors, _tensors)


def mutated(seed: int, number: int, worlds: Sequence[World]) -> tuple[World, bytes]:
    """Return message `number` of a seed; one in a hundred is honest."""
    draw = random.Random(f"{seed}.{number}")
    large = draw.random() < 0.1
    chosen = [world for world in worlds if (len(world.blob) > 10_000) == large] or worlds
    world = draw.choice(chosen)
    if draw.random() < 0.01:
        return world, world.blob
    blob = draw.choice(MUTATIONS)(draw, world.blob)
    if draw.random() < 0.1 and len(blob) > 8:
        blob = _bytes(draw, blob)
    return world, blob


class Allocations(TorchDispatchMode):
    """Counts the memory that torch takes inside the block, an upper bound of its peak.

    Args:
      known: (first, last) address of memory that was there before.
    """

    def __init__(self, known: tuple[int, int]) -> None:
        super().__init__()
        self._known = known
        self._blocks: dict[int, int] = {}

    @property
    def total(self) -> int:
        """Bytes of all blocks."""
        return sum(self._blocks.values())

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if type(tensor) is Tensor and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                place, size = storage.data_ptr(), storage.nbytes()
                if not self._known[0] <= place < self._known[1]:
                    self._blocks[place] = max(size, self._blocks.get(place, 0))
        return out


def outcome(world: World, blob: bytes, *, measured: bool = True) -> tuple[str, float]:
    """Return what becomes of a message, and its memory as a share of what is allowed.

    Returns:
      `valid`, `failure`, or what is wrong with the gate.
    """
    allowed = 4 * (len(blob) + world.form.dense_bytes) + 2**20
    if measured:
        tracemalloc.start()
    try:
        return _outcome(world, blob, allowed if measured else None)
    finally:
        if measured:
            tracemalloc.stop()


def _outcome(world: World, blob: bytes, allowed: int | None) -> tuple[str, float]:
    start = np.frombuffer(blob, dtype=np.uint8).ctypes.data if blob else 0
    torchs = Allocations((start, start + len(blob)))
    before = tracemalloc.get_traced_memory()[0]
    try:
        with contextlib.nullcontext() if allowed is None else torchs:
            found = world.take(blob)
    except Exception as error:
        return f"{type(error).__name__} came out: {error}"[:300], 0.0
    taken = tracemalloc.get_traced_memory()[1] - before + torchs.total
    share = 0.0 if allowed is None else taken / allowed
    if share > 1:
        return f"it took {share:.1f} times the memory that is allowed", share
    return _judged(world, found), share


def _judged(world: World, found: Checked | Failure | Payload) -> str:
    if isinstance(found, Failure):
        fine = 0 < len(found.reason) <= 500 and found.reason.isprintable()
        return "failure" if fine else f"its reason is {found.reason[:200]!r}"
    if isinstance(found, Checked):
        figures = [*found.metrics.values(), found.norm]
        if set(found.metrics) - {"loss"} or not all(abs(each) <= 1e20 for each in figures):
            return f"its figures are {found.metrics}, {found.norm}"
        if not 0 < found.update.weight <= 2**53:
            return f"its weight is {found.update.weight}"
        found = found.update.payload
    if found.keys() != world.dense.keys():
        return f"its tensors are {sorted(found)}"
    for name, expected in world.dense.items():
        tensor = found[name]
        if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
            return f"{name} is {tensor.dtype}{list(tensor.shape)}"
        if not bool((tensor.abs() <= _LARGEST).all()):
            return f"{name} has numbers beyond {_LARGEST}"
    return "valid"


@dataclass
class Report:
    """What became of the messages so far."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: dict[int, str] = field(default_factory=dict)
    largest: float = 0.0

    def as_json(self) -> dict[str, object]:
        """Return the report as a JSON object."""
        first = dict(list(self.wrong.items())[:10])
        return {
            "messages": self.counts.total(), "valid": self.counts["valid"],
            "failures": self.counts["failure"],
            "neither": len(self.wrong), "first": first,
            "largest_share_of_memory": round(self.largest, 3),
        }  # fmt: skip


def fuzz(
    numbers: range, *, seed: int = 1, worlds: Sequence[World] | None = None, measured: int = 1
) -> Report:
    """Send the messages of a seed with these numbers through the gate.

    Args:
      numbers: of the messages.
      seed: of all messages.
      worlds: the kinds of messages; None: all.
      measured: memory is measured for every n-th message.
    """
    worlds, report = worlds or make_worlds(), Report()
    for world in worlds:  # what is imported or built at the first use is not the message's doing
        outcome(world, world.blob, measured=False)
        outcome(world, world.blob[:-1], measured=False)
    for number in numbers:
        world, blob = mutated(seed, number, worlds)
        what, share = outcome(world, blob, measured=number % measured == 0)
        kind = what if what in ("valid", "failure") else "neither"
        report.counts[kind] += 1
        report.largest = max(report.largest, share)
        if kind == "neither":
            report.wrong[number] = f"{world.name}: {what}"
    return report


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=re.split("\n\n", __doc__ or "")[0])
    parser.add_argument("--count", type=int, default=200_000, help="number of messages")
    parser.add_argument("--start", type=int, default=0, help="number of the first message")
    parser.add_argument("--seed", type=int, default=1, help="of all messages")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    worlds, total = make_worlds(), Report()
    end = chosen.start + chosen.count
    for start in range(chosen.start, end, 10_000):
        part = fuzz(range(start, min(start + 10_000, end)), seed=chosen.seed, worlds=worlds)
        total.counts += part.counts
        total.wrong |= part.wrong
        total.largest = max(total.largest, part.largest)
        print(f"up to {min(start + 10_000, end)}: {len(total.wrong)} neither", file=sys.stderr)
    print(json.dumps(total.as_json(), allow_nan=False))
    return 1 if total.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
