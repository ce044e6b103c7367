"""The characters by name: loaded for their backbone, and planned."""

from __future__ import annotations

import pytest

from fedpeft.data.load import load_data
from fedpeft.data.request import DataRequest
from fedpeft.data.schemes import PartitionRequest
from fedpeft.experiment.read import apply_overrides, parse_override, validate
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.plan.plan import make_plan

BEDS = ("characters", "characters-hard")


@pytest.mark.parametrize("source", BEDS)
def test_a_bed_loads_at_the_size_of_its_backbone(source):
    inputs = load_model(ModelRequest("vit-glyphs-28")).inputs
    assert (inputs.height, inputs.width, inputs.channels) == (28, 28, 1)
    request = DataRequest(source, partition=PartitionRequest(min_examples=1))
    data = load_data(request, inputs)
    assert (data.num_labels, len(data.clients)) == (102, 64)
    assert (len(data.train), len(data.test)) == (2244, 1020)
    pixels = data.train.batch([0, 1], seed=None)["pixel_values"]
    assert pixels.shape == (2, 1, 28, 28) and -1 <= pixels.min() < pixels.max() <= 1


@pytest.mark.parametrize("source", BEDS)
def test_a_bed_is_planned_with_its_own_classes(source):
    sets = [f"data.source={source}", "model.name=vit-glyphs-28"]
    table = apply_overrides({}, [parse_override(text) for text in sets])
    figures = make_plan(validate(table, "test")).figures
    assert (figures["num_labels"], figures["num_labels_assumed"]) == (102, "")
    assert 5_000 < figures["trainable_parameters"] < 0.03 * figures["total_parameters"]
