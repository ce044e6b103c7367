"""Scores of a server state on the server's test set: over all of it, and client by client."""

from __future__ import annotations

import math

import torch

from fedpeft.client.evaluate import Evaluation, evaluate
from fedpeft.client.local import LocalSettings
from fedpeft.data.examples import Federated
from fedpeft.server.state import ServerState
from fedpeft.tuning.tuned import TunedModel, write_buffers, write_delta

__all__ = ["score_clients", "score_state"]

_BATCH = 256


def score_state(
    tuned: TunedModel, data: Federated, settings: LocalSettings, state: ServerState
) -> Evaluation:
    """Evaluate a state's delta on the server's test set, with one thread."""
    write_delta(tuned, state.delta)
    if tuned.buffers:
        write_buffers(tuned, state.buffers)
    by_token = tuned.loaded.task.metric == "perplexity"  # logits are as wide as the vocabulary
    batch_size = settings.batch_size if by_token else _BATCH
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return evaluate(tuned, data.test, settings, batch_size)
    finally:
        torch.set_num_threads(before)


def score_clients(evaluation: Evaluation, tuned: TunedModel, data: Federated) -> dict[str, float]:
    """Score each client: on its own test rows, or by class in the client's own proportions."""
    metric = tuned.loaded.task.metric
    if data.test_clients:
        return {
            client: tuned.loaded.task.metrics(*evaluation.sums(rows.tolist()))[metric]
            for client, rows in data.test_clients.items()
        }
    if data.labels is None or data.num_labels is None:
        return {}
    right = [
        evaluation.sums((evaluation.label_N == label).nonzero().flatten().tolist())
        for label in range(data.num_labels)
    ]
    by_class = [correct / count if count else math.nan for _, count, correct in right]
    return {
        client: sum(by_class[label] for label in data.labels[rows]) / len(rows)
        for client, rows in data.clients.items()
    }
