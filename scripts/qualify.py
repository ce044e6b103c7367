"""Does a test bed leave room between the methods? Centralised training, scored on validation data.

    head      a linear classifier on frozen features
    full      everything is trained
    scratch   everything is trained, from new weights, for as many epochs
    bias      on demand, for orientation: biases and head
    lora      on demand, as bias: LoRA's factors and head

    python scripts/qualify.py characters
    python scripts/qualify.py characters --set neighbour=0.5 --set train=30     another setting
    python scripts/qualify.py clothes --set train=500 --seeds 9001 9002 9003    read from files
    python scripts/qualify.py text --model minilm --epochs 12 --seeds 9001 9002 9003

A bed qualifies when, in the mean over seeds, full tuning is at least 5 points above the head, at
least 10 above training from scratch, and below 0.97. The rate of each method is the best of a grid
on the first seed. Test data is never scored. Every setting that is tried adds a line to
`experiments/beds.jsonl`, whether it qualifies or not.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias, TypeVar

import fedpeft
from characters import SETTINGS, Setting, draw_characters
from fedpeft.data.examples import Federated
from fedpeft.data.load import load_splits
from fedpeft.models.loaded import InputSpec, TextInput

__all__ = ["BEDS", "GRIDS", "Budget", "Files", "joined", "load_bed", "qualifies", "score"]

_LOG = Path(__file__).resolve().parent.parent / "experiments" / "beds.jsonl"
GRIDS: Mapping[str, Sequence[float]] = {
    "head": (0.01, 0.02, 0.05),
    "full": (0.01, 0.02, 0.04),
    "scratch": (0.01, 0.03, 0.1),
    "bias": (0.01, 0.03, 0.1),
    "lora": (0.01, 0.03, 0.1),
}
"""Learning rates that are tried for each method on pictures."""
TEXT_GRIDS: Mapping[str, Sequence[float]] = {
    "head": (0.1, 0.3, 1.0),
    "full": (0.01, 0.02),
    "scratch": (0.03, 0.1),
    "bias": (0.03, 0.1),
    "lora": (0.03, 0.1),
}
"""The same on texts, where a step costs ten times as much."""
_DECIDING = ("head", "full", "scratch")


@dataclass(frozen=True)
class Files:
    """A bed that is read from files.

    Attributes:
      source: as `data.source`.
      train: number of training examples; each seed draws its own.
      validation: number of validation examples, the same for all seeds.
      max_length: of a text, in tokens; 0 is the model's own limit.
      pooling: as `model.pooling`; "" leaves it unset.
    """

    source: str
    train: int
    validation: int
    max_length: int = 0
    pooling: str = ""


BEDS: Mapping[str, Setting | Files] = {
    **SETTINGS,
    "clothes": Files("/usr/share/datasets/fashion-mnist", train=4000, validation=2000),
    "text": Files("data/trec", train=1500, validation=545, max_length=16, pooling="mean"),
}
"""Generated beds, and beds of files. `clothes` is Fashion-MNIST, from Debian's package
`dataset-fashion-mnist`; `text` is TREC, which `scripts/trec.py` writes."""

_Bed = TypeVar("_Bed", Setting, Files)
_Load: TypeAlias = Callable[[int], Federated]
"""From a seed to the data of one client, evaluated on validation data."""


@dataclass(frozen=True)
class Budget:
    """What every method may use.

    Attributes:
      model: name of the backbone.
      epochs: over the training data; about what a client of the default federation sees.
      seeds: of heads, new weights and order; the first one chooses the rates.
      pooling: as `model.pooling`.
    """

    model: str = "vit-glyphs-28"
    epochs: int = 12
    seeds: Sequence[int] = (1, 2, 3)
    pooling: str | None = None


def main() -> None:
    """Read the command line, train, print a line and add it to the list."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bed", choices=sorted(BEDS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--model", default=Budget.model)
    parser.add_argument("--epochs", type=int, default=Budget.epochs)
    parser.add_argument("--seeds", type=int, nargs="+", default=Budget.seeds)
    parser.add_argument("--methods", nargs="+", choices=sorted(GRIDS), default=list(_DECIDING))
    parser.add_argument("--rates", type=float, nargs="+", help="instead of each method's grid")
    parser.add_argument("--note", default="", help="is added to the line")
    options = parser.parse_args()
    bed = BEDS[options.bed]
    setting = _changed(bed, options.set)
    pooling = (setting.pooling or None) if isinstance(setting, Files) else None
    budget = Budget(options.model, options.epochs, options.seeds, pooling)
    usual = TEXT_GRIDS if pooling else GRIDS
    grids = {method: options.rates or usual[method] for method in options.methods}
    line = {
        "bed": options.bed,
        **_examine(setting, grids, budget),
        "setting": asdict(setting),
        "note": options.note,
    }
    line = joined(line, [json.loads(text) for text in _LOG.read_text("utf-8").splitlines()])
    print(json.dumps(line))
    with _LOG.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _changed(setting: _Bed, changes: Sequence[str]) -> _Bed:
    kinds = {field.name: type(getattr(setting, field.name)) for field in fields(setting)}
    for change in changes:
        key, _, value = change.partition("=")
        if key not in kinds:
            raise SystemExit(f"--set {change}: unknown; known are {', '.join(kinds)}")
        setting = replace(setting, **{key: kinds[key](value)})
    return setting


def _examine(
    setting: Setting | Files, grids: Mapping[str, Sequence[float]], budget: Budget
) -> dict[str, object]:
    """Train every method and return the figures of one line of the list."""
    began = time.process_time()
    inputs = fedpeft.load_model(_model(budget)).inputs
    load = load_bed(setting, inputs)
    found: dict[str, list[float]] = {}
    rates: dict[str, float] = {}
    for method, grid in grids.items():
        data = load(budget.seeds[0])
        first = {rate: score(data, method, rate, budget.seeds[0], budget) for rate in grid}
        rates[method] = max(grid, key=lambda rate: first[rate])
        print(f"{method}: {first}", flush=True)
        others = [score(load(s), method, rates[method], s, budget) for s in budget.seeds[1:]]
        found[method] = [first[rates[method]], *others]
    return {
        "model": budget.model,
        "epochs": budget.epochs,
        "seeds": list(budget.seeds),
        "rates": rates,
        "validation": {m: [round(value, 4) for value in values] for m, values in found.items()},
        "qualifies": qualifies(found) if set(found) >= set(_DECIDING) else None,
        "cpu_seconds": round(time.process_time() - began),
    }


def joined(line: dict[str, Any], earlier: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a line with the deciding methods that it lacks taken from earlier lines.

    Calls for one method each, which may run at once, decide together.

    Args:
      line: new.
      earlier: lines of the list; those of another bed, budget or setting are passed over.
    """
    same = ("bed", "model", "epochs", "seeds", "setting")
    alike = [old for old in earlier if all(old[key] == line[key] for key in same)]
    whole = dict(line)
    for old in reversed(alike):
        for part in ("rates", "validation"):
            kept = {m: value for m, value in old[part].items() if m in _DECIDING}
            whole[part] = {**kept, **whole[part]}
    found = whole["validation"]
    whole["qualifies"] = qualifies(found) if set(found) >= set(_DECIDING) else None
    return whole


def load_bed(setting: Setting | Files, inputs: InputSpec) -> _Load:
    """Return the function that gives a seed's data: training and validation examples."""
    one = fedpeft.PartitionRequest("iid", clients=1, min_examples=1)
    if isinstance(setting, Setting):
        request = fedpeft.DataRequest(evaluate_on="validation", partition=one)
        drawn = load_splits(draw_characters(setting), request, inputs)
        return lambda seed: drawn
    request = fedpeft.DataRequest(
        setting.source,
        task="text-classification" if isinstance(inputs, TextInput) else "image-classification",
        budget=setting.train,
        max_test=setting.validation,
        max_length=setting.max_length or None,
        evaluate_on="validation",
        partition=one,
    )
    return lambda seed: fedpeft.load_data(replace(request, seed=seed), inputs)


def score(data: Federated, method: str, rate: float, seed: int, budget: Budget) -> float:
    """Train on all of the training data and return the accuracy on the evaluation data.

    Args:
      data: of one client.
      method: a tuning method.
      rate: learning rate.
      seed: of everything that is drawn.
      budget: backbone and number of epochs.
    """
    loaded = fedpeft.load_model(replace(_model(budget), num_labels=data.num_labels, seed=seed))
    tuned = fedpeft.tune(loaded, fedpeft.TuningRequest(method, seed=seed))
    settings = {
        "seed": seed,
        "federation.rounds": 1,
        "federation.clients_per_round": 1,
        "client.epochs": budget.epochs,
        "client.batch_size": 64,
        "client.lr": rate,
        "engine.workers": 1,
    }
    try:
        result = fedpeft.simulate(tuned, data, settings)
    except fedpeft.FedpeftError as error:  # the training diverged
        print(f"{method} at {rate}: {error}", flush=True)
        return 0.0
    return float(result.totals.last["accuracy"] or 0.0)


def _model(budget: Budget) -> fedpeft.ModelRequest:
    return fedpeft.ModelRequest(budget.model, pooling=budget.pooling)


def qualifies(found: Mapping[str, Sequence[float]]) -> bool:
    """Tell whether accuracies by method, one for each seed, leave room between the methods."""
    head, full, scratch = (fmean(found[method]) for method in _DECIDING)
    return full >= head + 0.05 and full >= scratch + 0.10 and full < 0.97


if __name__ == "__main__":
    main()
