"""The client's side of a run: one builder for every engine, and for a site.

    experiment, model, data ──> frozen prefix cut off ──> clients in a pass ──> client half

In a simulation by Flower, a process that takes turns builds its own from the experiment's text:

    text ──once in a process──> model, data, client half ──one request at a time──> answers

It is the same client half with one thread, and gives the same bytes.
"""

from __future__ import annotations

import functools
import logging
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fedpeft.build.model import build_tuned, load_run_data, local_settings, up_stages
from fedpeft.build.passes import resolve_passes
from fedpeft.build.prefix import PrefixNote, with_prefix
from fedpeft.build.privacy_of_run import PrivacyOfRun
from fedpeft.client.packing_check import check_packed
from fedpeft.client.passes.many import many_trainer
from fedpeft.client.settings import LocalSettings
from fedpeft.client.turns import ClientTurn
from fedpeft.core.errors import FedpeftError
from fedpeft.data.examples import ClientData, Federated
from fedpeft.engines.flower.requests import Answer, Request
from fedpeft.experiment.experiment import num_together
from fedpeft.experiment.read import validate
from fedpeft.experiment.resolve import Resolved
from fedpeft.rounds.client_half import ClientHalf, run_turn
from fedpeft.tuning.tuned import TunedModel
from fedpeft.wire import messages

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClientSide:
    """Model, data and settings with which the clients of a run train.

    Attributes:
      resolved: the experiment, with the number of clients that share a pass.
      tuned: the model that trains: what follows a frozen prefix, or all of it.
      data: its examples: kept features where there is a prefix.
      settings: of local training; evaluation takes device and precision from them.
      prefix: the decision on the frozen prefix.
      half: builds the client half; called in the process that takes the turns.
    """

    resolved: Resolved
    tuned: TunedModel
    data: Federated
    settings: LocalSettings
    prefix: PrefixNote
    half: Callable[[], ClientHalf]


def client_side(resolved: Resolved, tuned: TunedModel, data: Federated) -> ClientSide:
    """Cut the frozen prefix off a run's model where there is one, and decide how clients train.

    Args:
      resolved: the experiment; its model, tuning and data parts are not read.
      tuned: the whole model, on the CPU; the client's side owns it from here on.
      data: of all clients.

    Raises:
      PrivacyError: if the model cannot be trained with the experiment's privacy.
      DataError: if the examples are packed and the model would not keep them apart.
    """
    check_packed(tuned, data.train)
    PrivacyOfRun(resolved.experiment).refuse_model(tuned)
    settings = local_settings(resolved)
    cut = with_prefix(resolved.experiment, tuned, data, settings)
    engine = resolve_passes(resolved.experiment, cut.tuned, cut.data, settings).engine
    resolved = resolved.changed(engine=engine)
    half = functools.partial(_half, cut.tuned, settings, resolved)
    return ClientSide(resolved, cut.tuned, cut.data, settings, cut.note, half)


def _half(tuned: TunedModel, settings: LocalSettings, resolved: Resolved) -> ClientHalf:
    experiment = resolved.experiment
    return ClientHalf(
        many_trainer(tuned, settings, clients_per_pass=num_together(experiment)),
        up_stages(resolved),
        resolved.down,
        tuned.spec,
        PrivacyOfRun(experiment).private,
        tuned.buffer_spec,
    )


def take(request: Request, memory: bytes) -> tuple[Answer, bytes]:
    """Take a turn of any client of a simulation.

    An error is answered too: by a refusal with its reason.

    Args:
      request: names the client and the turn.
      memory: the client's memory after its last committed turn, encoded; b"" where it is empty.

    Returns:
      the answer, and the client's new memory, encoded.
    """
    began = time.perf_counter()
    torch.set_num_threads(1)
    try:
        half, federated = _of_process(request.experiment)
        kept = messages.decode(memory, most_header=2**20)[0] if memory else {}
        data = ClientData(federated.train, federated.clients[request.client])
        turn = ClientTurn(request.round, request.client, data, kept, request.seed, request.version)
        blob, after = run_turn(half, request.blob, turn)
    except (FedpeftError, ValueError, RuntimeError, OSError, MemoryError) as error:
        logger.debug("client %s failed", request.client, exc_info=True)
        reason = f"{type(error).__name__}: {error}"
        return Answer(request.client, request.round, refused=reason), b""
    answer = Answer(request.client, request.round, blob, time.perf_counter() - began)
    return answer, messages.encode(after) if after else b""


@functools.lru_cache(maxsize=1)
def _of_process(text: str) -> tuple[ClientHalf, Federated]:
    """Build client half and data from an experiment's text; kept for this process's next turn."""
    resolved = Resolved(validate(tomllib.loads(text), "experiment"))
    tuned = build_tuned(resolved, resolved.experiment.model.num_labels)
    side = client_side(resolved, tuned, load_run_data(resolved))
    return side.half(), side.data
