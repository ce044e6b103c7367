"""The paper's parameter counts and bytes for ViT-B/16, exact, without any weights."""

from __future__ import annotations

import pytest
import torch

from fedpeft.models.families import family_of
from fedpeft.models.loaded import LoadedModel
from fedpeft.models.tasks import IMAGE_CLASSIFICATION
from fedpeft.tuning.methods import TuningRequest, tune

CLASSES = (100, 45, 2)
COUNTS = {
    "scratch": ("scratch", {}, (85_875_556, 85_833_261, 85_800_194)),
    "full": ("full", {}, (85_875_556, 85_833_261, 85_800_194)),
    "head": ("head", {}, (76_900, 34_605, 1_538)),
    "bias": ("bias", {}, (179_812, 137_517, 104_450)),
    "adapter-shared": ("adapter", {}, (225_220, 182_925, 149_858)),
    "adapter-per-block": ("adapter", {"shared": False}, (1_856_740, 1_814_445, 1_781_378)),
    "prompt-deep": ("prompt", {}, (169_060, 126_765, 93_698)),
    "prompt-shallow": ("prompt", {"deep": False}, (84_580, 42_285, 9_218)),
}
ROWS = [
    pytest.param(method, options, classes, count, id=f"{name}-{classes}")
    for name, (method, options, counts) in COUNTS.items()
    for classes, count in zip(CLASSES, counts, strict=True)
]
BYTES = {
    "full": 343_502_224,
    "head": 307_600,
    "bias": 719_248,
    "adapter": 900_880,
    "prompt": 676_240,
}


def base_vit(num_labels: int) -> LoadedModel:
    from transformers import ViTConfig, ViTForImageClassification

    with torch.device("meta"):
        module = ViTForImageClassification(ViTConfig(num_labels=num_labels)).eval()
    head = ("classifier",)
    return LoadedModel(module, IMAGE_CLASSIFICATION, family_of(module), head, None, "vit-b/16")


@pytest.mark.parametrize(("method", "options", "classes", "count"), ROWS)
def test_trainable_parameters_are_the_papers(method, options, classes, count):
    assert tune(base_vit(classes), TuningRequest(method, options)).spec.num_params == count


@pytest.mark.parametrize(("method", "expected"), BYTES.items())
def test_payload_bytes_are_the_papers(method, expected):
    tuned = tune(base_vit(100), TuningRequest(method))
    assert tuned.spec.num_bytes == expected
    assert tuned.buffer_spec.num_bytes == 0


def test_count_follows_the_options():
    assert (
        tune(base_vit(100), TuningRequest("prompt", {"num_tokens": 9})).spec.num_params != 169_060
    )
