"""The server of a deployment: what Flower's ServerApp runs.

    build ──> handshake with every site ──> rounds, as in a local run ──> summary

The run folder is on the machine where the SuperLink runs. After a crash the server is submitted
again and resumes from the folder: same run id, same sites, same delta.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedpeft.build.client_side import ClientSide
from fedpeft.build.engine import scorer_of
from fedpeft.build.model import (
    build_start,
    check_device,
    fit_labels,
    load_run_data,
    payload_bytes,
)
from fedpeft.build.run import assemble
from fedpeft.core.errors import ConfigError
from fedpeft.data.examples import ExampleSet, Federated
from fedpeft.engines.flower.engine import FlowerEngine, FlowerSettings, reply_limit
from fedpeft.engines.flower.grid import Grid
from fedpeft.engines.flower.sites import Greeting, Identities, Sites
from fedpeft.experiment.engines import DEADLINE, WAIT, EngineConfig
from fedpeft.experiment.experiment import Experiment, FederationConfig
from fedpeft.experiment.read import dump_experiment, validate
from fedpeft.experiment.resolve import Resolved
from fedpeft.federation.control import Control
from fedpeft.federation.server_folder import folder_of_this_superlink
from fedpeft.federation.site_keys import identities
from fedpeft.federation.site_setup import shared_facts
from fedpeft.rounds.handshake import compare, refuse_announced, write_facts
from fedpeft.runs.files import write_text
from fedpeft.runs.folder import RunFolder, peek
from fedpeft.runs.ledger import Ledger
from fedpeft.runs.lock import locked
from fedpeft.runs.loop import run_experiment
from fedpeft.runs.records import RoundDone
from fedpeft.tuning.tuned import TunedModel

logger = logging.getLogger(__name__)

_LOCK_PATIENCE = 30.0
_CHUNK = 256


def serve(grid: Grid, configuration: Mapping[str, str | bool | int | float]) -> None:
    """Run a deployment's rounds, or only its handshake.

    Args:
      grid: Flower's connection to the sites.
      configuration: `task` ("run" or "handshake"), `experiment` (TOML text), `out` (the run folder,
        an absolute path on this machine), `resume`.

    Raises:
      FedpeftError: the errors of a run.
    """
    torch.set_num_threads(1)
    experiment = validate(tomllib.loads(str(configuration["experiment"])), "experiment")
    folder = RunFolder(Path(str(configuration["out"])))
    if not folder.path.is_absolute():
        raise ConfigError(f"--out: found {folder.path}; a deployment needs an absolute path")
    server = _prepare(experiment)
    trains, resume = configuration["task"] == "run", bool(configuration["resume"])
    if trains and peek(server.resolved, folder, resume=resume) is not None:
        return
    folder.path.mkdir(parents=True, exist_ok=True)
    with locked(folder.path, patience=_LOCK_PATIENCE):
        (_run if trains else _greet)(grid, server, folder)


@dataclass(frozen=True)
class _Server:
    resolved: Resolved
    tuned: TunedModel
    data: Federated

    @property
    def experiment(self) -> Experiment:
        return self.resolved.experiment

    @property
    def text(self) -> str:
        return dump_experiment(for_sites(self.experiment))


def _prepare(experiment: Experiment) -> _Server:
    """Load the server's own model and test data; no client has the server's training rows."""
    check_device(experiment)
    one = experiment.data.partition.model_copy(
        update={"scheme": "iid", "clients": 1, "min_examples": 1}
    )
    own = experiment.data.model_copy(update={"partition": one})
    resolved = Resolved(experiment)
    data = load_run_data(resolved.changed(data=own))
    resolved = fit_labels(resolved, data)
    experiment = resolved.experiment
    tuned = build_start(resolved, experiment.model.num_labels)
    return _Server(resolved, tuned, data)


def for_sites(experiment: Experiment) -> Experiment:
    """Return the experiment as sites get it, the same after every resume and on every machine.

    A site recognises a repeated request by its bytes, and both sides compare a digest of what a
    turn depends on; so settings that mean something to the server alone are left out.
    """
    own = experiment.engine
    plain = {
        "algorithm": "fedavg",
        "options": {},
        "sampling": "fixed",
        "sampling_options": {},
        "max_examples": FederationConfig().max_examples,
        "site_examples": {},
        "max_weight_share": 1.0,
    }
    changed: dict[str, object] = {
        "engine": EngineConfig(name=own.name, device=own.device, precision=own.precision),
        "federation": experiment.federation.model_copy(update=plain),
        "run": experiment.run.model_copy(update={"callbacks": []}),
        "tuning": experiment.tuning.changed(start=None),  # its values are in the first broadcast
        "answers": None,
        "objects": {},
    }
    return experiment.model_copy(update=changed)


def _run(grid: Grid, server: _Server, folder: RunFolder) -> None:
    experiment = server.experiment
    if not folder.experiment.exists():
        # marks the folder as a run folder before anything else is in it
        write_text(folder.experiment, dump_experiment(experiment))
    ledger = Ledger(folder.path, secret=experiment.federation.sampling == "poisson")
    _note_data(ledger, server)
    ledger.note("started", {"run_id": ledger.run_id, "resumed": folder.rounds.exists()})
    sites = _meet(grid, server, ledger)

    def build_engine(side: ClientSide) -> FlowerEngine:
        settings = FlowerSettings(
            server.text,
            ledger.run_id,
            reply_limit(payload_bytes(side.tuned)),
            deadline=experiment.engine.deadline or DEADLINE,
        )
        return FlowerEngine(
            lambda: grid,
            sites,
            settings,
            watch=ledger.watch,
            scorer=scorer_of(side),
            complaint=sites.complaint,
        )

    data = _without_rows(server.data, sites.clients())
    built = assemble(server.resolved, server.tuned, data, build_engine, ledger.announced)
    summary = run_experiment(built, folder, functools.partial(_note_round, ledger))
    ledger.note("finished", {"delta_digest": summary["delta_digest"]})
    ledger.save()


def _greet(grid: Grid, server: _Server, folder: RunFolder) -> None:
    ledger = Ledger(folder.path)
    _note_data(ledger, server)
    ledger.note("handshake", {"run_id": ledger.run_id})
    _meet(grid, server, ledger)
    ledger.save()


def _meet(grid: Grid, server: _Server, ledger: Ledger) -> Sites:
    """Run the handshake with every site of the experiment."""
    experiment = server.experiment
    facts = shared_facts(for_sites(experiment), server.tuned, server.data)
    federation = experiment.federation

    def judge(theirs: Mapping[str, str]) -> list[str]:
        most, otherwise = federation.site_examples, federation.max_examples
        return [*compare(facts, theirs), *refuse_announced(theirs, most, otherwise)]

    greeting = Greeting(server.text, ledger.run_id, write_facts(facts), judge)
    identities = _identities()
    sites = Sites(grid, greeting, names=ledger.names, watch=ledger.watch, identities=identities)
    expected = experiment.data.partition.clients or 1
    ledger.fix(sites.meet(expected, experiment.engine.wait or WAIT))
    return sites


def _identities() -> Identities | None:
    """Return the check of names against keys; None where the server has no table of sites."""
    own = folder_of_this_superlink()
    if own is None or own.sites is None:
        logger.warning("a site is who it says it is: this server binds no names to keys")
        return None

    def fingerprints() -> Mapping[int, str]:
        with contextlib.closing(Control(own.link)) as control:
            return control.fingerprints()

    return identities(own.sites, fingerprints)


def _without_rows(data: Federated, names: Sequence[str]) -> Federated:
    """Return the server's data set: its test rows, and clients without rows."""
    clients = {name: np.empty(0, dtype=np.int64) for name in names}
    return dataclasses.replace(
        data, clients=clients, labels=None, test_clients={}, digest=data_digest(data.test)
    )


def data_digest(test: ExampleSet) -> str:
    """Return a SHA-256 (hex) of the examples that the server evaluates on, as models get them."""
    digest = hashlib.sha256()
    for start in range(0, len(test), _CHUNK):
        batch = test.batch(range(start, min(start + _CHUNK, len(test))), seed=None)
        for name, tensor in sorted(batch.items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _note_data(ledger: Ledger, server: _Server) -> None:
    """Say which of the server's own examples it uses: it evaluates on some, and trains on none."""
    asked, used = server.experiment.data, len(server.data.test)
    one_split = asked.train_split is not None and asked.train_split == asked.test_split
    unused = 0 if one_split else len(server.data.train)
    ledger.add({"evaluated": used, "unused": unused})
    if unused:
        logger.info(
            "%d of the server's %d examples are evaluated; the %d of the training split are not "
            "used: give the server test examples alone to use all", used, used + unused, unused,
        )  # fmt: skip


def _note_round(ledger: Ledger, done: RoundDone) -> None:
    keys = ("round", "metrics", "bytes_up", "bytes_down", "seconds")
    ledger.note("round", {key: done.record[key] for key in keys})
    ledger.save()
