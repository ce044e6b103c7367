"""A card says how many clients there were, natural ones too; and one median everywhere."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fedpeft.core.text import median_words
from fedpeft.experiment.experiment import Experiment
from fedpeft.export.card import CardFacts
from fedpeft.results.runs import Partition, describe_partition


@pytest.mark.parametrize(
    ("environment", "asked", "said"),
    [
        ({"data": {"clients": 12}}, None, "12"),
        ({"data": {}}, 7, "7"),
        ({}, None, "as many as the data has"),
    ],
)
def test_clients_are_counted_or_described(environment, asked, said):
    table = {"data": {"partition": {"clients": asked}}}
    info = SimpleNamespace(experiment=Experiment.model_validate(table))
    facts = CardFacts(SimpleNamespace(environment=environment), info, None, "", "")
    assert facts.clients == said


def test_an_even_number_of_clients_has_the_mean_of_the_middle_two():
    assert [median_words(s) for s in ([204, 202], [1, 2], [5, 1, 3])] == ["203", "1.5", "3"]
    found = Partition(("a", "b"), ("x",), ((204,), (202,)))
    assert "(median 203)" in describe_partition(found)
