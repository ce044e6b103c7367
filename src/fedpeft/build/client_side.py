"""A client's side of a simulation, built from the text of an experiment alone.

    text ──once a process──> model, data, client half ──a request at a time──> answers

The same client half as that of the local engine, with one thread: the same bytes come out.
"""

from __future__ import annotations

import functools
import logging
import time
import tomllib
from dataclasses import dataclass

import torch

from fedpeft.build.model import build_tuned, load_run_data, make_half
from fedpeft.build.prefix import with_prefix
from fedpeft.build.requests import local_settings
from fedpeft.client.turns import ClientTurn
from fedpeft.core.errors import FedpeftError
from fedpeft.data.examples import ClientData, Federated
from fedpeft.engines.flower.requests import Answer, Request
from fedpeft.experiment.read import validate
from fedpeft.rounds.client_half import ClientHalf, run_turn
from fedpeft.wire import messages

__all__ = ["take"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Side:
    half: ClientHalf
    data: Federated


def take(request: Request, memory: bytes) -> tuple[Answer, bytes]:
    """Take a turn of any client of a simulation.

    What goes wrong is an answer too: a refusal with its reason.

    Args:
      request: names the client and the turn.
      memory: what the client kept after its last committed turn, encoded; b"" for nothing.

    Returns:
      the answer, and what the client keeps, encoded.
    """
    began = time.perf_counter()
    torch.set_num_threads(1)
    try:
        side = _side(request.experiment)
        kept = messages.decode(memory)[0] if memory else {}
        data = ClientData(side.data.train, side.data.clients[request.client])
        turn = ClientTurn(request.round, request.client, data, kept, request.seed, request.version)
        blob, after = run_turn(side.half, request.blob, turn)
    except (FedpeftError, ValueError, RuntimeError, OSError, MemoryError) as error:
        logger.debug("client %s failed", request.client, exc_info=True)
        reason = f"{type(error).__name__}: {error}"
        return Answer(request.client, request.round, refused=reason), b""
    answer = Answer(request.client, request.round, blob, time.perf_counter() - began)
    return answer, messages.encode(after) if after else b""


@functools.lru_cache(maxsize=1)
def _side(text: str) -> _Side:
    """Build model, data and client half; kept for the next turn of this process."""
    experiment = validate(tomllib.loads(text), "experiment")
    tuned = build_tuned(experiment, experiment.model.num_labels)
    settings = local_settings(experiment)
    prefixed = with_prefix(experiment, tuned, load_run_data(experiment), settings)
    return _Side(make_half(prefixed.tuned, settings, experiment), prefixed.data)
