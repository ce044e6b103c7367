"""From the keys of an experiment to the plain values that the rooms below take."""

from __future__ import annotations

import dataclasses

from fedpeft.build.model import data_request
from fedpeft.data.schemes import PartitionRequest
from fedpeft.experiment.experiment import PartitionConfig
from fedpeft.experiment.read import DIGITS, read_experiment
from fedpeft.experiment.resolve import resolve


def test_every_key_of_a_partition_is_a_field_of_its_request():
    fields = {field.name for field in dataclasses.fields(PartitionRequest)}
    assert set(PartitionConfig.model_fields) == fields - {"seed", "rule"}


def test_the_keys_of_a_partition_arrive():
    given = {"scheme": "pathological", "clients": 7, "alpha": 0.5, "min_examples": 3}
    given |= {"classes_per_client": 4, "examples_per_client": 9}
    sets = [f"data.partition.{key}={value}" for key, value in given.items()]
    sets += ["seed=5", "federation.clients_per_round=2"]
    found = data_request(resolve(read_experiment(DIGITS, sets)), "image-classification")
    partition = dataclasses.asdict(found.partition)
    assert partition.items() >= {**given, "seed": 5}.items()
    assert all(given[key] != getattr(PartitionRequest(), key) for key in given)
