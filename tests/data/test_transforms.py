"""Crops, mirroring and normalising: drawn from (seed, row) alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpeft.core.errors import DataError
from fedpeft.data.images import StoredPixels
from fedpeft.data.request import TransformSpec
from fedpeft.data.tensors import ImageExamples
from fedpeft.data.transforms import canvas_of, pixel_statistics, view_of

AUGMENTED = TransformSpec(random_crop=2, flip=True)


def examples(noise, image_input, spec=AUGMENTED):
    pixels = StoredPixels(torch.from_numpy(noise), 255)
    return ImageExamples(pixels, torch.arange(len(noise)), view_of(spec, image_input, pixels))


def test_example_does_not_depend_on_its_batch(noise, image_input):
    table = examples(noise, image_input)
    together = table.batch([5, 0, 17, 5], seed=8)
    for place, row in enumerate([5, 0, 17, 5]):
        alone = table.batch([row], seed=8)["pixel_values"][0]
        assert torch.equal(together["pixel_values"][place], alone)
    assert together["labels"].tolist() == [5, 0, 17, 5]


def test_seed_and_row_change_the_draw(noise, image_input):
    same = np.repeat(noise[:1], 40, axis=0)
    values = examples(same, image_input).batch(range(40), seed=8)["pixel_values"]
    assert len({tuple(v.flatten().tolist()) for v in values}) > 20
    other = examples(same, image_input).batch(range(40), seed=9)["pixel_values"]
    assert not torch.equal(values, other)


def test_no_seed_means_no_augmentation(noise, image_input):
    plain = (torch.from_numpy(noise).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    values = examples(noise, image_input).batch(range(40), seed=None)["pixel_values"]
    assert values.dtype == torch.float32 and values.is_contiguous()
    torch.testing.assert_close(values, plain)


def test_half_are_mirrored_and_nothing_else_happens(noise, image_input):
    table = examples(noise, image_input, TransformSpec(flip=True))
    plain, drawn = (table.batch(range(40), seed=s)["pixel_values"] for s in (None, 3))
    mirrored = [torch.equal(d, p.flip(-1)) for d, p in zip(drawn, plain, strict=True)]
    kept = [torch.equal(d, p) for d, p in zip(drawn, plain, strict=True)]
    assert sum(mirrored) + sum(kept) == 40 and 10 < sum(mirrored) < 30


def test_crops_are_windows_of_the_padded_picture(noise, image_input):
    table = examples(noise, image_input, TransformSpec(random_crop=1))
    plain, drawn = (table.batch(range(40), seed=s)["pixel_values"] for s in (None, 3))
    padded = torch.nn.functional.pad(plain, (1, 1, 1, 1), value=-1.0)
    corners = set()
    for p, d in zip(padded, drawn, strict=True):
        at = [
            (y, x) for y in range(3) for x in range(3) if torch.equal(p[:, y : y + 8, x : x + 8], d)
        ]
        assert len(at) == 1
        corners.update(at)
    assert len(corners) == 9


def test_larger_pictures_are_cropped_at_the_centre(noise, image_input):
    small = replace(image_input, height=4, width=4)
    table = examples(noise, small, TransformSpec(resize=8))
    whole = examples(noise, image_input, TransformSpec())
    values, full = (t.batch([3], seed=1)["pixel_values"] for t in (table, whole))
    assert torch.equal(values, full[:, :, 2:6, 2:6])


def test_dataset_statistics_standardise_the_training_pictures(noise, image_input):
    table = examples(noise, image_input, TransformSpec(normalize="dataset"))
    values = table.batch(range(40), seed=None)["pixel_values"]
    torch.testing.assert_close(values.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std((0, 2, 3), correction=0), torch.ones(3))


def test_statistics_of_a_constant_channel_divide_by_one():
    pixels = StoredPixels(torch.full((300, 2, 2, 1), 51, dtype=torch.uint8), 255)
    assert pixel_statistics(pixels) == (pytest.approx((0.2,)), (1.0,))


@pytest.mark.parametrize("rescale", [1 / 16, 1 / 255])
def test_white_is_white_for_every_model(image_input, rescale):
    digits = StoredPixels(torch.full((2, 8, 8, 3), 16, dtype=torch.uint8), 16)
    view = view_of(TransformSpec(), replace(image_input, rescale=rescale), digits)
    values = ImageExamples(digits, torch.zeros(2).long(), view).batch([0], seed=None)
    torch.testing.assert_close(values["pixel_values"], torch.ones(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TransformSpec(normalize="modell"), r"normalize: found 'modell'"),
        (TransformSpec(normalize=((0.5,), (0.5,))), r"model has 3 channels"),
        (TransformSpec(normalize=((0.5,) * 3, (0.0,) * 3)), r"deviations are above 0"),
    ],
)
def test_bad_normalisation_is_refused(noise, image_input, spec, message):
    with pytest.raises(DataError, match=message):
        examples(noise, image_input, spec)


def test_bad_sizes_are_refused(image_input):
    with pytest.raises(DataError, match=r"resize: found 4"):
        canvas_of(TransformSpec(resize=4), image_input, 255)
    with pytest.raises(DataError, match=r"random_crop: found -1"):
        canvas_of(TransformSpec(random_crop=-1), image_input, 255)
