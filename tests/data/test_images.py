"""Decoding: every way to hold a picture gives the same pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import load_image

from fedpeft.core.errors import DataError
from fedpeft.data.images import Canvas, LazyPixels, StoredPixels, read_pixels

CANVAS = Canvas(8, 8, 3)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_array_image_bytes_file_and_channels_first_agree(noise, tmp_path):
    path = tmp_path / "p.png"
    path.write_bytes(png(noise[0]))
    ways = [
        noise[0],
        Image.fromarray(noise[0]),
        png(noise[0]),
        {"bytes": None, "path": str(path)},
        {"bytes": png(noise[0]), "path": None},
        str(path),
        noise[0].transpose(2, 0, 1),
        noise[0].tolist(),
    ]
    pixels = read_pixels(ways, CANVAS)
    assert torch.equal(pixels.tensor, torch.from_numpy(noise[:1]).expand(len(ways), -1, -1, -1))


@pytest.mark.parametrize("canvas", [CANVAS, Canvas(20, 12, 1, "bicubic"), Canvas(5, 5, 3)])
def test_lazy_pixels_equal_stored_ones(noise, canvas):
    stored = read_pixels(noise, canvas)
    lazy = read_pixels(noise, canvas, memory_limit=100)
    assert isinstance(stored, StoredPixels) and isinstance(lazy, LazyPixels)
    rows = torch.tensor([7, 0, 7])
    assert torch.equal(stored.read(rows), lazy.read(rows)) and len(stored) == len(lazy)
    assert not torch.equal(stored.read(rows), stored.read(rows + 1))


def test_resizing_is_pillows(noise):
    expected = np.asarray(Image.fromarray(noise[0]).resize((12, 20), Image.Resampling.BILINEAR))
    assert np.array_equal(read_pixels(noise, Canvas(20, 12, 3)).tensor[0].numpy(), expected)


def test_grey_becomes_colour_and_back(noise):
    grey = noise[:, :, :, 0]
    colours = read_pixels(grey, CANVAS).tensor
    assert torch.equal(colours, torch.from_numpy(grey)[..., None].expand(-1, -1, -1, 3))
    assert torch.equal(read_pixels(colours.numpy(), Canvas(8, 8, 1)).tensor, colours[..., :1])


def test_colour_becomes_grey_as_pillow_weighs_it(noise):
    ours = read_pixels(noise, Canvas(8, 8, 1)).tensor[..., 0].numpy().astype(int)
    theirs = np.stack([np.asarray(Image.fromarray(p).convert("L")) for p in noise]).astype(int)
    assert np.abs(ours - theirs).max() <= 1


def test_deep_grey_keeps_its_high_bits():
    deep = Image.fromarray(np.full((8, 8), 0x8000, np.uint16))
    assert read_pixels([deep], Canvas(8, 8, 1)).tensor.unique().tolist() == [128]


def test_other_scales_are_kept_as_they_are_or_resized_at_255():
    digits = np.full((3, 8, 8), 16, np.uint8)
    kept, resized = (read_pixels(digits, Canvas(s, s, 1, full_scale=16)) for s in (8, 16))
    assert (kept.full_scale, int(kept.tensor.max())) == (16, 16)
    assert (resized.full_scale, int(resized.tensor.max())) == (255, 255)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([], r"no pictures"),
        ([b"not a picture"], r"row 0 is not a picture"),
        ([None], r"row 0 is not a picture: found NoneType"),
        (["/nowhere/a.png"], r"row 0 is not a picture: .*No such file"),
        (np.zeros((1, 8, 8), np.float32), r"row 0: an array of float32\[8, 8, 1\]"),
        (np.full((1, 8, 8), 300), r"outside 0 to 255"),
    ],
)
def test_what_is_no_picture_is_refused(column, message):
    with pytest.raises(DataError, match=message):
        read_pixels(column, CANVAS)


def test_pixels_above_white_are_refused():
    with pytest.raises(DataError, match=r"pixel of 17; allowed are 0 to 16"):
        read_pixels(np.full((1, 8, 8), 17, np.uint8), Canvas(8, 8, 1, full_scale=16))


@pytest.mark.parametrize("tag", range(1, 9))
def test_pictures_are_turned_as_their_exif_tag_says(tag, tmp_path):
    array = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(array).save(tmp_path / "turned.png", exif=exif)
    upright = np.asarray(load_image(str(tmp_path / "turned.png")))
    ours = read_pixels([str(tmp_path / "turned.png")], Canvas(*upright.shape)).tensor[0]
    assert np.array_equal(ours.numpy(), upright)
