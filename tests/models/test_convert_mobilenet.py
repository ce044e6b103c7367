"""torchvision's MobileNetV2, written here in plain torch, converted and compared."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

from fedpeft.core.errors import ModelError
from fedpeft.models.convert import convert_checkpoint
from fedpeft.models.source import ModelRequest, load_model

BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2))
IMAGES = torch.linspace(-2, 2, 2 * 3 * 41 * 38).sin().view(2, 3, 41, 38)  # sides of all remainders


def layer(inside, outside, kernel=3, stride=1, groups=1):
    conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.ReLU6())


class Residual(nn.Module):
    """Table 1 of the paper; without its first layer where the expansion is 1."""

    def __init__(self, inside, outside, stride, expansion):
        super().__init__()
        self.skips, hidden = stride == 1 and inside == outside, inside * expansion
        first = [layer(inside, hidden, 1)] if expansion > 1 else []
        middle = layer(hidden, hidden, stride=stride, groups=hidden)
        last = nn.Conv2d(hidden, outside, 1, bias=False), nn.BatchNorm2d(outside)
        self.conv = nn.Sequential(*first, middle, *last)

    def forward(self, x):
        return x + self.conv(x) if self.skips else self.conv(x)


class MobileNet(nn.Module):
    """Table 2 of the paper, with torchvision's names."""

    def __init__(self, width, classes, channels=3):
        super().__init__()

        def times(number):
            rounded = max(8, int(number * width + 4) // 8 * 8)
            return rounded + 8 * (rounded < 0.9 * number * width)

        inside, parts = times(32), [layer(channels, times(32), stride=2)]
        for expansion, number, repeats, stride in (*BLOCKS, (6, 320, 1, 1)):
            for repeat in range(repeats):
                outside = times(number)
                parts.append(Residual(inside, outside, 1 if repeat else stride, expansion))
                inside = outside
        last = times(1280) if width > 1 else 1280
        self.features = nn.Sequential(*parts, layer(inside, last, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


def make(width=0.35, classes=7, channels=3):
    torch.manual_seed(3)
    model = MobileNet(width, classes, channels).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.002, 0.02)  # small, so that the 1e-5 beside it counts
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return model


@pytest.fixture(scope="module")
def plain() -> MobileNet:
    return make()


@pytest.fixture(scope="module")
def converted(plain, tmp_path_factory):
    root = tmp_path_factory.mktemp("mobilenet")
    torch.save(plain.state_dict(), root / "raw.pth")
    return convert_checkpoint(
        root / "raw.pth", scheme="mobilenet-v2", to=root / "to", image_size=40
    )


def exactly(module, images):
    """Return the outputs in double precision: random layers multiply the errors of single."""
    return copy.deepcopy(module).double()(images.double())


def convert(tmp_path, tensors, **options):
    save_file(tensors, tmp_path / "raw.safetensors")
    file, to = tmp_path / "raw.safetensors", tmp_path / "to"
    return convert_checkpoint(file, scheme="mobilenet-v2", to=to, **options)


@torch.no_grad()
def test_logits_are_those_of_the_raw_model(converted, plain):
    stock = MobileNetV2ForImageClassification.from_pretrained(converted.folder).eval()
    ours = load_model(ModelRequest(str(converted.folder))).module  # with the head in the file
    for images in (IMAGES, IMAGES[..., :32, :32]):
        expected = exactly(plain, images)
        assert expected.std() > 0.1
        for module in (stock, ours):
            assert torch.allclose(exactly(module, images).logits, expected, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("change", [{"tf_padding": True}, {"layer_norm_eps": 1e-3}])
def test_the_padding_and_constant_of_tensorflow_would_differ(converted, plain, change):
    config = MobileNetV2Config.from_pretrained(converted.folder, **change)
    stock = MobileNetV2ForImageClassification.from_pretrained(converted.folder, config=config)
    found = exactly(stock.eval(), IMAGES).logits
    assert not torch.allclose(found, exactly(plain, IMAGES), atol=1e-2)


def test_every_tensor_is_used_once(converted, plain):
    stock = MobileNetV2ForImageClassification.from_pretrained(converted.folder)
    raw, saved = plain.state_dict(), stock.state_dict()
    assert converted.num_tensors == len(raw) == len(saved) == 314
    assert converted.dropped == ()
    assert converted.num_params == sum(p.numel() for p in plain.parameters())
    by_sum = [sorted(float(t.double().sum()) for t in each.values()) for each in (raw, saved)]
    assert by_sum[0] == by_sum[1]


@torch.no_grad()
@pytest.mark.parametrize(("width", "channels"), [(0.5, 3), (1.4, 1)])
def test_other_widths_and_channels_are_found(tmp_path, width, channels):
    model = make(width, 5, channels)
    report = convert(tmp_path, model.state_dict())
    stock = MobileNetV2ForImageClassification.from_pretrained(report.folder).eval()
    images = IMAGES[:, :channels]
    assert torch.allclose(exactly(stock, images).logits, exactly(model, images), atol=1e-6)


def test_the_folder_says_how_pictures_are_prepared(converted):
    found = json.loads((converted.folder / "preprocessor_config.json").read_text())
    assert (found["size"], found["crop_size"]) == (
        {"shortest_edge": 46},
        {"height": 40, "width": 40},
    )
    inputs = load_model(ModelRequest(str(converted.folder), num_labels=7)).inputs
    assert (inputs.height, inputs.width, inputs.resample) == (40, 40, "bilinear")
    assert inputs.mean == (0.485, 0.456, 0.406)
    card = (converted.folder / "README.md").read_text()
    assert converted.sha256 in card and "a head of 7 classes, which the file does not name" in card


def test_wrapped_tensors_are_found(tmp_path, plain):
    state = {f"module.{name}": tensor for name, tensor in plain.state_dict().items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "raw.pth")
    report = convert_checkpoint(
        tmp_path / "raw.pth", scheme="mobilenet-v2", to=tmp_path / "to", image_size=32
    )
    assert report.num_tensors == 314


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.4.conv.2.weight": None}, r"missing: .*layer\.2\.reduce_1x1\.convolution\.weig"),
        ({"features.0.1.running_var": None}, r"missing: .*first_conv\.normalization\.running_var"),
        ({"features.19.0.weight": torch.ones(3)}, r"unexpected: features\.19\.0\.weight"),
        ({"features.1.conv.3.weight": torch.ones(3)}, r"unexpected: .*layer\.-1\.reduce_1x1"),
        ({"features.18.1.bias": torch.ones(3)}, r"misshapen: .*conv_1x1\.normalization\.bias"),
        ({"classifier.1.weight": None}, r"not a MobileNetV2 of torchvision: 'classifier\.1\.w"),
        ({"features.0.0.weight": torch.ones(3)}, r"not a MobileNetV2 of torchvision: "),
        ({"features.17.conv.2.weight": torch.ones(10**6, 1)}, r"3125 times its width"),
    ],
)
def test_every_tensor_must_match(tmp_path, plain, change, message):
    tensors = {**plain.state_dict(), **change}
    with pytest.raises(ModelError, match=message):
        convert(tmp_path, {name: t for name, t in tensors.items() if t is not None})
    assert not (tmp_path / "to").exists()


def test_a_skip_around_the_first_block_is_refused(tmp_path):
    """The class of `transformers` has none there: the logits would differ."""
    with pytest.raises(ModelError, match="its first block has 8 channels before and after"):
        convert(tmp_path, make(0.25).state_dict())


@pytest.mark.parametrize("size", [0, -3, 31, 10**9])
def test_an_impossible_size_is_refused(tmp_path, plain, size):
    with pytest.raises(ModelError, match=f"--size: found {size}; allowed are 32 to 4,096 pixels"):
        convert(tmp_path, plain.state_dict(), image_size=size)


def test_a_size_is_refused_for_a_vit(tmp_path):
    save_file({"norm.weight": torch.ones(2)}, tmp_path / "raw.safetensors")
    with pytest.raises(ModelError, match="--size: found 96; the side of a ViT's pictures belongs"):
        convert_checkpoint(
            tmp_path / "raw.safetensors", scheme="mae", to=tmp_path / "to", image_size=96
        )


def test_code_in_a_pickle_is_not_run(tmp_path, plain, capsys):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"model": plain.state_dict(), "args": Evil()}, tmp_path / "raw.pth")
    with pytest.raises(ModelError, match="holds Python objects besides tensors"):
        convert_checkpoint(tmp_path / "raw.pth", scheme="mobilenet-v2", to=tmp_path / "to")
    assert "ran" not in capsys.readouterr().out
