"""The bundled motions: the class is in the order of the frames, and in nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from motion import MOTIONS, MotionSpec, _places, make_motion, read_motion


@pytest.fixture(scope="module")
def clips():
    return make_motion(MotionSpec(2400, frames=4, side=8, seed=5))


def lda_accuracy(features, labels):
    """Fit on two thirds, score on the rest."""
    cut = 2 * len(labels) // 3
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1)
    return model.fit(features[:cut], labels[:cut]).score(features[cut:], labels[cut:])


def motion_energy(clips):
    """Products of the changes in time with those along and across the page: what moves, and how."""
    x = clips.astype(float) / 255
    ahead, down = np.roll(x, -1, 3) - np.roll(x, 1, 3), np.roll(x, -1, 2) - np.roll(x, 1, 2)
    change = np.diff(x, axis=1)
    size = (x[:, 1:] ** 2).sum((1, 2, 3)) - (x[:, :-1] ** 2).sum((1, 2, 3))
    products = [(change * part[:, :-1]).sum((1, 2, 3)) for part in (ahead, down)]
    return np.stack([*products, size], 1)


def test_same_seed_gives_same_clips(clips):
    again, labels = make_motion(MotionSpec(2400, frames=4, side=8, seed=5))
    assert np.array_equal(again, clips[0]) and np.array_equal(labels, clips[1])
    assert not np.array_equal(make_motion(MotionSpec(2400, 4, 8, seed=6))[0], again)


def test_a_single_frame_carries_no_class(clips):
    x, labels = clips
    for frame in (0, 3):
        pixels = x[:, frame].reshape(len(x), -1) / 255
        assert lda_accuracy(np.hstack([pixels, pixels**2]), labels) < 1 / 8 + 0.04


def test_frames_in_another_order_do_not_tell_opposites_apart(clips):
    x, labels = clips
    rng = np.random.RandomState(0)
    shuffled = np.stack([clip[rng.permutation(4)] for clip in x])
    keep = labels < 4
    assert lda_accuracy(motion_energy(x[keep]), labels[keep]) > 0.7
    assert lda_accuracy(motion_energy(shuffled[keep]), labels[keep]) < 0.35


def test_a_clip_played_backwards_is_one_of_the_opposite_class(clips):
    x, labels = clips
    straight = [motion_energy(x[labels == kind]).mean(0) for kind in range(4)]
    backwards = [motion_energy(x[labels == kind, ::-1]).mean(0) for kind in (1, 0, 3, 2)]
    np.testing.assert_allclose(straight, backwards, atol=0.15 * np.abs(straight).max())


def test_a_state_is_uniform_on_its_circle_in_every_frame():
    labels = np.arange(8000) % len(MOTIONS)
    places = _places(labels, 4, np.random.RandomState(0))
    for kind in range(len(MOTIONS)):
        turns = places[labels == kind]
        assert np.abs(np.exp(2j * np.pi * turns).mean(0)).max() < 0.12


def test_bundled_splits_are_balanced_and_apart():
    tables = read_motion().tables
    counts = {n: np.bincount(t.columns["label"]).tolist() for n, t in tables.items()}
    assert counts == {"train": [200] * 8, "validation": [20] * 8, "test": [40] * 8}
    assert tables["train"].columns["video"].shape == (1600, 8, 16, 16)
    assert not np.array_equal(
        tables["train"].columns["video"][:160], tables["validation"].columns["video"]
    )
