"""Try every tuning method on every tiny model, and write the table docs/reference/models.md.

    tune ──> one training step ──> delta as a message ──> written into a fresh model: equal logits?

A pair works, or is refused in one sentence; everything else is a failure. The refusals of a column
are collected under the table, each with a letter.

python scripts/model_matrix.py [--check] [TYPE]...
"""

from __future__ import annotations

import argparse
import copy
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fedpeft.core.errors import ConfigError, ModelError, TuningError
from fedpeft.models.loaded import LoadedModel
from fedpeft.models.tasks import Batch, mean_loss
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.prepared import head_parameters
from fedpeft.tuning.tuned import (
    TunedModel,
    read_buffers,
    read_delta,
    write_buffers,
    write_delta,
)
from fedpeft.wire.messages import decode, encode
from model_zoo import KINDS, Kind, batch_of, make_kind

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "models.md"

METHODS = (
    "head",
    "bias",
    "full",
    "lora",
    "dora",
    "ia3",
    "ln_tuning",
    "adapter",
    "prompt",
    "prompt_tuning",
    "prefix_tuning",
)
"""The columns."""

OPTIONS: Mapping[str, Mapping[str, object]] = {
    "lora": {"r": 2},
    "dora": {"r": 2},
    "prompt": {"num_tokens": 2},
    "prompt_tuning": {"num_virtual_tokens": 2},
    "prefix_tuning": {"num_virtual_tokens": 2},
}
"""Options that fit tiny models; the other methods run with their defaults."""

NAME = "this-model"
"""What messages call every model."""

FURTHER: Mapping[str, Mapping[str, object]] = {"bias": {"add_missing": True}}
"""Options that are tried where the default ones are refused."""

REFUSALS = (ConfigError, ModelError, TuningError)


class BrokenPairError(AssertionError):
    """A pair that neither works nor is refused in words; the message says what went wrong."""


TITLES = {
    "text-classification": "Texts to classes",
    "image-classification": "Pictures to classes",
    "causal-lm": "Language models",
}

HEAD = """# Which models, which methods

{models} types of model of `transformers`, each with the usual methods:
{works} of {pairs} pairs work.
For each pair a tiny model of that type was tuned and trained for a step; its delta was sent as a
message and loaded into a fresh model, which gave equal logits.

- `yes`: works with the method's defaults.
- `yes, OPTION`: works with that option in `[tuning.options]`.
- `no (x)`: refused, for the reason under the tables.

Other types work too, where their parts are built as usual: `fedpeft plan` says so in seconds.
This page is made by `python scripts/model_matrix.py`, and a test compares it with what happens.

## Where a method goes

`fedpeft plan` shows it under `adapted`, and `environment.json` of a run keeps it.
The first of these rules that finds a layer decides for `lora`, `dora`, `ia3` and the like:

1. `target_modules` in `[tuning.options]`.
2. The table of the model's family, where `fedpeft` has one (ViT, BERT, LLaMA, GPT-2 and similar).
3. The table of the `peft` library for the model type.
4. Every linear layer outside the head; for `ln_tuning` every norm outside the head.
   Where no block has a linear layer, every convolution with one group as well.

`adapter` goes after the MLP of each block; in other families after the last linear layer of each
block, or the last convolution where blocks have none; `after` in `[tuning.options]` names others.
`prompt` needs blocks that share one sequence of patches.
BatchNorm keeps its statistics under all methods but `full` and `scratch`.
"""


@dataclass(frozen=True)
class Outcome:
    """What became of a method on a model.

    Attributes:
      refused: the reason, in one sentence; empty if the pair works.
      options: options that it needs, in words; empty if none.
      broken: what went wrong, if neither; no such pair may stand in the table.
    """

    refused: str = ""
    options: str = ""
    broken: str = ""


def try_pair(loaded: LoadedModel, method: str, batch: Batch) -> Outcome:
    """Tune, train, send and load one method on one model.

    Args:
      loaded: the model; it is copied.
      method: name of the method.
      batch: a training batch for the model.
    """
    found = _try(loaded, method, OPTIONS.get(method, {}), batch)
    further = FURTHER.get(method)
    if found.refused and further:
        again = _try(loaded, method, further, batch)
        words = ", ".join(f"{key} = {str(value).lower()}" for key, value in further.items())
        return found if again.refused else replace(again, options=words)
    return found


def _try(loaded: LoadedModel, method: str, options: Mapping[str, object], batch: Batch) -> Outcome:
    try:
        _check_pair(loaded, TuningRequest(method, options, seed=1), batch)
    except REFUSALS as error:
        reason = _plain_reason(str(error), loaded)
        if "\n" in reason or not reason:
            return Outcome(broken=f"not one sentence: {reason!r}")
        return Outcome(refused=reason)
    except BrokenPairError as error:
        return Outcome(broken=str(error))
    except Exception as error:  # whatever a library raises is what this table is there to find
        return Outcome(broken=f"{type(error).__name__}: {str(error).strip()[:200]}")
    return Outcome()


def _check_pair(loaded: LoadedModel, request: TuningRequest, batch: Batch) -> None:
    tuned, fresh = (tune(copy.deepcopy(loaded), request) for _ in range(2))
    _require(tuned.spec.num_params > 0, "its delta is empty")
    start = read_delta(tuned)
    _train(tuned, batch)
    flat = read_delta(tuned)
    _require(bool(flat.isfinite().all()), "a training step makes numbers that are not finite")
    _require(not torch.equal(flat, start), "a training step does not change the delta")
    before = _logits(fresh, batch)
    _write(fresh, encode({"delta": flat, "buffers": read_buffers(tuned)}))
    after = _logits(fresh, batch)
    _require(torch.equal(after, _logits(tuned, batch)), "the loaded delta gives other logits")
    _require(not torch.equal(after, before), "the trained delta does not change the logits")


def _train(tuned: TunedModel, batch: Batch) -> None:
    """Take one step of gradient descent, and require that more than the head gets a gradient."""
    tuned.model.train(tuned.trains_statistics)
    with tuned.dropout.using(torch.arange(len(batch["labels"]))):
        loss = mean_loss(tuned.loaded.task.score(tuned.model, batch))
    tuned.model.eval()
    _require(bool(loss.isfinite()), "the loss is not finite")
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
    head = {id(tuned.model.get_parameter(n)) for n in _head_names(tuned)}
    body = [p for p in tuned.parameters.values() if id(p) not in head]
    reached = [p for p in body if p.grad is not None and bool(p.grad.any())]
    _require(not body or bool(reached), "no part of the delta outside the head gets a gradient")
    with torch.no_grad():
        for parameter in tuned.parameters.values():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)


def _head_names(tuned: TunedModel) -> Iterator[str]:
    inside = head_parameters(tuned.loaded)
    prefixes = ("", "base_model.")
    names = {name for name, _ in tuned.model.named_parameters()}
    return (f"{p}{n}" for n in inside for p in prefixes if f"{p}{n}" in names)


def _write(tuned: TunedModel, message: bytes) -> None:
    payload, _ = decode(message)
    write_delta(tuned, payload["delta"])
    write_buffers(tuned, payload["buffers"])


def _logits(tuned: TunedModel, batch: Batch) -> Tensor:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    cache = {"use_cache": False} if tuned.loaded.task.per_token else {}
    with torch.no_grad():
        found: Tensor = tuned.model(**inputs, **cache).logits
    return found


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BrokenPairError(otherwise)


def _plain_reason(message: str, loaded: LoadedModel) -> str:
    """Return a refusal without what differs between models: name, family, and names of layers."""
    found = re.sub(r"^tuning\.method \S+( on \S+ \(family [^)]*\))?: ", "", message)
    found = found.replace(loaded.source, "the model")
    found = re.sub(r" \(family [^)]*\)", "", found)
    found = re.sub(r"virtual tokens \(.*\);", "virtual tokens;", found)
    found = re.sub(r"prompts \(.*\);", "prompts;", found)
    return re.sub(r"; the first [^;]*$", "", found).strip()


def row_of(kind: Kind, methods: Sequence[str] = METHODS) -> dict[str, Outcome]:
    """Try methods on a kind of model.

    Returns:
      the outcome by method; where the model itself cannot be loaded, that of every method.
    """
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        try:
            loaded = replace(make_kind(kind, Path(folder)), source=NAME)
        except REFUSALS as error:
            return dict.fromkeys(methods, Outcome(refused=str(error).replace(folder, "this model")))
        batch = batch_of(loaded)
        return {method: try_pair(loaded, method, batch) for method in methods}


def page_of(rows: Mapping[Kind, Mapping[str, Outcome]]) -> str:
    """Return the page for all rows."""
    reasons = dict.fromkeys(o.refused for row in rows.values() for o in row.values() if o.refused)
    letters = {reason: _letter(number) for number, reason in enumerate(sorted(reasons))}
    pairs = [o for row in rows.values() for o in row.values()]
    works = sum(not o.refused and not o.broken for o in pairs)
    lines = [HEAD.format(models=len(rows), pairs=len(pairs), works=works)]
    for task in dict.fromkeys(kind.task for kind in rows):
        lines += [
            f"\n## {TITLES[task]}\n",
            "| model type | known as | " + " | ".join(METHODS) + " |",
        ]
        lines.append("| --- | --- |" + " --- |" * len(METHODS))
        for kind, row in rows.items():
            if kind.task == task:
                cells = [kind.model_type, kind.known_as]
                cells += [_cell(row[method], letters) for method in METHODS]
                lines.append(f"| {' | '.join(cells)} |")
    lines += ["\n## Why not\n", "| | reason |", "| --- | --- |"]
    lines += [f"| {letter} | {reason} |" for reason, letter in letters.items()]
    return "\n".join(lines) + "\n"


def _cell(outcome: Outcome, letters: Mapping[str, str]) -> str:
    if outcome.broken:
        return f"broken: {outcome.broken}"
    if outcome.refused:
        return letters[outcome.refused]
    return f"yes, {outcome.options}" if outcome.options else "yes"


def _letter(number: int) -> str:
    return f"no ({chr(ord('a') + number)})"


def outcomes_on(page: str) -> dict[tuple[str, str, str], str]:
    """Read a page: (task's title, model type, method) -> `yes`, or the reason of the refusal."""
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in page.splitlines()]
    reasons = {row[0]: row[1] for row in cells if len(row) == 2 and row[0].startswith("no (")}
    found, title = {}, ""
    for line, row in zip(page.splitlines(), cells, strict=True):
        title = line.removeprefix("## ") if line.startswith("## ") else title
        if len(row) == len(METHODS) + 2 and row[0] not in ("model type", "---"):
            for method, cell in zip(METHODS, row[2:], strict=True):
                found[title, row[0], method] = reasons.get(cell, cell)
    return found


def rows_on(page: str) -> dict[Kind, dict[str, Outcome]]:
    """Read the rows of a page, but those of kinds that it lacks."""
    found = outcomes_on(page)
    keys = {
        kind: [(TITLES[kind.task], kind.model_type, method) for method in METHODS] for kind in KINDS
    }
    return {
        kind: {key[-1]: _outcome(found[key]) for key in row}
        for kind, row in keys.items()
        if row[0] in found
    }


def _outcome(words: str) -> Outcome:
    if words == "yes" or words.startswith("yes, "):
        return Outcome(options=words.removeprefix("yes").removeprefix(", "))
    return Outcome(refused=words)


def in_words(outcome: Outcome) -> str:
    """Return an outcome as `outcomes_on` reads it."""
    return outcome.refused or _cell(outcome, {})


def main(argv: Sequence[str] | None = None) -> int:
    """Compute the table, and write it or compare it with the page.

    Returns:
      1 if a pair is broken, or `--check` finds another page; else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="model types that are tried again; all by default")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    options = parser.parse_args(argv)
    before = rows_on(PAGE.read_text("utf-8")) if options.types else {}
    rows = {}
    for kind in KINDS:
        if kind.model_type in options.types or not options.types:
            rows[kind] = row_of(kind)
            _print_row(kind, rows[kind])
        else:
            rows[kind] = before[kind]
    page = page_of(rows)
    if any(outcome.broken for row in rows.values() for outcome in row.values()):
        return 1
    if options.check:
        return int(PAGE.read_text("utf-8") != page)
    PAGE.write_text(page, "utf-8")
    return 0


def _print_row(kind: Kind, row: Mapping[str, Outcome]) -> None:
    works = [method for method, o in row.items() if not o.refused and not o.broken]
    print(f"{kind.task} {kind.model_type}: {', '.join(works)}", flush=True)
    for method, outcome in row.items():
        if outcome.broken:
            print(f"  {method} BROKEN: {outcome.broken}", flush=True)
        elif outcome.refused:
            print(f"  {method} refused: {outcome.refused}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
