"""Figures of clients: on their own test rows, or by class; None where nothing is known."""

from __future__ import annotations

import numpy as np
import torch

from fedpeft.build.run import score_clients
from fedpeft.client.evaluate import Evaluation
from fedpeft.data.examples import Federated
from fedpeft.models.tasks import classification_task

ONES = torch.ones(4, dtype=torch.float64)
SCORES = Evaluation(ONES, ONES, torch.tensor([1.0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]))
LABELS = np.array([0, 1, 0, 0, 2])
CLIENTS = {"even": np.array([0, 1]), "one": np.array([2, 3]), "unseen": np.array([1, 4])}


def scored(labels=LABELS, own=None):
    data = Federated(None, None, CLIENTS, 3, None, labels, "made", own or {})
    return score_clients(SCORES, classification_task(lambda net, batch: net), data)


def test_by_class_and_none_for_a_class_that_the_test_set_lacks():
    assert scored() == {"even": 0.75, "one": 0.5, "unseen": None}


def test_on_their_own_rows_and_none_without_rows():
    own = {"even": np.array([0]), "one": np.array([1, 2]), "unseen": np.array([], dtype=int)}
    assert scored(own=own) == {"even": 1.0, "one": 0.5, "unseen": None}


def test_data_without_labels_say_nothing():
    assert scored(labels=None) == dict.fromkeys(CLIENTS)
