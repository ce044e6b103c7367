"""Time clients in one pass against one by one: for docs/concepts/speed.md and `passes.TABLE`.

python scripts/time_passes.py                    # the bundled ViT, all three methods
python scripts/time_passes.py --minilm --tokens 64

CPU seconds of one thread, all variants in turns, the least of several; clients are equal, and their
examples are random: what is computed does not depend on them.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor

from fedpeft.client.optimizers import OptimizerSettings
from fedpeft.client.passes.many import many_trainer
from fedpeft.client.settings import LocalSettings
from fedpeft.client.turns import DELTA, ClientTurn
from fedpeft.data.examples import ClientData
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.models.tasks import Batch
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.tuned import read_delta

BATCHES = (1, 4, 8, 16, 32)
TOGETHER = (1, 2, 4, 8, 16, 32)
_EXAMPLES = 256


@dataclass(frozen=True)
class Made:
    """Random examples: pictures of 8 x 8, or texts of so many tokens."""

    tokens: int | None

    def __len__(self) -> int:
        return _EXAMPLES

    def batch(self, indices: Sequence[int], *, seed: int | None) -> Batch:
        """Collate; see `ExampleSet.batch`."""
        rows_B = torch.as_tensor(indices)
        drawn = torch.Generator().manual_seed(1)
        labels = torch.randint(0, 10, (_EXAMPLES,), generator=drawn)[rows_B]
        if self.tokens is None:
            pixels = torch.randn(_EXAMPLES, 1, 8, 8, generator=drawn)
            return {"pixel_values": pixels[rows_B], "labels": labels}
        ids = torch.randint(1000, 20_000, (_EXAMPLES, self.tokens), generator=drawn)[rows_B]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def main() -> None:
    """Print one row of Markdown for each method and local batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="lora,bias,adapter")
    parser.add_argument("--minilm", action="store_true", help="MiniLM instead of the bundled ViT")
    parser.add_argument("--tokens", type=int, default=64, help="of MiniLM's texts")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--together", default=",".join(map(str, TOGETHER)), help="clients a pass")
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    together = [int(number) for number in chosen.together.split(",")]
    print("| method | local batch | ms an example, one by one |", end="")
    print("".join(f" {number} |" for number in together[1:]))
    print("| --- | --- | --- |" + " --- |" * len(together[1:]))
    data = Made(chosen.tokens if chosen.minilm else None)
    for method in chosen.methods.split(","):
        for batch in map(int, chosen.batches.split(",")):
            runs = [_run(method, batch, number, data) for number in together]
            first, *others = _interleaved(runs, chosen.repeats)
            row = "".join(f" {first / seconds:.2f} |" for seconds in others)
            print(f"| {method} | {batch} | {1e3 * first:.2f} |{row}", flush=True)


def _run(method: str, batch: int, together: int, data: Made) -> Callable[[], int]:
    """Return a turn of so many clients, of at least two steps; it returns how many examples."""
    name = "minilm" if data.tokens else "vit-glyphs-8"
    loaded = load_model(ModelRequest(name=name, num_labels=10))
    tuned = tune(loaded, TuningRequest(method, seed=1))
    settings = LocalSettings(1, batch, OptimizerSettings(lr=0.01))
    trainer = many_trainer(tuned, settings, clients_per_pass=together)
    start_P: Tensor = read_delta(tuned)
    rows = np.arange(batch * max(2, (4 if data.tokens else 16) // batch))
    turns = [
        ClientTurn(1, f"client-{i}", ClientData(data, rows), {}, i, 0) for i in range(together)
    ]

    def run() -> int:
        return sum(1 for _ in trainer({DELTA: start_P}, turns)) * len(rows)

    return run


def _interleaved(runs: Sequence[Callable[[], int]], repeats: int) -> list[float]:
    """Least CPU seconds an example of each run, all in turns; the first time is not counted."""
    best = [float("inf")] * len(runs)
    for number in range(1 + repeats):
        for place, run in enumerate(runs):
            began = time.process_time()
            examples = run()
            if number:
                best[place] = min(best[place], (time.process_time() - began) / examples)
    return best


if __name__ == "__main__":
    main()
