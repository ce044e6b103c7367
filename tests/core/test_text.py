from __future__ import annotations

import pytest

from fedpeft.core.text import byte_count, byte_words


@pytest.mark.parametrize(
    ("text", "count"),
    [("20000", 20_000), ("500kB", 5e5), (" 1.5 mb ", 1.5e6), (".5GB", 5e8), ("7 B", 7), ("2.", 2)],
)
def test_numbers_of_bytes_are_read(text: str, count: float) -> None:
    assert byte_count(text) == count


@pytest.mark.parametrize("text", ["", "kB", "5x", "-1", "0", "0.0 MB", "1e3", "nan", "1 kB 2", "٣"])
def test_what_is_no_number_of_bytes_is_none(text: str) -> None:
    assert byte_count(text) is None


@pytest.mark.parametrize("count", [1, 999, 1_000, 76_300, 3_260_000, 4e9])
def test_what_is_written_is_read(count: float) -> None:
    assert byte_count(byte_words(count)) == pytest.approx(count)
