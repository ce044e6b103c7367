"""What loading changes in a module: running statistics."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

from fedpeft.models.quiet import slow_statistics
from fedpeft.models.source import ModelRequest, load_model

SMALL = MobileNetV2Config(image_size=32, depth_multiplier=0.35, num_labels=3)


def statistics_after(norm, batches):
    """Run batches through a BatchNorm in training mode and return its running mean."""
    norm.train()
    for batch in batches:
        norm(batch)
    return norm.running_mean


def test_a_mobilenet_is_loaded_with_statistics_over_many_batches(tmp_path):
    MobileNetV2ForImageClassification(SMALL).save_pretrained(tmp_path)
    norms = [
        part
        for part in load_model(ModelRequest(str(tmp_path))).module.modules()
        if isinstance(part, nn.BatchNorm2d)
    ]
    assert len(norms) > 50 and {norm.momentum for norm in norms} == {0.1}


@pytest.mark.parametrize("momentum", [0.997, 0.9])
def test_a_last_batch_does_not_replace_what_was_seen(momentum):
    torch.manual_seed(1)
    batches = [*torch.randn(60, 16, 2) + 5, torch.randn(16, 2) - 50]
    forgetful, mended = (nn.BatchNorm1d(2, momentum=momentum) for _ in range(2))
    slow_statistics(nn.Sequential(mended))
    assert statistics_after(forgetful, batches).max() < -40  # the negative control
    assert statistics_after(mended, batches).min() > -2


@pytest.mark.parametrize("momentum", [None, 0.003, 0.1, 0.5])
def test_usual_statistics_stay_as_they_are(momentum):
    norm = nn.BatchNorm2d(3, momentum=momentum)
    slow_statistics(norm)
    assert norm.momentum == momentum
