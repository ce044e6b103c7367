"""Raw checkpoints: built here from a small ViT, with the names and wrappers of each scheme."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import ViTConfig, ViTModel

from fedpeft.core.errors import ModelError
from fedpeft.models.convert import convert_checkpoint
from fedpeft.models.loaded import ImageInput
from fedpeft.models.source import ModelRequest, load_model

WIDTH, HEADS, DEPTH = 16, 2, 2
IMAGES = torch.linspace(-1, 1, 2 * 3 * 64).view(2, 3, 8, 8)


@pytest.fixture(scope="module")
def plain() -> dict[str, torch.Tensor]:
    """The tensors of a ViT with the names of the original implementations."""
    torch.manual_seed(3)

    def linear(name, inside, outside):
        weight, bias = torch.randn(outside, inside) / 4, torch.randn(outside) / 4
        return {f"{name}.weight": weight, f"{name}.bias": bias}

    def norm(name):
        weight, bias = 1 + torch.randn(WIDTH) / 4, torch.randn(WIDTH) / 4
        return {f"{name}.weight": weight, f"{name}.bias": bias}

    tensors = {
        "cls_token": torch.randn(1, 1, WIDTH),
        "pos_embed": torch.randn(1, 5, WIDTH),
        "patch_embed.proj.weight": torch.randn(WIDTH, 3, 4, 4) / 4,
        "patch_embed.proj.bias": torch.randn(WIDTH),
        **norm("norm"),
    }
    for number in range(DEPTH):
        block = f"blocks.{number}"
        tensors |= norm(f"{block}.norm1") | norm(f"{block}.norm2")
        tensors |= linear(f"{block}.attn.qkv", WIDTH, 3 * WIDTH)
        tensors |= linear(f"{block}.attn.proj", WIDTH, WIDTH)
        tensors |= linear(f"{block}.mlp.fc1", WIDTH, 24) | linear(f"{block}.mlp.fc2", 24, WIDTH)
    return tensors


def reference(t: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """The forward pass of a ViT with fused projections, as a plain formula."""

    def apply(name, x):
        return F.linear(x, t[f"{name}.weight"], t[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, (WIDTH,), t[f"{name}.weight"], t[f"{name}.bias"], 1e-6)

    patches = F.conv2d(images, t["patch_embed.proj.weight"], t["patch_embed.proj.bias"], 4)
    x = torch.cat([t["cls_token"].expand(len(images), -1, -1), patches.flatten(2).mT], 1)
    x = x + t["pos_embed"]
    for number in range(DEPTH):
        block = f"blocks.{number}"
        qkv = apply(f"{block}.attn.qkv", norm(f"{block}.norm1", x))
        q, k, v = qkv.view(len(x), 5, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / (WIDTH // HEADS) ** 0.5).softmax(-1)
        x = x + apply(f"{block}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))
        hidden = F.gelu(apply(f"{block}.mlp.fc1", norm(f"{block}.norm2", x)))
        x = x + apply(f"{block}.mlp.fc2", hidden)
    return norm("norm", x)


def noise(*names):
    return {name: torch.randn(3) for name in names}


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def mae(tensors):
    extra = noise("mask_token", "decoder_pos_embed", "decoder_blocks.0.attn.qkv.weight")
    return {"model": {**tensors, **extra}}


def moco(tensors):
    base = prefixed("module.base_encoder.", tensors | noise("head.0.weight"))
    momentum = prefixed("module.momentum_encoder.", {n: t + 1 for n, t in tensors.items()})
    state = {**momentum, **base, **noise("module.predictor.0.weight")}
    return {"epoch": 300, "arch": "vit_base", "state_dict": state, "optimizer": {"state": {}}}


def dino_full(tensors):
    student = prefixed("module.backbone.", {n: t + 1 for n, t in tensors.items()})
    teacher = prefixed("backbone.", tensors) | noise("head.mlp.0.weight")
    return {"student": student, "teacher": teacher, "epoch": 100}


CASES = {
    "mae": ("mae", mae),
    "moco-v3": ("moco-v3", moco),
    "dino": ("dino", lambda tensors: dict(tensors)),
    "dino-full": ("dino", dino_full),
}


@pytest.fixture(scope="module", params=CASES)
def converted(request, plain, tmp_path_factory):
    scheme, wrap = CASES[request.param]
    root = tmp_path_factory.mktemp("raw")
    torch.save(wrap(plain), root / "raw.pth")
    return convert_checkpoint(root / "raw.pth", scheme=scheme, to=root / "model", num_heads=HEADS)


def test_features_are_those_of_the_raw_model(converted, plain):
    loaded = load_model(ModelRequest(str(converted.folder), num_labels=3))
    with torch.no_grad():
        features = loaded.module.vit(pixel_values=IMAGES).last_hidden_state
    assert torch.allclose(features, reference(plain, IMAGES), atol=1e-5)


def test_features_of_another_model_differ(converted, plain):
    """The negative control."""
    other = {**plain, "blocks.1.attn.qkv.weight": plain["blocks.1.attn.qkv.weight"].roll(WIDTH, 0)}
    features = load_model(ModelRequest(str(converted.folder), num_labels=3)).module.vit(IMAGES)
    assert not torch.allclose(features.last_hidden_state, reference(other, IMAGES), atol=1e-3)


def test_the_folder_is_complete(converted):
    names = {path.name for path in converted.folder.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= names
    loaded = load_model(ModelRequest(str(converted.folder), num_labels=3))
    assert loaded.inputs == ImageInput(
        8, 8, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resample="bicubic"
    )
    assert loaded.fresh == {"classifier.weight", "classifier.bias"}
    assert converted.sha256 in (converted.folder / "README.md").read_text()


def test_the_report_says_what_was_done(converted, plain):
    assert converted.num_params == sum(t.numel() for t in plain.values())
    assert converted.num_tensors == len(plain) + 4 * DEPTH
    assert not any(name in plain for name in converted.dropped)
    assert converted.shape["image_size"] == 8
    config = json.loads((converted.folder / "config.json").read_text())
    assert config["layer_norm_eps"] == 1e-6


def test_stock_transformers_loads_the_folder(converted, plain):
    module = ViTModel.from_pretrained(converted.folder, add_pooling_layer=False)
    assert isinstance(module.config, ViTConfig)
    features = module(pixel_values=IMAGES).last_hidden_state
    assert torch.allclose(features, reference(plain, IMAGES), atol=1e-5)


def convert(tmp_path, content, scheme, **options):
    torch.save(content, tmp_path / "raw.pth")
    return convert_checkpoint(tmp_path / "raw.pth", scheme=scheme, to=tmp_path / "to", **options)


@pytest.mark.parametrize("scheme", ["mae", "dino"])
def test_a_raw_moco_file_is_not_taken_for_another(tmp_path, plain, scheme):
    with pytest.raises(ModelError, match="not a ViT"):
        convert(tmp_path, moco(plain), scheme, num_heads=HEADS)
    assert not (tmp_path / "to").exists()


def test_a_file_that_matches_nothing_is_an_error(tmp_path, plain):
    """A loader that ignores missing keys would read nothing from it, in silence."""
    with pytest.raises(ModelError, match=r"no tensor has a name that begins with module\.base_enc"):
        convert(tmp_path, {"state_dict": plain}, "moco-v3", num_heads=HEADS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.bias": None}, r"missing: layernorm\.bias"),
        ({"blocks.1.attn.qkv.bias": None}, r"missing: layers\.1\.attention\.q_proj\.bias"),
        ({"blocks.0.ls1.gamma": torch.ones(WIDTH)}, r"unexpected: blocks\.0\.ls1\.gamma"),
        ({"norm.bias": torch.ones(3)}, r"misshapen: layernorm\.bias"),
    ],
)
def test_every_backbone_tensor_must_match(tmp_path, plain, change, message):
    tensors = {name: t for name, t in {**plain, **change}.items() if t is not None}
    with pytest.raises(ModelError, match=message):
        convert(tmp_path, {"model": tensors}, "mae", num_heads=HEADS)
    assert not (tmp_path / "to").exists()


def test_safetensors_are_read_too(tmp_path, plain):
    save_file(plain, tmp_path / "raw.safetensors")
    report = convert_checkpoint(
        tmp_path / "raw.safetensors", scheme="mae", to=tmp_path / "to", num_heads=HEADS
    )
    assert report.dropped == ()


def test_a_pickle_with_code_is_refused(tmp_path, plain):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    with pytest.raises(ModelError, match="holds Python objects besides tensors"):
        convert(tmp_path, {"model": plain, "args": Evil()}, "mae")


def test_a_broken_file_is_an_error(tmp_path):
    (tmp_path / "raw.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="cannot be read"):
        convert_checkpoint(tmp_path / "raw.safetensors", scheme="mae", to=tmp_path / "to")


@pytest.mark.parametrize("content", [b"\x1f\x8b\x08packed", b"<html>gone</html>", b""])
def test_another_kind_of_file_is_not_called_a_pickle_with_code(tmp_path, content):
    (tmp_path / "raw.pth").write_bytes(content)
    with pytest.raises(ModelError, match=r"nor one of torch\.save: it begins with b'"):
        convert_checkpoint(tmp_path / "raw.pth", scheme="mae", to=tmp_path / "to")


def test_a_file_of_an_old_torch_is_read(tmp_path, plain):
    torch.save(plain, tmp_path / "raw.pth", _use_new_zipfile_serialization=False)
    report = convert_checkpoint(
        tmp_path / "raw.pth", scheme="mae", to=tmp_path / "to", num_heads=HEADS
    )
    assert report.dropped == ()


def test_one_tensor_is_no_checkpoint(tmp_path):
    with pytest.raises(ModelError, match="holds a Tensor, not named tensors"):
        convert(tmp_path, torch.ones(3), "mae")


def test_heads_must_divide_the_width(tmp_path, plain):
    with pytest.raises(ModelError, match="3 heads do not divide the width 16"):
        convert(tmp_path, {"model": plain}, "mae", num_heads=3)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="there is no file"):
        convert_checkpoint(tmp_path / "none.pth", scheme="mae", to=tmp_path / "to")


def test_an_unknown_scheme_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="scheme 'clip' is unknown; choose one of dino, mae, moco"):
        convert_checkpoint(tmp_path / "none.pth", scheme="clip", to=tmp_path / "to")


def test_a_folder_with_files_is_not_overwritten(tmp_path, plain):
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "mine.txt").write_text("keep")
    with pytest.raises(ModelError, match="exists and is not empty"):
        convert(tmp_path, mae(plain), "mae")
    assert (tmp_path / "to" / "mine.txt").read_text() == "keep"
