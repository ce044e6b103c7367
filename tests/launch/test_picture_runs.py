"""From idx files and a raw checkpoint to a run: a converted MobileNetV2 under the usual methods."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

from fedpeft.experiment.read import validate
from fedpeft.launch.start import run
from fedpeft.models.quiet import quiet
from fedpeft.runs.load import load


def write_idx(path, values):
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.tobytes())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A narrow MobileNetV2 that pads evenly, and 24 + 8 pictures with one half lit."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(1)
    for split, count in (("train", 24), ("t10k", 8)):
        labels = (np.arange(count) % 2).astype(np.uint8)
        pictures = draw.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for picture, label in zip(pictures, labels, strict=True):
            picture[14 * label :][:14] += 150
        write_idx(root / f"{split}-images-idx3-ubyte", pictures)
        write_idx(root / f"{split}-labels-idx1-ubyte", labels)
    config = MobileNetV2Config(
        image_size=32, depth_multiplier=0.35, tf_padding=False, layer_norm_eps=1e-5, num_labels=9
    )
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(2)
        MobileNetV2ForImageClassification(config).save_pretrained(root / "model")
    return root


def experiment(files, method):
    return validate(
        {
            "model": {"name": str(files / "model")},
            "tuning": {"method": method},
            "data": {
                "source": str(files),
                "max_test": 4,
                "partition": {"scheme": "iid", "clients": 2, "min_examples": 1},
            },
            "federation": {"rounds": 1, "clients_per_round": 2},
            "client": {"epochs": 1, "batch_size": 6, "lr": 0.01},
        },
        "test",
    )


@pytest.mark.parametrize("method", ["head", "bias", "lora", "full"])
def test_a_mobilenet_trains_on_idx_files(tmp_path, files, method):
    summary = run(experiment(files, method), tmp_path / "run")
    assert summary["method"] == method and summary["rounds"] == 1
    assert summary["accuracy"] in {0, 0.25, 0.5, 0.75, 1}, "four test pictures"
    model = load(tmp_path / "run")
    with torch.no_grad():
        assert model(pixel_values=torch.zeros(1, 3, 32, 32)).logits.shape == (1, 2)
