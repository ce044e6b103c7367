"""VideoMAE by preset and folder: its head, its inputs, old names, and misfits."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification

from fedpeft.core.errors import ModelError
from fedpeft.models.families import canonical_names
from fedpeft.models.source import ModelRequest, load_model, sketch_model

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 8,
    "patch_size": 4,
    "num_frames": 4,
    "decoder_num_hidden_layers": 1,
    "decoder_hidden_size": 16,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}


def write(folder, cls=VideoMAEForVideoClassification, **config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(VideoMAEConfig(**{**SMALL, **config}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    model.save_pretrained(folder)
    return model


def test_folder_gives_the_librarys_logits(tmp_path):
    model = write(tmp_path, num_labels=5).eval()
    loaded = load_model(ModelRequest(str(tmp_path)))
    clips = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert loaded.task.name == "video-classification" and not loaded.fresh
    with torch.no_grad():
        expected = model(pixel_values=clips).logits
        assert torch.equal(loaded.module(pixel_values=clips).logits, expected)


def test_pretrained_encoder_gets_a_new_head_and_pooling_norm(tmp_path):
    model = write(tmp_path, VideoMAEForPreTraining)
    loaded = load_model(ModelRequest(str(tmp_path), num_labels=3))
    fresh = {"classifier.weight", "classifier.bias", "fc_norm.weight", "fc_norm.bias"}
    assert loaded.fresh == sketch_model(ModelRequest(str(tmp_path), num_labels=3)).fresh == fresh
    ours = loaded.module.videomae.encoder.layer[1].attention.attention.query.bias
    assert torch.equal(ours, model.videomae.encoder.layer[1].attention.attention.query.bias)


def test_model_without_mean_pooling_has_its_own_norm(tmp_path):
    write(tmp_path, VideoMAEForPreTraining, use_mean_pooling=False)
    loaded = load_model(ModelRequest(str(tmp_path), num_labels=3))
    assert loaded.fresh == {"classifier.weight", "classifier.bias"}
    assert "norm.weight" in canonical_names(loaded.module, loaded.family)


def test_biases_of_older_files_are_read_by_either_name(tmp_path):
    write(tmp_path, num_labels=5)
    file = tmp_path / "model.safetensors"
    expected = load_model(ModelRequest(str(tmp_path))).module.state_dict()
    for old, new in (("query.bias", "q_bias"), ("value.bias", "v_bias")):
        tensors = {k.replace(old, new): v for k, v in load_file(file).items()}
        assert any(name.endswith(new) for name in tensors)
        save_file(tensors, file, {"format": "pt"})
    found = load_model(ModelRequest(str(tmp_path))).module.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_names_are_ours_and_keys_have_no_bias():
    loaded = sketch_model(ModelRequest("preset:tiny-videomae"))
    names = set(canonical_names(loaded.module, loaded.family))
    assert {"patch.weight", "blocks.1.attn.q.bias", "blocks.0.mlp.fc2.weight", "head.bias"} <= names
    assert {"pool_norm.weight", "blocks.0.norm1.weight", "blocks.0.attn.k.weight"} <= names
    assert "blocks.0.attn.k.bias" not in names
    assert not [name for name in names if "videomae" in name or "attention" in name]


def test_input_is_read_from_config_and_processor(tmp_path):
    write(tmp_path, num_labels=5)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3]}')
    inputs = load_model(ModelRequest(str(tmp_path))).inputs
    assert (inputs.frames, inputs.picture.height, inputs.picture.width) == (4, 8, 8)
    assert inputs.picture.mean == (0.1, 0.2, 0.3)
    (tmp_path / "video_preprocessor_config.json").write_text('{"image_mean": 0.7}')
    assert load_model(ModelRequest(str(tmp_path))).inputs.picture.mean == (0.7, 0.7, 0.7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 5}, "num_frames is 5 and tubelet_size 2; the frames must be a multiple"),
        ({"image_size": 10}, "image_size is 10 x 10 and patch_size 4 x 4; the size must be"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message, tmp_path):
    write(tmp_path, num_labels=5)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ModelError, match=message):
        sketch_model(ModelRequest(str(tmp_path)))


def test_task_of_another_kind_is_refused():
    with pytest.raises(
        ModelError, match=r"does not support image-classification.*video-classification"
    ):
        load_model(ModelRequest("preset:tiny-videomae", task="image-classification"))
