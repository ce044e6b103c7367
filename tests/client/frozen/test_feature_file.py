from __future__ import annotations

import multiprocessing
import os

import numpy as np
import pytest

from fedpeft.client.frozen.feature_file import (
    FeatureFile,
    bytes_of,
    file_in_folder,
    memory_file,
    private_file,
)
from fedpeft.core.errors import EngineError

STARTS = np.array([0, 2, 3, 6], np.int64)
SIZE = bytes_of(3, 6, 4)
ALL = np.arange(3)


def values(record: int) -> np.ndarray:
    rows = int(STARTS[record + 1] - STARTS[record])
    return np.full((rows, 4), record + 0.5, np.float32)


def fill(table: FeatureFile) -> FeatureFile:
    for record in ALL.tolist():
        table.put(record, record + 7, values(record))
    return table


def in_folder(folder, key="a" * 64, limit=10**6) -> FeatureFile:
    return FeatureFile(file_in_folder(folder, key, SIZE, limit), STARTS, 4)


def the_file(folder):
    (path,) = folder.glob("*.prefix")
    return path


def test_what_is_put_is_found_again():
    table = FeatureFile(memory_file(SIZE), STARTS, 4)
    assert table.missing(ALL).tolist() == [0, 1, 2]
    table.put(1, 9, values(1))
    assert table.missing(ALL).tolist() == [0, 2]
    assert table.labels(np.array([1])).tolist() == [9]
    assert np.array_equal(table.rows(np.array([[2], [2]])), np.stack([values(1)] * 2))


def test_a_later_run_finds_the_features_of_an_earlier_one(tmp_path):
    fill(in_folder(tmp_path))
    again = in_folder(tmp_path)
    assert again.missing(ALL).tolist() == []
    assert np.array_equal(again.rows(np.arange(3, 6)), values(2))
    other = in_folder(tmp_path, key="b" * 64)
    assert other.missing(ALL).tolist() == [0, 1, 2]


def test_a_key_that_begins_alike_does_not_share_a_file(tmp_path):
    fill(in_folder(tmp_path, key="a" * 40 + " one"))
    assert in_folder(tmp_path, key="a" * 40 + " two").missing(ALL).tolist() == [0, 1, 2]


@pytest.mark.parametrize("place", [-1, -17, 4096, 4096 + 24])
def test_a_damaged_byte_is_noticed(tmp_path, place):
    fill(in_folder(tmp_path))
    path = the_file(tmp_path)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert len(in_folder(tmp_path).missing(ALL)) == 1


@pytest.mark.parametrize("size", [0, 100, 4096, SIZE - 1, SIZE + 1])
def test_a_truncated_file_is_made_anew(tmp_path, size):
    fill(in_folder(tmp_path))
    os.truncate(the_file(tmp_path), size)
    assert in_folder(tmp_path).missing(ALL).tolist() == [0, 1, 2]
    assert the_file(tmp_path).stat().st_size == SIZE


def test_a_record_without_its_values_counts_as_absent(tmp_path):
    """Simulate a crash between two pages: the checksum is written, the values are not."""
    table = fill(in_folder(tmp_path))
    table._values[3:6] = 0.0
    assert in_folder(tmp_path).missing(ALL).tolist() == [2]


def test_processes_see_what_others_wrote():
    table = FeatureFile(memory_file(SIZE), STARTS, 4)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=fill, args=(table,)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert table.missing(ALL).tolist() == []


def test_the_folder_stays_within_its_limit(tmp_path):
    for number, key in enumerate("abc"):
        fill(in_folder(tmp_path, key * 64, limit=2 * SIZE))
        os.utime(next(tmp_path.glob(f"{key}*")), (number, number))
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["b", "c"]


def test_a_table_that_is_pushed_out_stays_readable(tmp_path):
    table = fill(in_folder(tmp_path))
    in_folder(tmp_path, "b" * 64, limit=SIZE)
    assert not list(tmp_path.glob("a*"))
    assert np.array_equal(table.rows(np.arange(3, 6)), values(2))


def test_a_private_file_leaves_nothing_behind(tmp_path):
    fill(FeatureFile(private_file(tmp_path, SIZE), STARTS, 4))
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(EngineError, match=r"client.prefix_cache: .* bytes cannot be stored in"):
        file_in_folder(tmp_path, "a" * 64, 2**60, 2**61)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    for name in ("old.partial", "new.partial"):
        (tmp_path / name).write_bytes(b"x")
    os.utime(tmp_path / "old.partial", (0, 0))
    in_folder(tmp_path)
    assert not (tmp_path / "old.partial").exists() and (tmp_path / "new.partial").exists()
