"""Tables with other values."""

from __future__ import annotations

from fedpeft.experiment.experiment import Experiment, Normalization


def test_a_mapping_changes_single_keys_of_the_tables_inside():
    before = Experiment.model_validate({"data": {"budget": 7, "partition": {"clients": 3}}})
    after = before.changed(data={"partition": {"alpha": 2.0}}, seed=5)
    assert (after.seed, after.data.budget) == (5, 7)
    assert (after.data.partition.clients, after.data.partition.alpha) == (3, 2.0)
    assert (before.seed, before.data.partition.alpha) == (1, 0.1)


def test_a_mapping_replaces_options_which_are_no_table():
    before = Experiment.model_validate({"tuning": {"options": {"r": 4}}})
    assert before.changed(tuning={"options": {"alpha": 8}}).tuning.options == {"alpha": 8}


def test_a_table_replaces_a_table():
    normalize = Normalization(mean=[0.5], std=[2.0])
    after = Experiment().changed(data={"transforms": {"normalize": normalize}})
    assert after.data.transforms.normalize is normalize
