"""One folder for each client of an experiment: its part of the data, ready for a site.

    DIR/client-00/  site.toml  data.npz       pictures and clips, as the model takes them
    DIR/client-01/  site.toml  data.parquet   texts with their labels, documents or conversations
    DIR/server/     experiment.toml  data.*   the test set, and the experiment without the data

A federation over these parts repeats the run on one machine: same rows, labels and order. Random
crops and flips are drawn differently, because each draw is keyed by the row's number.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import tomli_w
import torch

from fedpeft.build.model import data_request, load_run_data, model_request
from fedpeft.core.errors import ConfigError, DataError
from fedpeft.data.clips import ClipExamples, StoredClips
from fedpeft.data.conversations import conversation_columns, conversations_of
from fedpeft.data.examples import Federated
from fedpeft.data.request import Columns, DataRequest
from fedpeft.data.rows import read_rows
from fedpeft.data.tables import Table, column_of, values_of
from fedpeft.data.tensors import ImageExamples
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.read import dump_experiment
from fedpeft.experiment.resolve import resolve
from fedpeft.models.source import sketch_model
from fedpeft.models.tasks import task_named
from fedpeft.runs.files import write_text

IntArray = npt.NDArray[np.int64]
Writer = Callable[[Path, IntArray | None], str]
"""Writes rows of the training set, or the whole test set for None; returns the file's name."""

_Rows = TypeVar("_Rows", bound=Sized)
_CHUNK = 4096


@dataclass(frozen=True)
class ServerAddress:
    """How the sites reach the server.

    Attributes:
      address: HOST:PORT that sites call.
      certificates: a folder with `ca.crt`, `publisher.pub` and one private key for each site, in a
        file of the site's name; None for no TLS.
      superlink: HOST:PORT of the SuperLink on the server itself, where sites call a gateway.
    """

    address: str = "127.0.0.1:8000"
    certificates: Path | None = None
    superlink: str = "127.0.0.1:8000"


def split(experiment: Experiment, to: Path, server: ServerAddress) -> list[Path]:
    """Write one folder for each client, and one for the server.

    Args:
      experiment: checked; need not be resolved.
      to: a new or empty folder.
      server: how the sites reach the server.

    Returns:
      The folders, the clients' first.

    Raises:
      ConfigError: if the folder is not empty.
      DataError: if data of this kind cannot be split into files.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to}: is not a new or empty folder; nothing is overwritten")
    resolved = resolve(experiment)
    data = load_run_data(resolved)
    shape = sketch_model(model_request(resolved, resolved.experiment.model.num_labels or 2))
    write, clients = _writer(data_request(resolved, shape.task), data)
    for client, rows in clients.items():
        folder = to / client
        folder.mkdir(parents=True)
        write_text(folder / "site.toml", _site_toml(client, write(folder, rows), server))
    own = to / "server"
    own.mkdir()
    file = own / write(own, None)
    write_text(own / "experiment.toml", _server_toml(experiment, data, file, server))
    return [*(to / client for client in clients), own]


def _writer(request: DataRequest, data: Federated) -> tuple[Writer, Mapping[str, IntArray]]:
    """Return what writes the data, and which rows of its training set each client has."""
    train, test = data.train, data.test
    if isinstance(train, ImageExamples) and isinstance(test, ImageExamples):
        save = functools.partial(_save_pictures, names=data.label_names)
        return _of_either(train, test, save), data.clients
    if isinstance(train, ClipExamples) and isinstance(test, ClipExamples):
        return _of_either(train, test, _save_clips), data.clients
    documents = task_named(request.task).targets == "tokens"
    if documents and (request.partition.scheme != "natural" or request.budget is not None):
        raise DataError(
            "split: a language model's examples are blocks of joined documents, or conversations "
            "that fit, and only whole rows of the source can be split: use data.partition.scheme = "
            "'natural' without data.budget"
        )
    if not documents and data.labels is None:
        raise DataError(
            "split: found examples without a class; allowed are texts, pictures and clips with one "
            "class each, and documents"
        )
    tables = read_rows(request)
    talks = conversation_columns(tables, request) if documents else None
    kinds = ("text",) if documents else ("text", "label")

    def save_texts(folder: Path, table: Table, rows: IntArray) -> str:
        columns: dict[str, Sequence[object]]
        if talks is not None:
            columns = {"messages": [*map(json.dumps, conversations_of(table, talks))]}
        else:
            columns = {kind: _values(table, kind, request) for kind in kinds}
        chosen = {kind: [values[row] for row in rows] for kind, values in columns.items()}
        return _write_parquet(folder, chosen, data.label_names)

    clients = _by_owner(tables[0], request, data) if documents else data.clients
    return _of_either(*tables, save_texts), clients


def _of_either(train: _Rows, test: _Rows, save: Callable[[Path, _Rows, IntArray], str]) -> Writer:
    def write(folder: Path, rows: IntArray | None) -> str:
        if rows is None:
            return save(folder, test, np.arange(len(test)))
        return save(folder, train, rows)

    return write


def _save_pictures(
    folder: Path, examples: ImageExamples, rows: IntArray, names: Sequence[str] | None
) -> str:
    chunks = [torch.from_numpy(rows[at : at + _CHUNK]) for at in range(0, len(rows), _CHUNK)]
    arrays: dict[str, Any] = {
        "x": np.concatenate([examples.pixels.read(chunk).numpy() for chunk in chunks]),
        "y": examples.labels.numpy()[rows],
        "full_scale": np.array(examples.pixels.full_scale),
        **({"classes": np.array(names)} if names else {}),
    }
    np.savez_compressed(folder / "data.npz", **arrays)
    return "data.npz"


def _save_clips(folder: Path, examples: ClipExamples, rows: IntArray) -> str:
    clips = examples.clips
    if not isinstance(clips, StoredClips) or examples.frame_offset:
        raise DataError(
            "split: clips with data.transforms.frame_offset, or too many for memory, cannot be "
            "split into files; leave frame_offset out, or copy the clips by hand"
        )
    if clips.pixels.full_scale != 255:
        raise DataError(
            f"split: found clips whose white is {clips.pixels.full_scale:g}; allowed is 255 "
            "(8 bits); convert the clips"
        )
    chosen = torch.from_numpy(rows)
    frames = clips.read(chosen, torch.full((len(chosen),), 0.5))
    pixels = frames.permute(0, 1, 4, 2, 3).contiguous().numpy()
    labels = examples.labels[chosen].numpy()
    np.savez_compressed(folder / "data.npz", pixel_values=pixels, labels=labels)
    return "data.npz"


def _by_owner(table: Table, request: DataRequest, data: Federated) -> dict[str, IntArray]:
    """Return each client's rows: examples, such as blocks, cannot be turned back into them."""
    owners = np.array([str(value) for value in _values(table, "client", request)])
    return {client: np.flatnonzero(owners == client) for client in data.clients}


def _values(table: Table, kind: str, request: DataRequest) -> Sequence[object]:
    column = column_of(table, kind, request, required=True)
    assert column is not None, "required"
    return values_of(table.columns[column])


def _write_parquet(
    folder: Path, columns: Mapping[str, Sequence[object]], names: Sequence[str] | None
) -> str:
    """Write columns; labels become numbers, stored with the names of all classes."""
    import datasets

    features: dict[str, Any] = {
        kind: datasets.Value("string") for kind in columns if kind != "label"
    }
    if "label" in columns:
        place: dict[object, object] = {name: number for number, name in enumerate(names or ())}
        columns = {**columns, "label": [place.get(label, label) for label in columns["label"]]}
        kind = datasets.ClassLabel(names=list(names)) if names else datasets.Value("int64")
        features["label"] = kind
    made = datasets.Dataset.from_dict(dict(columns), features=datasets.Features(features))
    made.to_parquet(str(folder / "data.parquet"))
    return "data.parquet"


def _site_toml(client: str, file: str, server: ServerAddress) -> str:
    link: dict[str, object] = {"address": server.address}
    if server.certificates is not None:
        folder = server.certificates.resolve()
        link |= {
            "root_certificates": str(folder / "ca.crt"),
            "private_key": str(folder / client),
            "trusted_keys": [str(folder / "publisher.pub")],
        }
    return tomli_w.dumps({"name": client, "data": {"source": file}, "superlink": link})


def _server_toml(experiment: Experiment, data: Federated, file: Path, server: ServerAddress) -> str:
    """Return the experiment for a server that has only the test set.

    The loader requires a training split, so the test set is named as that too; the server trains
    on nothing.
    """
    transforms = experiment.data.transforms
    if transforms.normalize == "dataset" and isinstance(data.train, ImageExamples):
        given = {"mean": list(data.train.view.mean), "std": list(data.train.view.std)}
        transforms = transforms.model_validate(transforms.model_dump() | {"normalize": given})
    own = experiment.data.model_copy(
        update={
            **{"source": str(file.resolve()), "train_split": "train", "test_split": "train"},
            **{"evaluate_on": "test", "transforms": transforms},
            **dict.fromkeys(("subset", "budget", "max_test")),
            **dict.fromkeys(each.name for each in dataclasses.fields(Columns)),
            "partition": experiment.data.partition.model_copy(
                update={"scheme": "iid", "clients": len(data.clients), "min_examples": 1}
            ),
        }
    )
    labels = experiment.model.num_labels or data.num_labels
    model = experiment.model.model_copy(update={"num_labels": labels})
    link: dict[str, object] = {"superlink": server.address}
    if server.certificates is not None:
        link["superlink"] = server.superlink
        folder = server.certificates.resolve()
        link["root_certificates"] = str(folder / "ca.crt")
        link["signatures"] = [str(folder / "publisher.signature.json")]
    engine = experiment.engine.model_copy(update={"name": "flower", **link})
    return dump_experiment(
        experiment.model_copy(update={"data": own, "model": model, "engine": engine})
    )
