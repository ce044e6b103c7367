"""Writes a contestant's work: what an experiment of ours would do, as a folder for others.

    settings ──fedpeft──> cohorts, batches, start, model, data ──> a folder (contestants/work.py)

The folder dictates every random choice, so that all contestants meet the same clients, batches and
starting point, and their results can be compared number by number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bench.contestants.work import plain_path, save_delta
from fedpeft.build.model import model_request
from fedpeft.build.run import BuiltRun, build_run
from fedpeft.client.batches import batches
from fedpeft.client.turns import ClientTurn
from fedpeft.data.examples import ClientData, ExampleSet
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.read import DIGITS, apply_overrides, read_toml, validate
from fedpeft.experiment.resolve import Resolved, resolve
from fedpeft.models.source import load_model
from fedpeft.rounds.round_plan import turn_seed
from fedpeft.server.sampling import fixed_cohort
from fedpeft.tuning.prepared import ADAPTER_ROOT
from fedpeft.tuning.tuned import TunedModel

__all__ = ["distance", "experiment_of", "module_paths", "write_work"]


def experiment_of(settings: Mapping[str, Any]) -> Experiment:
    """Return the bundled experiment on digits with some settings by dotted key."""
    return validate(apply_overrides(read_toml(DIGITS), settings.items()), "benchmark")


def module_paths(tuned: TunedModel) -> dict[str, Tensor]:
    """Return what a tuned model trains, by the modules' paths; the tensors are the live ones."""
    named = tuned.model.named_parameters()
    return {plain_path(path): p.data for path, p in named if p.requires_grad}


def write_work(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Write the work of an experiment to a folder, and return it.

    Args:
      folder: made if need be; what is there is overwritten.
      settings: of the experiment, on top of the bundled one on digits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    built = build_run(resolve(experiment_of({**settings, "engine.workers": 1})))
    try:
        save_delta(module_paths(built.tuned), folder / "start.safetensors")
        _write_model(folder / "model", built.experiment)
        arrays = {f"train_{name}": value for name, value in _all_of(built.data.train).items()}
        arrays |= {f"test_{name}": value for name, value in _all_of(built.data.test).items()}
        np.savez(folder / "examples.npz", **arrays)  # type: ignore[arg-type]  # names are the keys
        (folder / "work.json").write_text(json.dumps(_plan(built)), "utf-8")
        (folder / "names.json").write_text(json.dumps(_paths(built.tuned)), "utf-8")
    finally:
        built.engine.close()
    return folder


def distance(ours: Path, theirs: Path) -> float:
    """Return ‖ours - theirs‖ / ‖ours‖ over two files of named tensors.

    Raises:
      ValueError: if they do not hold the same names.
    """
    from safetensors.torch import load_file

    one, other = load_file(ours), load_file(theirs)
    if one.keys() != other.keys():
        raise ValueError(f"{theirs} does not hold the parameters of {ours}")
    square = sum(float((one[name] - other[name]).double().square().sum()) for name in one)
    norm = sum(float(value.double().square().sum()) for value in one.values())
    return float((square / norm) ** 0.5)


def _paths(tuned: TunedModel) -> dict[str, str]:
    """Name on the wire -> path in the model."""
    path_of = {id(parameter): path for path, parameter in tuned.model.named_parameters()}
    return {name: plain_path(path_of[id(p)]) for name, p in tuned.parameters.items()}


def _write_model(folder: Path, experiment: Experiment) -> None:
    """Write the backbone as `transformers` does, without dropout: ours runs without, too."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    module: Any = load_model(
        model_request(Resolved(experiment), experiment.model.num_labels)
    ).module
    for key in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if hasattr(module.config, key):
            setattr(module.config, key, 0.0)
    module.save_pretrained(folder)


def _all_of(examples: ExampleSet) -> dict[str, np.ndarray[Any, Any]]:
    batch = examples.batch(range(len(examples)), seed=None)
    return {name: value.contiguous().numpy() for name, value in batch.items()}


def _plan(built: BuiltRun) -> dict[str, object]:
    experiment, data = built.experiment, built.data
    federation, client = experiment.federation, experiment.client
    names = tuple(data.clients)
    cohorts = [
        fixed_cohort(names, federation.clients_per_round, seed=experiment.seed, round=number)
        for number in range(1, federation.rounds + 1)
    ]
    turns = {
        f"{number}/{name}": _turn(built, number, name)
        for number, cohort in enumerate(cohorts, 1)
        for name in cohort
    }
    sgd = {"momentum": client.momentum, "nesterov": client.nesterov}
    optimizer = {
        "name": client.optimizer,
        "lr": client.lr,
        "weight_decay": client.weight_decay,
        **(sgd if client.optimizer == "sgd" else {}),
    }
    return {
        "task": built.tuned.loaded.task.name,
        "method": experiment.tuning.method,
        "rounds": federation.rounds,
        "eval_every": federation.eval_every,
        "epochs": client.epochs,
        "batch_size": client.batch_size,
        "optimizer": optimizer,
        "sizes": {name: len(rows) for name, rows in data.clients.items()},
        "clients": {name: rows.tolist() for name, rows in data.clients.items()},
        "cohorts": cohorts,
        "turns": turns,
        **_tuned_layers(built),
    }


def _turn(built: BuiltRun, number: int, name: str) -> list[list[list[int]]]:
    """Rows of each batch of each epoch of a turn."""
    rows, settings = built.data.clients[name], built.settings
    assert settings.epochs, "benchmarks count epochs"
    seed = turn_seed(built.experiment.seed, number, name)
    turn = ClientTurn(number, name, ClientData(built.data.train, rows), {}, seed, number - 1)
    return [
        [rows[places].tolist() for places in batches(turn, settings.batch_size, epoch)]
        for epoch in range(settings.epochs)
    ]


def _tuned_layers(built: BuiltRun) -> dict[str, object]:
    """Return what another library needs to insert the same layers."""
    method, options = built.experiment.tuning.method, built.experiment.tuning.options
    if method == "lora":
        targets = {path.split(".lora_")[0].rsplit(".", 1)[1] for path in _lora_paths(built.tuned)}
        kept = {key: options[key] for key in ("r", "lora_alpha", "lora_dropout")}
        head = list(built.tuned.loaded.head)
        return {"lora": {**kept, "target_modules": sorted(targets), "modules_to_save": head}}
    if method == "adapter":
        family, config = built.tuned.loaded.family, built.tuned.loaded.module.config
        width = int(getattr(config, "hidden_size"))  # noqa: B009  # the config has no static type
        sites = [family.mlp.format(block) for block in range(config.num_hidden_layers)]  # type: ignore[union-attr,arg-type]  # as above
        inner = max(1, width // int(options["reduction"]))
        return {"width": width, "inner": inner, "sites": sites, "adapter_root": ADAPTER_ROOT}
    return {}


def _lora_paths(tuned: TunedModel) -> list[str]:
    return [path for path in module_paths(tuned) if ".lora_" in path]
