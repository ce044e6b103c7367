"""One set of clips in every form, read back alike; and what cannot be read."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from fedpeft.core.errors import DataError
from fedpeft.data.clip_files import ClipFile, read_clip_file, read_clip_folder
from fedpeft.data.clips import read_clips
from fedpeft.data.images import Canvas
from fedpeft.data.request import DataRequest
from fedpeft.data.source import read_source

CANVAS = Canvas(16, 16, 1)


@pytest.fixture
def clip():
    """Six grey frames of a square that moves."""
    frames = np.zeros((6, 16, 16), np.uint8)
    for step in range(6):
        frames[step, 4:8, 2 * step : 2 * step + 4] = 255
    return frames


def write_pictures(path, clip):
    path.mkdir()
    for number, frame in enumerate(clip):
        Image.fromarray(frame).save(path / f"{number:03}.png")


def write_gif(path, clip):
    first, *rest = [Image.fromarray(frame) for frame in clip]
    first.save(path, save_all=True, append_images=rest, duration=40)


def write_film(path, clip):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width = stream.height = clip.shape[1]
        stream.bit_rate = 4_000_000
        for frame in clip:
            picture = av.VideoFrame.from_ndarray(np.stack([frame] * 3, 2), format="rgb24")
            film.mux(stream.encode(picture))
        film.mux(stream.encode())


WRITERS = {
    "clip": write_pictures,
    "clip.npy": lambda path, clip: np.save(path, clip),
    "clip.npz": lambda path, clip: np.savez(path, clip),
    "clip.safetensors": lambda path, clip: save_file({"frames": clip}, path),
    "clip.pt": lambda path, clip: torch.save(torch.from_numpy(clip), path),
    "clip.gif": write_gif,
    "clip.mp4": write_film,
}


@pytest.mark.parametrize("name", WRITERS)
def test_clip_is_the_same_in_every_form(name, clip, tmp_path):
    WRITERS[name](tmp_path / name, clip)
    found = read_clips([ClipFile(str(tmp_path / name))], CANVAS, 6, whole=False)
    far = np.abs(found.pixels.tensor[..., 0].numpy().astype(int) - clip.astype(int))
    assert far.max() == 0 if name != "clip.mp4" else far.mean() < 4


def test_folders_are_classes_and_splits(clip, tmp_path):
    for split in ("train", "test"):
        for kind in ("walk", "run"):
            (tmp_path / split / kind).mkdir(parents=True)
            np.save(tmp_path / split / kind / "b.npy", clip)
            write_pictures(tmp_path / split / kind / "a", clip)
    tables = read_source(DataRequest(str(tmp_path), "video-classification")).tables
    assert list(tables) == ["test", "train"]
    assert list(tables["train"].columns["label"]) == ["run", "run", "walk", "walk"]
    assert len(read_clip_folder(tmp_path / "train")["train"]) == 4


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_file_of_tensors_has_splits_by_name(suffix, clip, tmp_path):
    clips, labels = np.stack([clip[:, None]] * 3), np.array([0, 1, 1])
    arrays = {"pixel_values_train": clips, "labels_train": labels}
    arrays |= {"pixel_values_test": clips[:1], "labels_test": labels[:1]}
    path = tmp_path / f"clips{suffix}"
    np.savez(path, **arrays) if suffix == ".npz" else save_file(arrays, path)
    for found in (read_clip_file(path), read_clip_folder(tmp_path)):
        assert {name: len(table) for name, table in found.items()} == {"train": 3, "test": 1}
    column = found["train"].columns["pixel_values"]
    assert np.array_equal(
        read_clips(column, CANVAS, 6, whole=False).pixels.tensor[6:12, ..., 0], clip
    )


def test_files_of_a_folder_are_splits(clip, tmp_path):
    for name in ("train", "test"):
        save_file({"clips": clip[None], "labels": np.array([0])}, tmp_path / f"{name}.safetensors")
    assert set(read_clip_folder(tmp_path)) == {"train", "test"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("clip.npy", b"no", "is not an npy file of plain arrays"),
        ("clip.npz", b"no", "is not an npz file of plain arrays"),
        ("clip.pt", b"no", "is not a file of one tensor"),
        ("clip.safetensors", b"no", "is not a safetensors file"),
        ("clip.gif", b"no", "is not a picture"),
    ],
)
def test_broken_clip_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} {message}"):
        ClipFile(str(tmp_path / name)).frames()


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    torch.save({"clip": pytest.raises}, tmp_path / "clip.pt")
    with pytest.raises(DataError, match="code in it is never run"):
        ClipFile(str(tmp_path / "clip.pt")).frames()


def test_clip_file_of_another_shape_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((8, 8), np.uint8))
    np.savez(tmp_path / "b.npz", a=np.zeros(2), b=np.zeros(2))
    with pytest.raises(DataError, match=r"a.npy holds an array of uint8\[8, 8\]; allowed are"):
        ClipFile(str(tmp_path / "a.npy")).frames()
    with pytest.raises(DataError, match=r"b.npz holds a, b; a clip is one array"):
        ClipFile(str(tmp_path / "b.npz")).frames()


def test_mixed_sizes_are_refused(clip, tmp_path):
    write_pictures(tmp_path / "clip", clip)
    Image.new("L", (8, 16)).save(tmp_path / "clip" / "009.png")
    with pytest.raises(
        DataError, match=r"clip has frames of 16 x 8 and 16 x 16 pixels; all frames"
    ):
        read_clips([ClipFile(str(tmp_path / "clip"))], CANVAS, 6, whole=False)


def test_clip_that_is_too_short_is_named_by_its_file(clip, tmp_path):
    np.save(tmp_path / "short.npy", clip[:3])
    with pytest.raises(DataError, match=r"short\.npy has 3 frames; the model takes 6"):
        read_clips([ClipFile(str(tmp_path / "short.npy"))], CANVAS, 6, whole=False)


def test_folder_without_clips_is_refused(tmp_path):
    (tmp_path / "walk").mkdir()
    (tmp_path / "walk" / "notes.txt").write_text("none")
    with pytest.raises(DataError, match=r"holds no clips; allowed are CLASS/clip"):
        read_clip_folder(tmp_path)


def test_tensors_that_do_not_fit_are_refused(clip, tmp_path):
    np.savez(tmp_path / "a.npz", images=clip)
    np.savez(tmp_path / "b.npz", clips=clip[None], labels=np.array([0, 1]))
    (tmp_path / "c.csv").write_text("x,y\n")
    with pytest.raises(DataError, match=r"a.npz holds images \[6, 16, 16\]; needed are"):
        read_clip_file(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"b.npz has 1 clips and 2 rows of 'labels'"):
        read_clip_file(tmp_path / "b.npz")
    with pytest.raises(DataError, match=r"c.csv ends in '.csv'; for clips allowed are"):
        read_clip_file(tmp_path / "c.csv")


def test_film_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"PyAV decodes; install it with .*fedpeft\[video\]"):
        ClipFile(str(tmp_path / "clip.mp4")).frames()


def test_broken_film_is_named(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "clip.mp4").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"clip.mp4 is not a film"):
        ClipFile(str(tmp_path / "clip.mp4")).frames()
