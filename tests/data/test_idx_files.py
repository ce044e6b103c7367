"""idx files: MNIST's format, whole, damaged, and under every name in use."""

from __future__ import annotations

import gzip
import logging
import struct

import numpy as np
import pytest

from fedpeft.core.errors import DataError
from fedpeft.data.idx_files import is_idx_name, read_idx
from fedpeft.data.load import load_data
from fedpeft.data.request import DataRequest
from fedpeft.data.rows import read_rows
from fedpeft.data.schemes import PartitionRequest
from fedpeft.data.source import choose_splits, read_source
from fedpeft.models.loaded import ImageInput

PIXELS = np.random.default_rng(1).integers(0, 256, (20, 5, 4), dtype=np.uint8)
LABELS = (np.arange(20) % 4).astype(np.uint8)
INPUTS = ImageInput(5, 4, 1, (0.5,), (0.5,))
MNIST = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
MNIST_TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(values, *, kind=0x08, sizes=None):
    """Encode values as the format's description says."""
    shape = values.shape if sizes is None else sizes
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, kind, len(shape), *shape) + values.tobytes()


def write(folder, names, images, labels, *, packed=False):
    folder.mkdir(exist_ok=True, parents=True)
    for name, values in zip(names, (images, labels), strict=True):
        content = idx(values)
        (folder / name).write_bytes(gzip.compress(content) if packed else content)
    return folder


def write_both(folder, *, packed=False):
    write(folder, MNIST, PIXELS, LABELS, packed=packed)
    return write(folder, MNIST_TEST, PIXELS[:8], LABELS[:8], packed=packed)


def opened(path, **keys):
    request = DataRequest(str(path), **keys)
    return choose_splits(read_source(request), request)


def refusal(path, **keys):
    with pytest.raises(DataError) as caught:
        opened(path, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_and_labels_are_those_that_were_written(tmp_path, packed):
    train, test, validation = opened(write_both(tmp_path, packed=packed))
    assert np.array_equal(np.stack(list(train.columns["image"])), PIXELS)
    assert np.array_equal(train.columns["label"], LABELS)
    assert len(test) == 8 and validation is None
    assert train.place(4) == f"picture 5 of {tmp_path / MNIST[0]}"


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        MNIST,
        tuple(f"{name}.gz" for name in MNIST),
        ("train-images.idx3-ubyte", "train-labels.idx1-ubyte"),
        (
            "emnist-balanced-train-images-idx3-ubyte.gz",
            "emnist-balanced-train-labels-idx1-ubyte.gz",
        ),
        ("TRAIN_IMAGES.IDX3-UBYTE", "TRAIN_LABELS.IDX1-UBYTE"),
        ("kmnist-test-images-idx3-ubyte", "kmnist-test-labels-idx1-ubyte"),
    ],
)
def test_usual_names_are_read_packed_or_not(tmp_path, images, labels):
    packed = images.endswith(".gz")
    train, *_ = opened(write(tmp_path, (images, labels), PIXELS, LABELS, packed=packed))
    assert len(train) == 20


@pytest.mark.parametrize("name", ["train.csv.gz", "images", "._train-images-idx3-ubyte"])
def test_other_names_are_not_taken_for_idx_files(name):
    assert not is_idx_name(name)


def test_content_decides_whether_a_file_is_packed(tmp_path):
    """Browsers unpack what they load and keep the name."""
    write(tmp_path, tuple(f"{name}.gz" for name in MNIST), PIXELS, LABELS, packed=False)
    assert len(opened(tmp_path)[0]) == 20


def test_a_file_that_lies_there_packed_and_unpacked_is_read_once(tmp_path, caplog):
    write_both(tmp_path / "raw")
    write(tmp_path / "raw", tuple(f"{name}.gz" for name in MNIST), PIXELS, LABELS, packed=True)
    assert len(opened(tmp_path)[0]) == 20, "torchvision's layout, found in raw/"
    assert not caplog.records


def test_one_file_chooses_among_several_data_sets(tmp_path):
    for group, count in (("emnist-digits", 12), ("emnist-letters", 16)):
        names = tuple(f"{group}-{name}" for name in MNIST)
        write(tmp_path, names, PIXELS[:count], LABELS[:count])
    assert "holds the data sets 'emnist-digits', 'emnist-letters'" in refusal(tmp_path)
    assert len(opened(tmp_path / f"emnist-letters-{MNIST[1]}")[0]) == 16


def test_a_missing_test_split_is_held_out(tmp_path):
    write(tmp_path, MNIST, PIXELS, LABELS)
    train, test = read_rows(DataRequest(str(tmp_path)))
    assert (len(train), len(test)) == (16, 4)
    write(tmp_path, MNIST, np.tile(PIXELS, (2, 1, 1)), np.tile(LABELS, 2))
    write(tmp_path, MNIST_TEST, PIXELS, LABELS)
    train, test = read_rows(DataRequest(str(tmp_path), evaluate_on="validation"))
    assert (len(train), len(test)) == (36, 4)


def test_the_data_are_loaded_for_a_model(tmp_path):
    clients = PartitionRequest("iid", 2, min_examples=1)
    request = DataRequest(str(write_both(tmp_path)), partition=clients, budget=12, max_test=4)
    data = load_data(request, INPUTS)
    assert (len(data.train), len(data.test), data.num_labels) == (12, 4, 4)


def test_keys_of_separated_values_are_refused(tmp_path):
    write_both(tmp_path)
    assert "data.header" in refusal(tmp_path / MNIST[0], header=False)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no idx file: it begins with b''"),
        (b"<html>gone</html>", "is no idx file: it begins with b'<htm'"),
        (b"\0\0\x08", "is no idx file"),
        (b"\0\0\x08\x03\0\0", "ends within its header"),
        (idx(PIXELS)[:-1], "states 20 x 5 x 4 values and holds 399: it is truncated"),
        (idx(PIXELS) + b"\0", "holds 401: it is longer"),
        (idx(PIXELS, kind=0x0D), "holds floating-point numbers of 32 bits; allowed are unsigned"),
        (idx(PIXELS, kind=0x0C), "holds whole numbers of 32 bits"),
        (idx(PIXELS, kind=0x42), "values of the unknown type 0x42"),
        (idx(LABELS), "has 1 dimension; images have 3"),
        (idx(PIXELS, sizes=(20, 0, 4)), "pictures are empty"),
        (idx(PIXELS, sizes=(2**32 - 1,) * 3), "states 4,294,967,295 x"),
        (idx(PIXELS, sizes=(0, 5, 4)), "holds 400: it is longer"),
        (idx(PIXELS[:19]), "has 19 pictures and train-labels-idx1-ubyte has 20 labels"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path, content, words, packed):
    write_both(tmp_path)
    file = tmp_path / MNIST[0]
    file.write_bytes(gzip.compress(content) if packed else content)
    found = refusal(tmp_path)
    assert str(file) in found
    if packed:  # what is longer is not unpacked to its end
        words = words.replace("holds 401: it is longer", "goes on after the 20 x 5 x 4 values")
        words = words.replace("holds 400: it is longer", "goes on after the 0 x 5 x 4 values")
    assert words in found


def test_an_empty_split_is_refused(tmp_path):
    write(tmp_path, MNIST, PIXELS[:0], LABELS[:0])
    with pytest.raises(DataError, match=r"the training split of .* has no examples"):
        read_rows(DataRequest(str(tmp_path)))


@pytest.mark.parametrize("cut", [3, 12, -9, -1])
def test_a_damaged_archive_is_refused(tmp_path, cut):
    write_both(tmp_path, packed=True)
    file = tmp_path / MNIST[0]
    file.write_bytes(file.read_bytes()[:cut])
    assert f"{file} is not an idx file: " in refusal(tmp_path)


def test_a_wrong_checksum_is_refused(tmp_path):
    write_both(tmp_path, packed=True)
    content = bytearray((tmp_path / MNIST[0]).read_bytes())
    content[-8] ^= 1
    (tmp_path / MNIST[0]).write_bytes(content)
    assert "CRC check failed" in refusal(tmp_path)


@pytest.mark.parametrize("sizes", [(2**15, 2**10, 2**10), (10**6, 1, 1)])
def test_a_header_takes_no_memory_that_the_file_does_not_justify(tmp_path, monkeypatch, sizes):
    """The first states more than is ever unpacked, the second more than its bytes can stand for."""
    monkeypatch.setattr("fedpeft.data.idx_files.bytearray", None, raising=False)
    file = tmp_path / MNIST[0]
    file.write_bytes(gzip.compress(idx(PIXELS, sizes=sizes)))
    with pytest.raises(DataError, match=r"more than its .* packed bytes can hold"):
        read_idx(file, "images")


def test_an_archive_is_unpacked_no_further_than_its_header_says(tmp_path):
    """32 MB of zeros in 32 kB: a few are read."""
    file = tmp_path / MNIST[1]
    file.write_bytes(gzip.compress(idx(LABELS) + bytes(2**25)))
    with pytest.raises(DataError, match="goes on after the 20 values"):
        read_idx(file, "labels")


def test_what_is_too_large_to_unpack_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("fedpeft.data.idx_files._MOST_PACKED", 399)
    file = tmp_path / MNIST[0]
    file.write_bytes(gzip.compress(idx(PIXELS)))
    with pytest.raises(DataError, match="up to 399 are unpacked into memory: unpack it"):
        read_idx(file, "images")


@pytest.mark.parametrize("missing", MNIST)
def test_pictures_without_labels_are_refused(tmp_path, missing):
    write_both(tmp_path)
    (tmp_path / missing).unlink()
    kind = missing.split("-")[1]
    assert f"lies there without its {kind}" in refusal(tmp_path)


def test_a_file_without_a_split_is_refused(tmp_path):
    write(tmp_path, ("faces-images-idx3-ubyte", "faces-labels-idx1-ubyte"), PIXELS, LABELS)
    assert "names no split before 'images'" in refusal(tmp_path)


def test_two_files_for_one_split_are_refused(tmp_path):
    write_both(tmp_path)
    write(tmp_path, ("test-images-idx3-ubyte", "test-labels-idx1-ubyte"), PIXELS, LABELS)
    assert "'t10k' and 'test', which both name the test split" in refusal(tmp_path).replace(
        "'test' and 't10k'", "'t10k' and 'test'"
    )


def test_what_else_lies_there_is_told(tmp_path, caplog):
    write_both(tmp_path)
    (tmp_path / "mapping.dat").write_text("0 48")
    with caplog.at_level(logging.WARNING):
        opened(tmp_path)
    assert "not read: mapping.dat" in caplog.text


def test_test_examples_are_drawn_in_proportion_to_classes(tmp_path):
    labels = np.repeat(np.array([0, 1, 2], np.uint8), (12, 6, 2))
    write(tmp_path, MNIST, PIXELS, labels)
    write(tmp_path, MNIST_TEST, PIXELS, labels)
    drawn = [
        read_rows(DataRequest(str(tmp_path), max_test=10, seed=seed))[1].columns for seed in (1, 2)
    ]
    assert np.bincount(drawn[0]["label"]).tolist() == [6, 3, 1]
    assert np.array_equal(drawn[0]["image"], drawn[1]["image"]), "the run's seed plays no part"
    assert not np.array_equal(drawn[0]["image"], PIXELS[:10])
    for count in (1, 7, 19):
        assert len(read_rows(DataRequest(str(tmp_path), max_test=count))[1]) == count
    for count in (20, 500, None):
        assert len(read_rows(DataRequest(str(tmp_path), max_test=count))[1]) == 20
    with pytest.raises(DataError, match=r"data.max_test: found 0; allowed is 1 or more"):
        read_rows(DataRequest(str(tmp_path), max_test=0))
