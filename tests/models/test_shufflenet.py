"""ShuffleNetV2: the paper's counts, its folder, and its shuffle."""

from __future__ import annotations

import json

import pytest
import torch

from fedpeft.core.errors import ModelError
from fedpeft.models.shufflenet import (
    ShuffleNet,
    ShuffleNetConfig,
    load_shufflenet,
    read_shufflenet_config,
    save_shufflenet,
)
from fedpeft.models.source import ModelRequest, load_model

SMALL = ShuffleNetConfig(
    num_labels=5,
    num_channels=1,
    image_size=8,
    repeats=(2, 2, 1),
    widths=(4, 8, 12, 16, 20),
    stem_stride=1,
    stem_pool=False,
)


@pytest.mark.parametrize(("classes", "weights"), [(100, 444_292), (45, 387_917), (2, 343_842)])
def test_half_width_has_the_papers_counts(classes, weights):
    with torch.device("meta"):
        network = ShuffleNet(ShuffleNetConfig(num_labels=classes))
    statistics = [b for b in network.buffers() if b.is_floating_point()]
    assert sum(p.numel() for p in network.parameters()) == weights
    assert sum(b.numel() for b in statistics) == 7_952


@pytest.mark.parametrize("size", [8, 32])
def test_small_gray_images_give_logits(size):
    network = ShuffleNet(SMALL).eval()
    assert network(pixel_values=torch.randn(2, 1, size, size)).logits.shape == (2, 5)


def test_the_stem_keeps_the_size_with_stride_one():
    stem = ShuffleNet(SMALL).eval()
    x = stem.maxpool(stem.conv1(torch.randn(1, 1, 8, 8)))
    assert x.shape[2:] == (8, 8)


def test_a_unit_of_stride_one_mixes_half_of_the_channels():
    unit = ShuffleNet(SMALL).eval().stage2[1]
    x = torch.randn(1, 8, 4, 4)
    y = unit(x)
    assert torch.equal(y[:, 0::2], x[:, :4])
    assert not torch.equal(y[:, 1::2], x[:, 4:])


def test_gradients_reach_every_weight():
    network = ShuffleNet(SMALL)
    network(pixel_values=torch.randn(4, 1, 8, 8)).logits.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_folder_gives_the_same_network(tmp_path):
    network = ShuffleNet(SMALL)
    network(pixel_values=torch.randn(4, 1, 8, 8))
    save_shufflenet(network.eval(), tmp_path / "net")
    assert read_shufflenet_config(tmp_path / "net" / "config.json") == SMALL
    loaded = load_model(ModelRequest(str(tmp_path / "net")))
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded.module(pixel_values=x).logits, network(pixel_values=x).logits)
    assert loaded.fresh == frozenset()
    assert loaded.inputs.channels == 1


def test_a_folder_takes_a_new_head(tmp_path):
    save_shufflenet(ShuffleNet(SMALL), tmp_path)
    loaded = load_model(ModelRequest(str(tmp_path), num_labels=7))
    assert loaded.fresh == {"fc.weight", "fc.bias"}
    assert loaded.module.fc.weight.shape == (7, 20)


def test_a_missing_statistic_is_an_error(tmp_path):
    from safetensors.torch import load_file, save_file

    save_shufflenet(ShuffleNet(SMALL), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["conv1.1.running_mean"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"conv1\.1\.running_mean"):
        load_model(ModelRequest(str(tmp_path)))


def test_an_odd_width_is_refused():
    with pytest.raises(ModelError, match=r"widths \[7\] of the stages are odd"):
        ShuffleNet(ShuffleNetConfig(widths=(4, 8, 7, 8, 16)))


def test_an_incomplete_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "shufflenet-v2"}))
    with pytest.raises(ModelError, match="lacks image_size"):
        read_shufflenet_config(tmp_path / "config.json")


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        load_shufflenet(tmp_path, SMALL)
