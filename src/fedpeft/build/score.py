"""Scores of a server state on the server's test set: over all of it, and client by client."""

from __future__ import annotations

from collections.abc import Callable

from fedpeft.client.evaluate import Evaluation
from fedpeft.data.examples import Federated
from fedpeft.server.state import ServerState
from fedpeft.tuning.tuned import TunedModel

__all__ = ["score_clients", "scored_once"]


def scored_once(score: Callable[[ServerState], Evaluation]) -> Callable[[ServerState], Evaluation]:
    """Keep the newest evaluation: figures of the whole set and of the clients come from one."""
    last: list[tuple[ServerState, Evaluation]] = []

    def scored(state: ServerState) -> Evaluation:
        if not last or last[0][0] is not state:
            last[:] = [(state, score(state))]
        return last[0][1]

    return scored


def score_clients(evaluation: Evaluation, tuned: TunedModel, data: Federated) -> dict[str, float]:
    """Score each client: on its own test rows, or by class in the client's own proportions."""
    task = tuned.loaded.task

    def scored(rows: list[int]) -> float:
        return task.metrics(*evaluation.sums(rows))[task.headline.name]

    if data.test_clients:
        return {client: scored(rows.tolist()) for client, rows in data.test_clients.items()}
    if data.labels is None or data.num_labels is None:
        return {}
    by_class = [
        scored((evaluation.label_N == label).nonzero().flatten().tolist())
        for label in range(data.num_labels)
    ]
    return {
        client: sum(by_class[label] for label in data.labels[rows]) / len(rows)
        for client, rows in data.clients.items()
    }
