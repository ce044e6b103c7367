"""A folder for each client of an experiment: its part of the data, ready for a site.

    DIR/client-00/  site.toml  data.npz       pictures and clips, as the model takes them
    DIR/client-01/  site.toml  data.parquet   texts with their labels
    DIR/server/     experiment.toml  data.*   the test set, and the experiment without the data

A federation over these parts is the run on one machine: the same rows, labels and order. Pictures
that are cropped or mirrored at random are drawn anew, because a draw is keyed by a row's number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tomli_w
import torch

from fedpeft.build.model import load_run_data
from fedpeft.build.requests import data_request, model_request
from fedpeft.core.errors import ConfigError, DataError
from fedpeft.data.clips import ClipExamples, StoredClips
from fedpeft.data.examples import Federated
from fedpeft.data.load import read_rows
from fedpeft.data.request import DataRequest
from fedpeft.data.tables import Table, column_of, values_of
from fedpeft.data.tensors import ImageExamples
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.read import dump_experiment
from fedpeft.experiment.resolve import resolve
from fedpeft.models.source import sketch_model
from fedpeft.models.tasks import task_named
from fedpeft.runs.files import write_text

__all__ = ["Door", "split"]

IntArray = npt.NDArray[np.int64]
Writer = Callable[[Path, IntArray | None], str]
"""Writes rows of the training table, or the whole test table for None; returns the file's name."""

_CHUNK = 4096


@dataclass(frozen=True)
class Door:
    """What the sites' files say of the server.

    Attributes:
      address: host:port of the SuperLink.
      certificates: a folder with `ca.crt`, `publisher.pub` and a key by each site's name, or None.
    """

    address: str = "127.0.0.1:8000"
    certificates: Path | None = None


def split(experiment: Experiment, to: Path, door: Door) -> list[Path]:
    """Write each client's part, and the server's.

    Args:
      experiment: checked; need not be resolved.
      to: a new or empty folder.
      door: how the sites reach the server.

    Returns:
      the folders, the clients' first.

    Raises:
      ConfigError: if the folder is not empty.
      DataError: if such data cannot be parted into files.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to}: is not a new or empty folder; nothing is overwritten")
    resolved = resolve(experiment)
    data = load_run_data(resolved)
    num_labels = resolved.experiment.model.num_labels or 2
    shape = sketch_model(model_request(resolved, num_labels))
    request = data_request(resolved, shape.task)
    write = _writer(request, data)
    folders = []
    for client, rows in data.clients.items():
        folder = to / client
        folder.mkdir(parents=True)
        write_text(folder / "site.toml", _site_toml(client, write(folder, rows), door))
        folders.append(folder)
    server = to / "server"
    server.mkdir()
    name = write(server, None)
    write_text(server / "experiment.toml", _server_toml(experiment, data, server / name, door))
    return [*folders, server]


def _writer(request: DataRequest, data: Federated) -> Writer:
    if isinstance(data.train, ImageExamples):
        return _picture_writer(data)
    if isinstance(data.train, ClipExamples):
        return _clip_writer(data)
    if task_named(request.task).targets == "tokens":
        return _document_writer(request)
    if data.labels is None:
        raise DataError("split: only data with a class for each example is parted into files")
    return _text_writer(request, data)


def _picture_writer(data: Federated) -> Writer:
    def write(folder: Path, rows: IntArray | None) -> str:
        examples = data.test if rows is None else data.train
        assert isinstance(examples, ImageExamples), "chosen by it"
        chosen = np.arange(len(examples)) if rows is None else rows
        parts = [
            examples.pixels.read(torch.from_numpy(chosen[start : start + _CHUNK])).numpy()
            for start in range(0, len(chosen), _CHUNK)
        ]
        arrays: dict[str, Any] = {"x": np.concatenate(parts), "y": examples.labels.numpy()[chosen]}
        arrays["full_scale"] = np.array(examples.pixels.full_scale)
        np.savez_compressed(folder / "data.npz", **arrays, **_words(data))
        return "data.npz"

    return write


def _clip_writer(data: Federated) -> Writer:
    def write(folder: Path, rows: IntArray | None) -> str:
        examples = data.test if rows is None else data.train
        assert isinstance(examples, ClipExamples), "chosen by it"
        clips = examples.clips
        if not isinstance(clips, StoredClips) or examples.frame_offset:
            raise DataError(
                "split: clips with data.transforms.frame_offset, or too many for memory, are not "
                "parted into files; leave frame_offset out, or copy the clips by hand"
            )
        if clips.pixels.full_scale != 255:
            raise DataError("split: clips whose white is not 255 are not parted into files")
        chosen = torch.from_numpy(np.arange(len(examples)) if rows is None else rows)
        frames = clips.read(chosen, torch.full((len(chosen),), 0.5))
        pixels = frames.permute(0, 1, 4, 2, 3).contiguous().numpy()
        np.savez_compressed(
            folder / "data.npz", pixel_values=pixels, labels=examples.labels[chosen].numpy()
        )
        return "data.npz"

    return write


def _text_writer(request: DataRequest, data: Federated) -> Writer:
    train, test = read_rows(request)

    def write(folder: Path, rows: IntArray | None) -> str:
        table = test if rows is None else train
        chosen = np.arange(len(table)) if rows is None else rows
        text, label = (_column(table, kind, request) for kind in ("text", "label"))
        columns = {"text": _pick(table, text, chosen), "label": _pick(table, label, chosen)}
        return _write_parquet(folder, columns, data.label_names)

    return write


def _document_writer(request: DataRequest) -> Writer:
    """Part documents by their owners: blocks cannot be turned back into documents."""
    if request.partition.scheme != "natural" or request.budget is not None:
        raise DataError(
            "split: a language model's examples are blocks of joined documents; only whole "
            "documents can be parted: use data.partition.scheme = 'natural' without data.budget"
        )
    train, test = read_rows(request)
    column = _column(train, "client", request)
    owners = np.array([str(value) for value in values_of(train.columns[column])])

    def write(folder: Path, rows: IntArray | None) -> str:
        table = test if rows is None else train
        chosen = np.arange(len(table)) if rows is None else np.flatnonzero(owners == folder.name)
        texts = _pick(table, _column(table, "text", request), chosen)
        return _write_parquet(folder, {"text": texts}, None)

    return write


def _column(table: Table, kind: str, request: DataRequest) -> str:
    column = column_of(table, kind, request, required=True)
    assert column is not None, "required"
    return column


def _pick(table: Table, column: str, rows: IntArray) -> list[object]:
    values = values_of(table.columns[column])
    return [values[row] for row in rows]


def _write_parquet(
    folder: Path, columns: Mapping[str, Sequence[object]], names: Sequence[str] | None
) -> str:
    """Write columns; labels as numbers that carry the names of all classes."""
    import datasets

    features: dict[str, Any] = {"text": datasets.Value("string")}
    if "label" in columns:
        kind = datasets.ClassLabel(names=list(names)) if names else datasets.Value("int64")
        place = {name: number for number, name in enumerate(names or ())}
        labels = [place.get(str(v), v) if isinstance(v, str) else v for v in columns["label"]]
        columns = {**columns, "label": labels}
        features["label"] = kind
    made = datasets.Dataset.from_dict(dict(columns), features=datasets.Features(features))
    made.to_parquet(str(folder / "data.parquet"))
    return "data.parquet"


def _words(data: Federated) -> dict[str, Any]:
    return {"classes": np.array(data.label_names)} if data.label_names else {}


def _site_toml(client: str, file: str, door: Door) -> str:
    link: dict[str, object] = {"address": door.address}
    if door.certificates is not None:
        folder = door.certificates.resolve()
        link |= {
            "root_certificates": str(folder / "ca.crt"),
            "private_key": str(folder / client),
            "trusted_keys": [str(folder / "publisher.pub")],
        }
    return tomli_w.dumps({"name": client, "data": {"source": file}, "superlink": link})


def _server_toml(experiment: Experiment, data: Federated, file: Path, door: Door) -> str:
    """Write the experiment for a server that has the test set alone.

    The test set stands as training split too: nothing is trained on it, and the loader wants one.
    """
    transforms = experiment.data.transforms
    if transforms.normalize == "dataset" and isinstance(data.train, ImageExamples):
        view = data.train.view
        given = {"mean": list(view.mean), "std": list(view.std)}
        table = transforms.model_dump() | {"normalize": given}
        transforms = type(transforms).model_validate(table)
    own = experiment.data.model_copy(
        update={
            "source": str(file.resolve()),
            "subset": None,
            "train_split": "train",
            "test_split": "train",
            "budget": None,
            "evaluate_on": "test",
            "transforms": transforms,
            **{kind: None for kind in ("image", "text", "video", "label", "client")},
            "partition": experiment.data.partition.model_copy(
                update={"scheme": "iid", "clients": len(data.clients), "min_examples": 1}
            ),
        }
    )
    labels = experiment.model.num_labels or data.num_labels
    model = experiment.model.model_copy(update={"num_labels": labels})
    link: dict[str, object] = {"superlink": door.address}
    if door.certificates is not None:
        folder = door.certificates.resolve()
        link["root_certificates"] = str(folder / "ca.crt")
        link["signatures"] = [str(folder / "publisher.signature.json")]
    engine = experiment.engine.model_copy(update={"name": "flower", **link})
    return dump_experiment(
        experiment.model_copy(update={"data": own, "model": model, "engine": engine})
    )
