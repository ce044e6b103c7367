"""Input formats read from common processor and tokenizer files."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from fedpeft.core.errors import ModelError
from fedpeft.models.families import FAMILIES, PLAIN
from fedpeft.models.inputs import image_input, text_input
from fedpeft.models.loaded import ImageInput

VIT = SimpleNamespace(image_size=224, num_channels=3)


def folder_with(tmp_path, name, content):
    (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


def read(tmp_path, content, *, config=VIT, family=PLAIN):
    return image_input(config, family, folder_with(tmp_path, "preprocessor_config.json", content))


def test_without_a_file_the_config_speaks():
    config = SimpleNamespace(image_size=(8, 12), num_channels=1)
    assert image_input(config, FAMILIES["vit"], None) == ImageInput(8, 12, 1, (0.5,), (0.5,))


def test_mean_deviation_rescaling_and_filter_are_read(tmp_path):
    content = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3], "resample": 3}
    found = read(tmp_path, {**content, "rescale_factor": 0.5})
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert (found.rescale, found.resample) == (0.5, "bicubic")


def test_what_the_processor_does_not_do_is_the_identity(tmp_path):
    found = read(tmp_path, {"do_rescale": False, "do_normalize": False, "image_mean": [9] * 3})
    assert (found.rescale, found.mean, found.std) == (1.0, (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("content", "size"),
    [
        ({"size": 30}, (30, 30)),
        ({"size": {"height": 20, "width": 30}}, (20, 30)),
        ({"size": {"shortest_edge": 30}}, (30, 30)),
        ({"size": 40, "do_center_crop": True, "crop_size": {"height": 30, "width": 30}}, (30, 30)),
        ({"size": 30, "do_center_crop": False, "crop_size": 20}, (30, 30)),
        ({}, (224, 224)),
    ],
)
def test_sizes_of_every_form(tmp_path, content, size):
    found = read(tmp_path, content, config=SimpleNamespace())
    assert (found.height, found.width) == size


def test_a_model_of_fixed_positions_keeps_its_own_size(tmp_path):
    assert read(tmp_path, {"size": 30}, family=FAMILIES["vit"]).height == 224


def test_a_model_of_any_size_takes_the_processors(tmp_path):
    assert read(tmp_path, {"size": 30}, family=FAMILIES["dinov2"]).height == 30


def test_one_number_serves_all_channels(tmp_path):
    assert read(tmp_path, {"image_mean": [0.25], "image_std": 0.5}).mean == (0.25,) * 3


def test_too_few_numbers_are_an_error(tmp_path):
    with pytest.raises(ModelError, match="image_mean: has 2 numbers, the model takes 3 channels"):
        read(tmp_path, {"image_mean": [0.5, 0.5]})


@pytest.mark.parametrize("content", [{"image_mean": "half"}, {"image_std": ["x"] * 3}])
def test_words_for_numbers_are_an_error(tmp_path, content):
    with pytest.raises(ModelError, match="is not a number"):
        read(tmp_path, content)


def test_a_size_in_words_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="'large' is not a number"):
        read(tmp_path, {"size": "large"}, config=SimpleNamespace())


def test_a_broken_file_is_an_error(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"preprocessor_config\.json: not a JSON object"):
        image_input(VIT, PLAIN, tmp_path)


def test_a_file_of_another_kind_is_an_error(tmp_path):
    with pytest.raises(ModelError, match=r"not a JSON object \(found a list"):
        read(tmp_path, [1])


@pytest.mark.parametrize(
    ("reserved", "positions", "stated", "length"),
    [
        (0, 512, None, 512),
        (0, 512, 128, 128),
        (0, 512, int(1e30), 512),
        (2, 514, 512, 512),
        (2, 514, None, 512),
        (0, None, None, 512),
        (0, -1, None, 512),
    ],
)
def test_the_longest_text_is_what_model_and_tokenizer_bear(
    tmp_path, reserved, positions, stated, length
):
    config = SimpleNamespace(max_position_embeddings=positions)
    content = {} if stated is None else {"model_max_length": stated}
    folder = folder_with(tmp_path, "tokenizer_config.json", content)
    found = text_input(config, folder, reserved=reserved)
    assert (found.folder, found.max_length) == (str(tmp_path), length)


def test_a_text_model_without_a_limit_reads_512_tokens():
    from transformers import XLNetConfig

    assert text_input(XLNetConfig(), PLAIN, "").max_length == 512


def test_a_picture_tower_has_the_size_of_its_own_config():
    from transformers import SiglipConfig

    config = SiglipConfig(vision_config={"image_size": 48})
    assert image_input(config, PLAIN, None).height == 48
