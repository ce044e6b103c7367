"""The plan of a run: parameters, bytes, memory, before any training.

    total bytes = rounds * (replies * wire bytes up + requests * wire bytes down)

A round has as many replies as its cohort, and more requests with over-selection; no client fails.

Sizes come from the encoding itself, run on tensors that have shapes and no memory. Neither weights
nor a network are needed; where the data is on this machine, the partition is shown too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedpeft.build.model import (
    Sketch,
    data_request,
    fit_privacy,
    load_run_data,
    payload_bytes,
    sketch_run,
)
from fedpeft.build.prefix import planned_prefix
from fedpeft.build.privacy_of_run import PrivacyOfRun
from fedpeft.core.errors import FedpeftError
from fedpeft.data.bundled import BUNDLED_DATASETS
from fedpeft.data.examples import Federated
from fedpeft.data.rows import check_rows
from fedpeft.data.summary import MOST_SHOWN, label_table, sizes
from fedpeft.data.texts import load_tokenizer
from fedpeft.experiment.engines import ENGINES
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.resolve import Resolved, planned_turns, resolve
from fedpeft.experiment.sweep_rows import SweepRow
from fedpeft.models.loaded import TextInput
from fedpeft.models.locate import is_local
from fedpeft.plan.memory import planned_memory
from fedpeft.rounds.client_half import PRIVATE_NOTES
from fedpeft.rounds.sizes import TYPICAL_NOTES, wire_bytes

_OPENED = 64 * 2**20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Partition:
    """The number of examples of each client.

    Attributes:
      clients: names.
      sizes: examples of each client.
      counts: examples by label, [client][label]; () without labels.
    """

    clients: tuple[str, ...]
    sizes: tuple[int, ...]
    counts: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Plan:
    """The cost of a run, before it trains.

    Attributes:
      figures: parameters, bytes and epsilon by their names in JSON.
      partition: None where the data is not on this machine.
    """

    figures: Mapping[str, object]
    partition: Partition | None

    def as_json(self) -> dict[str, object]:
        """Return one JSON object."""
        found = self.partition
        if found is None:
            return {**self.figures, "partition": None}
        ordered = sorted(found.sizes)
        return {
            **self.figures,
            "partition": {
                "clients": len(ordered),
                "min": ordered[0],
                "median": float(np.median(ordered)),
                "max": ordered[-1],
                "sizes": list(found.sizes),
                "counts": [list(row) for row in found.counts],
            },
        }


def make_plan(experiment: Experiment) -> Plan:
    """Plan an experiment.

    Raises:
      ConfigError: if the model cannot be sketched (give `model.config`), or the method not applied.
    """
    data, problem = local_data(resolve(experiment))
    sketch = sketch_run(experiment, data.num_labels if data else None)
    if problem is not None:  # of the data: one of the model has ended the plan
        logger.warning("no partition is shown: %s", problem)
    rounds, tuned = sketch.experiment.federation.rounds, sketch.tuned
    replies, requests = planned_turns(sketch.experiment)
    up, down = wire_sizes(sketch)
    figures: dict[str, object] = {
        "name": sketch.experiment.name,
        "model": sketch.experiment.model.name,
        "method": sketch.experiment.tuning.method,
        "trainable_parameters": tuned.spec.num_params,
        "total_parameters": sketch.total_parameters,
        "payload_bytes": payload_bytes(tuned),
        "trainable_payload_bytes": tuned.spec.num_bytes,
        "wire_bytes_up": up,
        "wire_bytes_down": down,
        "cohort": replies,
        "rounds": rounds,
        "total_bytes": rounds * (replies * up + requests * down),
        **planned_memory(sketch, data).as_json(),
        "kept_deltas_bytes": _kept_deltas(sketch),
        "adapted": tuned.targets.as_json() if tuned.targets else None,
        **_weights(sketch),
        **_classes(sketch, data),
        **planned_prefix(sketch.experiment, tuned, data).as_json(),
        **planned_privacy(sketch, data).planned(),
    }
    shown = data is not None and len(data.clients) <= MOST_SHOWN
    return Plan(figures, _partition(data) if data is not None and shown else None)


def wire_sizes(sketch: Sketch) -> tuple[int, int]:
    """Return the encoded bytes of one client and round: (up, down)."""
    notes = PRIVATE_NOTES if sketch.privacy.private else TYPICAL_NOTES
    up = wire_bytes(sketch.tuned, sketch.resolved.up, notes)
    return up, wire_bytes(sketch.tuned, sketch.resolved.down)


def planned_privacy(sketch: Sketch, data: Federated | None) -> PrivacyOfRun:
    """Return a run's privacy, with what epsilon needs of the data where they are here."""
    if data is None:
        return sketch.privacy
    return PrivacyOfRun(fit_privacy(sketch.resolved, data).experiment)


def plan_rows(rows: Sequence[SweepRow]) -> dict[str, Plan]:
    """Return the plans of the rows of a sweep by their names.

    Raises:
      ConfigError: as `make_plan`.
    """
    return {row.name: make_plan(row.experiment) for row in rows}


def check_shapes(experiment: Experiment) -> list[str]:
    """Apply the tuning method to the model's shapes, and open small data, if on this machine.

    Returns:
      notes on what could not be checked without a network.

    Raises:
      ConfigError: if the model is unknown or its files are broken, or the method cannot be applied.
      ModelError: if there are texts on this machine, and a local model has no tokenizer for them.
      DataError: if data on this machine cannot be read; pictures are not decoded, and files of
        over 64 MB in all are not opened.
    """
    model = experiment.model
    if model.config is None and not is_local(model.name) and "/" in model.name:
        return [
            f"model.name: {model.name!r} is a hub id and was not looked up; set model.config to "
            "check its shapes"
        ]
    sketch = sketch_run(experiment)
    inputs, path = sketch.tuned.loaded.inputs, _own_data(experiment)
    if isinstance(inputs, TextInput):
        here = Path(inputs.folder or "-").is_dir()
        if here or (path is not None and is_local(inputs.folder or model.name)):
            load_tokenizer(inputs, experiment.data.max_length)
    if path is not None:
        files = path.iterdir() if path.is_dir() else [path]
        if sum(file.stat().st_size for file in files if file.is_file()) <= _OPENED:
            request = data_request(sketch.resolved, sketch.tuned.loaded.task)
            check_rows(request)
    return []


def _weights(sketch: Sketch) -> dict[str, object]:
    """Say how a deployment weighs its sites; nothing under privacy, where all weigh the same."""
    federation = sketch.experiment.federation
    if not ENGINES[sketch.experiment.engine.name].deployed or sketch.privacy.private:
        return {}
    words = (
        "a site weighs at most the number of examples that it announces (at most "
        f"{federation.max_examples}); a site that does not tell it counts as the median of those "
        "that do"
    )
    if federation.max_weight_share < 1:
        words += f"; no site is more than {federation.max_weight_share:g} of a round's mean"
    return {"weights": words}


def _classes(sketch: Sketch, data: Federated | None) -> dict[str, object]:
    """Return the number of classes that was counted with, and what was assumed about it, if so."""
    loaded, model = sketch.tuned.loaded, sketch.experiment.model
    if not loaded.task.new_head or loaded.task.inputs is None:
        return {"num_labels": None, "num_labels_assumed": ""}
    count = int(getattr(getattr(loaded.module, "config", None), "num_labels", 0)) or None
    known = (
        loaded.task.outputs
        or model.num_labels
        or data
        or sketch.experiment.data.source in BUNDLED_DATASETS
    )
    reason = "those of the model's own head: the data were not read; set model.num_labels"
    return {"num_labels": count, "num_labels_assumed": "" if known else reason}


def _kept_deltas(sketch: Sketch) -> int:
    """Return the bytes that `run.keep_deltas` writes: the first delta, and one for each round."""
    if not sketch.experiment.run.keep_deltas:
        return 0
    return (sketch.experiment.federation.rounds + 1) * payload_bytes(sketch.tuned)


def local_data(resolved: Resolved) -> tuple[Federated | None, FedpeftError | None]:
    """Load and partition data on this machine; None where it is not, and the problem if any."""
    experiment = resolved.experiment
    if ENGINES[experiment.engine.name].deployed:
        return None, None  # this machine has the server's data, not the sites'
    if experiment.data.source not in BUNDLED_DATASETS and _own_data(experiment) is None:
        return None, None
    try:
        return load_run_data(resolved), None
    except FedpeftError as error:
        return None, error


def _own_data(experiment: Experiment) -> Path | None:
    """Return the file or folder of the user's own data; None if it is not on this machine."""
    path = Path(experiment.data.source).expanduser()
    return path if experiment.data.source not in BUNDLED_DATASETS and path.exists() else None


def _partition(data: Federated) -> Partition:
    counts = label_table(data).tolist() if data.labels is not None else []
    return Partition(
        tuple(data.clients), tuple(sizes(data).tolist()), tuple(tuple(row) for row in counts)
    )
