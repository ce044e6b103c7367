"""Print the most memory that a run takes above the level after imports, and what the plan says.

    python tests/measured_memory.py SMALL MODEL TEXTS [KEY=VALUE ...]    prints  planned measured

Both in bytes. A first run of a small model brings in all that Python loads late. Set
MALLOC_MMAP_THRESHOLD_=1000000, or glibc keeps freed memory, and that is measured instead.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import tempfile
import threading
import time
from pathlib import Path

import fedpeft
from fedpeft.experiment.read import validate
from fedpeft.plan.plan import make_plan


def resident() -> int:
    """Return the resident bytes of this process: weights in float32 stay mapped from their file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status has no VmRSS")


def settled() -> int:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return resident()


def peak(table: dict[str, object]) -> int:
    """Run an experiment and return the most bytes above the level before it."""
    before, most, done = settled(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], resident())
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    with tempfile.TemporaryDirectory() as folder:
        try:
            fedpeft.run(table, out=Path(folder) / "run")
        finally:
            done.set()
            thread.join()
    return most[0] - before


def experiment(model: str, texts: str, keys: list[str]) -> dict[str, object]:
    table: dict[str, dict[str, object]] = {
        "model": {"name": model, "task": "causal-lm"},
        "tuning": {"method": "lora"},
        "data": {"source": texts, "max_length": 128,
                 "partition": {"scheme": "iid", "clients": 2, "min_examples": 1}},
        "federation": {"rounds": 1, "clients_per_round": 2},
        "client": {"max_steps": 2, "batch_size": 8, "lr": 1e-3, "optimizer": "adamw"},
        "engine": {"workers": 1, "clients_per_pass": 1},
    }  # fmt: skip
    for key in keys:
        (place, name), value = key.split("=")[0].split("."), key.split("=")[1]
        table[place][name] = {"true": True}.get(value, value)
    return dict(table)


if __name__ == "__main__":
    small, model, texts, *keys = sys.argv[1:]
    peak(experiment(small, texts, keys))
    chosen = experiment(model, texts, keys)
    measured = peak(chosen)
    plan = make_plan(validate(chosen, "the experiment")).as_json()
    print(plan["memory_bytes"], measured)
