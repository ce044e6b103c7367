"""The rows of the benchmark: number, module, what is compared, target."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from bench.figures import Report, unavailable
from bench.machine import ROOT
from bench.plain import report_of

__all__ = ["ROWS", "Row", "digest_of", "measure", "row_named"]


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
      name: what the command line calls it.
      module: in this package; has `run(small) -> dict`.
      title: what is compared.
      target: in words.
      why_missed: shown where a figure misses its target.
      files: of this package, beside the module, whose change makes a result old.
    """

    name: str
    module: str
    title: str
    target: str
    files: tuple[str, ...] = ()
    why_missed: str = ""


_WORK = ("assignment.py", "children.py", "machine.py", "contestants/work.py")

ROWS = (
    Row(
        "1",
        "loop",
        "A bare PyTorch loop over the clients: MiniLM (64 tokens) and a ViT of 2.7 M parameters",
        "one worker ≥ 0.97, all cores ≥ 1.3 of the loop's speed",
        (*_WORK, "contestants/loop.py", "contestants/ours.py"),
        "At local batch 32 the loop's products are long enough for torch's second thread, which "
        "makes it up to 1.8 times as fast, and a second worker makes ours at most twice as fast. "
        "Beyond that only less work helps: the last block for one token, which is in these "
        "figures.",
    ),
    Row(
        "2",
        "passes",
        "Many small clients in one pass, against a bare loop and against one fused batch",
        "≥ 3 times the loop; ≥ 0.85 of the fused batch",
        (*_WORK, "contestants/loop.py", "contestants/ours.py"),
        "At local batch 16 a step is arithmetic, which sharing a pass does not shrink: the loop's "
        "step reaches four tenths of the matrix-product peak on its thread, and GELU, attention "
        "and layer norms, a third of a step, do not run at that peak. What is gained: two cores, "
        "and one long product in place of several short ones. Tried: 1 to 8 clients a pass. On "
        "this shared machine the figures move from run to run with the same code (three runs: "
        "LoRA at batch 16 1.6, 2.1, 2.7; bias at batch 4 2.9, 3.2, 4.0), probably as other guests "
        "of its host come and go. The newest run is shown.",
    ),
    Row(
        "3",
        "against_flower",
        "Flower's simulation with an ordinary Hugging Face peft client",
        "digits ≥ 5 times (aim 10), MiniLM ≥ 1.3 times",
        (*_WORK, "programs.py", "contestants/flower_app.py"),
        "The digits' matrix products alone take 4.5 s of two cores at their peak, and "
        "importing torch, transformers and peft 3.3 s: together what the target leaves for all. "
        "Of a LoRA step of 22 images 57 % are products near the peak, 26 % GELU and attention, "
        "the rest dispatch. Gained by trying: evaluation side by side and the last block for one "
        "token (a sixth of a round each), fewer garbage collections (two seconds of a run). No "
        "gain: clients grouped by size; several in a pass (`engine.clients_per_pass=2`) save "
        "little at batches of 64. Flower took 59 s where the target was set.",
    ),
    Row(
        "4",
        "against_pfl",
        "Apple's pfl on the digits' work",
        "≥ 2 times",
        (*_WORK, "programs.py", "contestants/pfl_app.py"),
        "pfl, started with one process a core, computes the same steps with little between them; "
        "both spend their rounds in arithmetic (row 3 says how much of it there is). What is left "
        "to gain is the start, the evaluation and the last block.",
    ),
    Row(
        "5",
        "prefix",
        "The frozen prefix cached and not: head-tuning on MiniLM, evaluation in both",
        "≥ 15 times",
    ),
    Row(
        "6",
        "memory",
        "Peak memory: a cohort of 64 against one client; what a further worker adds",
        "≤ 1.3 times; ≤ 0.1 of the backbone's bytes",
    ),
    Row(
        "7",
        "combine",
        "Combining 1,000 deltas of 0.2 M parameters against a sum over memory",
        "≥ 0.7 of the sum's bytes per second",
        why_missed="A reply is looked at twice, for its norm and to add it; nothing may be added "
        "before all of it is known to be finite. The second line above is what these two torch "
        "calls reach by themselves; the rest is the message's header and Python. More would take "
        "a kernel of our own that does both at once. Tried: views of the bytes instead of copies, "
        "a finite norm in place of a search for numbers that are not, dot products (no gain).",
    ),
    Row(
        "8",
        "flops",
        "Model FLOP/s of a training round against the matrix-product peak: ViT-B, batch 16",
        "≥ 0.7 on this CPU",
        ("assignment.py",),
    ),
    Row(
        "gpu",
        "gpu",
        "The same on a GPU: bf16 ViT-B at batch 256, and 16 clients of batch 8 in one pass",
        "≥ 0.4 of the bf16 peak; ≥ 3 times one at a time",
        ("contestants/ours.py",),
    ),
)


def row_named(name: str) -> Row:
    """Return a row.

    Raises:
      KeyError: naming the rows that there are.
    """
    for row in ROWS:
        if row.name == name:
            return row
    raise KeyError(f"row {name!r}; there are {', '.join(row.name for row in ROWS)}")


def measure(row: Row, *, small: bool) -> Report:
    """Run a row in this process."""
    if importlib.util.find_spec(f"bench.{row.module}") is None:
        return unavailable(f"bench/{row.module}.py is not there")
    found = importlib.import_module(f"bench.{row.module}").run(small=small)
    return report_of(row.title, found)


def digest_of(row: Row) -> str:
    """Return a digest of all code that a row's figures depend on."""
    here = ROOT / "bench"
    files = [here / f"{row.module}.py", *(here / name for name in row.files)]
    package = ROOT / "src" / "fedpeft"
    files += [f for f in sorted(package.rglob("*")) if f.suffix in (".py", ".toml", ".json")]
    found = hashlib.sha256()
    for file in files:
        if file.exists():
            found.update(_name(file).encode() + b"\0" + file.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def _name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()
