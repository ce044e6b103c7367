"""Clips: which frames are taken, that a clip is cropped as one, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from fedpeft.core.errors import DataError
from fedpeft.data.clips import ClipExamples, LazyClips, pick_frames, read_clips
from fedpeft.data.images import Canvas
from fedpeft.data.load import load_data
from fedpeft.data.request import DataRequest, TransformSpec
from fedpeft.data.schemes import PartitionRequest
from fedpeft.data.transforms import View
from fedpeft.models.loaded import ImageInput, VideoInput

CANVAS = Canvas(8, 8, 1)
VIEW = View(8, 8, 1 / 255, (0.0,), (1.0,))
INPUTS = VideoInput(4, ImageInput(8, 8, 1, (0.5,), (0.5,)))


@pytest.fixture
def clips():
    """Five clips of 7 to 11 frames; every pixel is the number of its frame."""
    lengths = range(7, 12)
    return [np.repeat(np.arange(n, dtype=np.uint8), 64).reshape(n, 8, 8) for n in lengths]


def examples(clips, *, whole=False, limit=2**30, view=VIEW):
    found = read_clips(clips, CANVAS, 3, whole=whole, memory_limit=limit)
    return ClipExamples(found, torch.arange(len(clips)), view, whole)


def numbers(batch):
    return (batch["pixel_values"][:, :, 0, 0, 0] * 255).round().long().tolist()


def test_evaluation_takes_the_middle_of_equal_stretches():
    picked = pick_frames(torch.tensor([3, 6, 9, 10]), 3, torch.full((4,), 0.5))
    assert picked.tolist() == [[0, 1, 2], [1, 3, 5], [1, 4, 7], [1, 5, 8]]


def test_clip_of_the_models_length_is_taken_whole_at_any_place():
    places = torch.tensor([0.0, 0.3, 0.999999])
    assert pick_frames(torch.tensor([5, 5, 5]), 5, places).tolist() == [[0, 1, 2, 3, 4]] * 3


def test_every_frame_is_reached_by_some_place_and_order_is_kept():
    places = torch.linspace(0, 0.999, 200)
    picked = pick_frames(torch.full((200,), 10), 3, places)
    assert set(picked.flatten().tolist()) == set(range(10))
    assert (picked.diff(dim=1) > 0).all()


def test_batch_has_frames_before_channels(clips):
    batch = examples(clips).batch([4, 0], seed=None)
    assert batch["pixel_values"].shape == (2, 3, 1, 8, 8)
    assert numbers(batch) == [[1, 5, 9], [1, 3, 5]] and batch["labels"].tolist() == [4, 0]


def test_training_draws_frames_by_seed_and_row_alone(clips):
    table = examples(clips, whole=True)
    together = numbers(table.batch([0, 1, 2, 3, 4], seed=1))
    assert together[3] == numbers(table.batch([3], seed=1))[0]
    drawn = {tuple(numbers(table.batch([4], seed=seed))[0]) for seed in range(20)}
    assert len(drawn) > 2
    assert numbers(table.batch([4], seed=None)) == [[1, 5, 9]]


def test_clips_decoded_later_are_the_same(clips):
    for whole in (False, True):
        stored, lazy = examples(clips, whole=whole), examples(clips, whole=whole, limit=1)
        assert isinstance(lazy.clips, LazyClips)
        for seed in (None, 3):
            same = [t.batch([2, 0, 4], seed=seed)["pixel_values"] for t in (stored, lazy)]
            assert torch.equal(*same)


def test_all_frames_of_a_clip_are_cropped_and_mirrored_alike():
    still = np.random.RandomState(0).randint(0, 255, (1, 12, 12)).repeat(3, 0).astype(np.uint8)
    view = dataclasses.replace(VIEW, pad=2, flip=True)
    table = ClipExamples(
        read_clips([still] * 6, Canvas(12, 12, 1), 3, whole=False), torch.zeros(6).long(), view
    )
    values = table.batch(range(6), seed=4)["pixel_values"]
    assert torch.equal(values[:, 0], values[:, 2])
    assert not torch.equal(values[0], values[1])


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 8, 8, 1), (4, 1, 8, 8)])
def test_layouts_of_arrays_are_told_apart(shape):
    clip = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    found = read_clips([clip.reshape(shape)], CANVAS, 4, whole=False)
    assert np.array_equal(found.pixels.tensor[..., 0], clip)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (np.zeros((2, 8, 8), np.uint8), r"clip 1 has 2 frames; the model takes 3: give longer"),
        (np.zeros((4, 8, 8)), r"clip 1 is an array of float64\[4, 8, 8\]; allowed are whole"),
        (np.zeros((8, 8), np.uint8), r"clip 1 is an array of uint8\[8, 8\]; allowed are"),
        (np.zeros((4, 5, 8, 8), np.uint8), r"clip 1: a frame cannot be read.*1 or 3"),
        (np.full((4, 8, 8), 300), r"clip 1: a frame cannot be read.*outside 0 to 255"),
    ],
)
def test_clip_that_does_not_fit_is_named(clip, message):
    good = np.zeros((4, 8, 8), np.uint8)
    with pytest.raises(DataError, match=message):
        read_clips([good, clip], CANVAS, 3, whole=False)


def test_split_without_clips_is_refused():
    with pytest.raises(DataError, match="a split has no clips"):
        read_clips([], CANVAS, 3, whole=False)


def test_motion_loads_for_a_model():
    partition = PartitionRequest(scheme="iid", clients=4)
    request = DataRequest("motion", "video-classification", budget=80, partition=partition)
    spec = TransformSpec(frame_offset=True, normalize="dataset")
    for transforms in (TransformSpec(), spec):
        data = load_data(dataclasses.replace(request, transforms=transforms), INPUTS)
        values = data.train.batch([0, 7], seed=1)["pixel_values"]
        assert values.shape == (2, 4, 1, 8, 8) and values.isfinite().all()
        assert data.num_labels == 8 and data.augmented == transforms.frame_offset


@pytest.mark.parametrize(
    ("source", "task", "inputs", "message"),
    [
        ("motion", "image-classification", INPUTS, "feeds pictures, the model takes clips"),
        ("motion", "video-classification", INPUTS.picture, "feeds clips, the model takes pictures"),
        ("digits", "video-classification", INPUTS, "data.video: none of the columns image, label"),
        ("motion", "image-classification", INPUTS.picture, "data.image: none of the columns video"),
    ],
)
def test_data_and_model_of_other_kinds_are_refused(source, task, inputs, message):
    with pytest.raises(DataError, match=message):
        load_data(DataRequest(source, task), inputs)
