"""Time the client-axis layers of `fedpeft.client.passes` against `torch.func.vmap` over clients.

    forms    frozen layers see one batch [K * B, ...]; trained layers have a form with a client axis
    vmap     vmap(grad(loss)) over (delta, batch, weights): functional_call on the stock model
    one      K backward passes, one client after the other

    python scripts/time_vmap.py                       # the bundled ViT
    python scripts/time_vmap.py --minilm --tokens 16
    python scripts/time_vmap.py --device cuda

One step's gradients of K clients, one thread, the three in turns; the first is not counted. Printed
are milliseconds of the forms, and medians of the paired ratios: above 1, the forms are faster.
Before anything is timed, the three are compared.

Legend: K clients, B examples of each, P trained parameters.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedpeft.client.frozen.tail import last_block, short_tail
from fedpeft.client.masks import with_spread_mask
from fedpeft.client.passes.client_axis import Live
from fedpeft.client.passes.gradients import Gradients, stacked_gradients
from fedpeft.client.passes.joint_batches import Pass
from fedpeft.client.passes.layers import Place, find_places
from fedpeft.client.private import _Probe, _slots
from fedpeft.client.settings import LocalSettings
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.models.tasks import mean_loss
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.tuned import TunedModel, move, read_delta, write_delta
from time_passes import Made

Run = Callable[[], Tensor]
"""Gradients [K, P] of one step."""


def main() -> None:
    """Print one row of Markdown for each method, local batch and number of clients."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="lora,bias")
    parser.add_argument("--minilm", action="store_true", help="MiniLM instead of the bundled ViT")
    parser.add_argument("--tokens", type=int, default=64, help="of MiniLM's texts")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--together", default="4,8", help="clients a pass")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    data = Made(chosen.tokens if chosen.minilm else None)
    print("| method | local batch | K | forms, ms | vmap / forms | one by one / forms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for method in chosen.methods.split(","):
        for size in map(int, chosen.batches.split(",")):
            for clients in map(int, chosen.together.split(",")):
                runs = _runs(method, data, size, clients, chosen.device)
                millis, ratios = _interleaved(runs, chosen.repeats, chosen.device)
                row = " | ".join(f"{ratio:.2f}" for ratio in ratios)
                print(f"| {method} | {size} | {clients} | {millis:.1f} | {row} |", flush=True)


def _runs(method: str, data: Made, size: int, clients: int, device: str) -> list[Run]:
    """Return the three contestants, once they have given the same gradients."""
    name = "minilm" if data.tokens else "vit-glyphs-8"
    tuned = tune(load_model(ModelRequest(name=name, num_labels=10)), TuningRequest(method, seed=1))
    move(tuned, device)
    tuned.model.eval()
    start_P = read_delta(tuned)
    drawn = torch.Generator().manual_seed(2)
    value_KP = start_P + 1e-2 * torch.randn(clients, len(start_P), generator=drawn).to(device)
    batch = data.batch([row % len(data) for row in range(clients * size)], seed=None)
    one = Pass({n: v.to(device) for n, v in batch.items()}, torch.arange(clients * size), None)
    settings = LocalSettings(batch_size=size, device=device)
    runs = [
        lambda gradients=gradients: gradients(value_KP, one)
        for gradients in (_forms(tuned, settings), _vmapped(copy.deepcopy(tuned)), _single(tuned))
    ]
    first, *others = (run() for run in runs)
    for other in others:
        assert float((other - first).abs().max() / first.abs().max()) < 1e-4, (method, size)
    return runs


def _forms(tuned: TunedModel, settings: LocalSettings) -> Callable[[Tensor, Pass], Tensor]:
    live = Live()
    places = find_places(tuned, live)
    assert not isinstance(places, str), places
    if (last := last_block(tuned.model)) is not None:
        places = [*places, Place(last[0], "forward", last[1])]
    found: Gradients = stacked_gradients(tuned, settings, live, places)
    return lambda value_KP, one: found(value_KP, one).grad_GP


def _vmapped(tuned: TunedModel) -> Callable[[Tensor, Pass], Tensor]:
    probe = _Probe(tuned)
    slots = _slots(probe)
    places = {name: slots[id(parameter)] for name, parameter in tuned.parameters.items()}

    def loss(values: dict[str, Tensor], rows: dict[str, Tensor], keys_B: Tensor) -> Tensor:
        """The mean loss of one client."""
        exchanged = {slot: value for name, value in values.items() for slot in places[name]}
        found: Tensor = torch.func.functional_call(
            probe, exchanged, (rows, keys_B), tie_weights=False
        )
        return found

    batched = torch.func.vmap(loss)

    def gradients(value_KP: Tensor, one: Pass) -> Tensor:
        clients, spec = len(value_KP), tuned.spec
        parts = torch.split(value_KP, list(spec.sizes), dim=1)
        shaped = zip(spec.names, parts, spec.shapes, strict=True)
        values = {n: part.reshape(clients, *shape).requires_grad_() for n, part, shape in shaped}
        batch = with_spread_mask(tuned, one.tensors)
        apart = {name: value.view(clients, -1, *value.shape[1:]) for name, value in batch.items()}
        with short_tail(tuned.model), sdpa_kernel(SDPBackend.MATH):
            total = batched(values, apart, one.keys.view(clients, -1)).sum()
        found = torch.autograd.grad(total, list(values.values()))
        return torch.cat([gradient.flatten(1) for gradient in found], 1)

    return gradients


def _single(tuned: TunedModel) -> Callable[[Tensor, Pass], Tensor]:
    def gradients(value_KP: Tensor, one: Pass) -> Tensor:
        rows = []
        size = len(one.keys) // len(value_KP)
        for number, value_P in enumerate(value_KP):
            part = slice(number * size, (number + 1) * size)
            write_delta(tuned, value_P)
            with short_tail(tuned.model):
                batch = {name: value[part] for name, value in one.tensors.items()}
                loss = mean_loss(tuned.loaded.task.score(tuned.model, batch))
                found = torch.autograd.grad(loss, list(tuned.parameters.values()))
            rows.append(torch.cat([gradient.flatten() for gradient in found]))
        return torch.stack(rows)

    return gradients


def _interleaved(runs: list[Run], repeats: int, device: str) -> tuple[float, list[float]]:
    """Return the first run's milliseconds, and how many times as long each other one takes."""
    taken: list[list[float]] = [[] for _ in runs]
    for number in range(1 + repeats):
        for run, seconds in zip(runs, taken, strict=True):
            began = _now(device)
            run()
            if number:
                seconds.append(_now(device) - began)
    ratios = [
        statistics.median(o / f for o, f in zip(other, taken[0], strict=True))
        for other in taken[1:]
    ]
    return 1e3 * statistics.median(taken[0]), ratios


def _now(device: str) -> float:
    """Return processor seconds; on a GPU seconds, once it has done all that it was given."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
