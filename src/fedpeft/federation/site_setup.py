"""What a site trains, from its own file and a server's experiment.

    server's experiment ──allow-list──> model name, method, training, wire, privacy ─┐
    site.toml ────────────────────────> data, model folders, device, limits ─────────┴─> client half

Nothing else of the server's experiment is used: it cannot name a path of this site or code to run,
and it cannot ask for more than the delta and the metrics that the site allows.
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from fedpeft.build.client_side import client_side
from fedpeft.build.model import (
    build_tuned,
    check_device,
    data_request,
    model_request,
    tuning_request,
)
from fedpeft.build.privacy_of_run import PrivacyOfRun
from fedpeft.core.cpus import num_cores
from fedpeft.core.errors import ConfigError, DataError
from fedpeft.data.examples import ClientData, Federated
from fedpeft.data.load import load_data
from fedpeft.data.request import Columns, DataRequest
from fedpeft.data.schemes import PartitionRequest
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.plugins import installed
from fedpeft.experiment.resolve import Resolved
from fedpeft.experiment.schema import explain
from fedpeft.experiment.site_file import SiteConfig
from fedpeft.federation.site import Limits, Prepared, Site
from fedpeft.federation.site_budget import charge
from fedpeft.federation.site_policy import agree
from fedpeft.federation.turn_count import check_turn, count_turn
from fedpeft.federation.turn_store import TurnStore
from fedpeft.models.source import sketch_model
from fedpeft.rounds.handshake import NOT_TOLD, VERSIONS, label_fact, model_facts
from fedpeft.runs.environment import versions
from fedpeft.runs.files import write_whole
from fedpeft.runs.folder import experiment_digest
from fedpeft.tuning.methods import tune
from fedpeft.tuning.tuned import TunedModel


def make_site(site: SiteConfig) -> Site:
    """Build a site from its file; model and data are loaded when the first request comes."""
    torch.set_num_threads(site.worker.threads)
    store = TurnStore(Path(site.state) / "turns", functools.partial(write_whole, mode=0o600))
    allow = site.allow
    limits = Limits(allow.max_message_bytes, frozenset(allow.metrics), allow.num_examples)
    return Site(site.name, functools.partial(prepare, site), store, limits)


def prepare(site: SiteConfig, text: str) -> Prepared:
    """Load model and data for the text of a server's experiment.

    Raises:
      ConfigError: listing everything in it that this site does not allow.
      PrivacyError: if it protects less than the site demands.
      DataError: if the site's data does not fit the model.
    """
    server = _read(text)
    experiment = agree(server, site)
    check_device(experiment)
    num_labels = experiment.model.num_labels
    resolved = Resolved(experiment, installed().only(site.allow.plugins))
    shape = sketch_model(model_request(resolved, num_labels or 2))
    _check_size(tune(shape, tuning_request(resolved)), site)  # before any of it takes memory
    data = _load(experiment, site)
    if data.num_labels is not None and num_labels is not None and data.num_labels > num_labels:
        raise DataError(
            f"data: this site has {data.num_labels} classes, the experiment {num_labels}; list "
            "the classes in data.classes"
        )
    tuned = build_tuned(resolved, num_labels or data.num_labels)
    _check_size(tuned, site)
    rows = np.arange(len(data.train), dtype=np.int64)
    whole = dataclasses.replace(data, clients={site.name: rows})
    side = client_side(_features_in_memory(resolved, site), tuned, whole)
    privacy = PrivacyOfRun(experiment)
    counted = site.allow.num_examples and not privacy.private
    return Prepared(
        side.half(),
        ClientData(side.data.train, rows),
        shared_facts(server, tuned, data) | _site_facts(site, len(data.train) if counted else None),
        once=privacy.mode.noise_by == "client",
        charge=functools.partial(_charge, site, experiment),
    )


def _charge(site: SiteConfig, experiment: Experiment, run: str, turn: int, request: str) -> None:
    """Count a turn, and its privacy, before it is trained; nothing is recorded if one refuses."""
    check_turn(site, run, request)
    charge(site, experiment, run, turn, request)
    count_turn(site, run, turn, request)


def shared_facts(experiment: Experiment, tuned: TunedModel, data: Federated) -> dict[str, str]:
    """Return the facts that both sides exchange in a handshake and compare.

    Args:
      experiment: resolved; the one in the text that is sent to the sites.
      tuned: this side's model.
      data: this side's data; the server's label names are those of the federation.
    """
    found = versions(VERSIONS)
    return {
        **model_facts(tuned),
        "experiment": experiment_digest(experiment),
        "labels": label_fact(data.label_names),
        **{f"version.{package}": found[package] or "" for package in (*VERSIONS, "python")},
    }


def _read(text: str) -> Experiment:
    """Read a server's experiment by the schema alone; no path in it is opened."""
    try:
        return Experiment.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        reason = str(error)
    except ValidationError as error:
        reason = "; ".join(problem.line for problem in explain(error, Experiment))
    raise ConfigError(
        f"the server's experiment cannot be read here: {reason}. Use the same release of fedpeft "
        "on both sides, and no keys of your own"
    )


def _load(experiment: Experiment, site: SiteConfig) -> Federated:
    """Load all of the site's own examples, in the order of its files."""
    resolved = Resolved(experiment, installed().only(site.allow.plugins))
    shape = sketch_model(model_request(resolved, experiment.model.num_labels or 2))
    request, own = data_request(resolved, shape.task), site.data
    return load_data(
        DataRequest(
            source=own.source,
            task=request.task,
            columns=Columns(
                image=own.image,
                text=own.text,
                label=own.label,
                video=own.video,
                messages=own.messages,
                prompt=own.prompt,
                input=own.input,
                completion=own.completion,
            ),
            train_split=own.train_split,
            max_length=request.max_length,
            chat_template=request.chat_template,
            learn=request.learn,
            truncation=request.truncation,
            packing=request.packing,
            seed=request.seed,
            transforms=request.transforms,
            partition=PartitionRequest(scheme="iid", clients=1, min_examples=1),
            classes=tuple(own.classes),
            whole=True,
            header=own.header,
            separator=own.separator,
        ),
        shape.inputs,
    )


def _features_in_memory(resolved: Resolved, site: SiteConfig) -> Resolved:
    """Limit the cache of the frozen prefix: in memory only, and no more than the site allows."""
    client, worker = resolved.experiment.client, site.worker
    most = min(client.prefix_memory, worker.prefix_memory)
    kept = worker.resident and most > 0 and client.prefix_cache != "off"
    changes = {"prefix_cache": "memory" if kept else "off", "prefix_memory": max(1, most)}
    return resolved.changed(client=client.model_copy(update=changes))


def _check_size(tuned: TunedModel, site: SiteConfig) -> None:
    size = tuned.spec.num_bytes + tuned.buffer_spec.num_bytes
    if size > site.allow.max_message_bytes:
        raise ConfigError(
            f"tuning: the delta has {size} bytes; this site allows {site.allow.max_message_bytes} "
            "(allow.max_message_bytes)"
        )


def _site_facts(site: SiteConfig, num_examples: int | None) -> dict[str, str]:
    """Return a site's own facts; the number of examples unless its owner or privacy forbids it."""
    return {
        "site": site.name,
        "examples": NOT_TOLD if num_examples is None else str(num_examples),
        "metrics": ", ".join(site.allow.metrics),
        "device": site.worker.device,
        "cores": str(num_cores()),
        "threads": str(site.worker.threads),
    }
