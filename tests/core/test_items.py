from __future__ import annotations

import numpy as np
import pytest

from fedpeft.core.items import pack_items, unpack_items


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_unpacked_items_are_those_that_were_packed(count: int) -> None:
    right = np.random.default_rng(count).random(count) < 0.7
    packed = pack_items(right)
    assert np.array_equal(unpack_items(packed), right)
    if count:  # the law can fail: one other answer is another text
        assert pack_items(np.logical_xor(right, np.arange(count) == count - 1)) != packed


def test_a_thousand_items_take_168_letters() -> None:
    assert len(str(pack_items(np.ones(1000, bool))["right"])) == 168


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        ({"count": 9, "right": "oA=="}, "has 1 bytes; expected are 2, a bit for each of 9"),
        ({"count": -1, "right": ""}, "items.count is -1"),
        ({"count": True, "right": "oA=="}, "items.count is True"),
        ({"right": "oA=="}, "items.count is None"),
        ({"count": 3, "right": "o*=="}, "base64"),
    ],
)
def test_a_text_that_does_not_fit_is_refused(packed: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        unpack_items(packed)
