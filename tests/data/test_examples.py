from __future__ import annotations

import pytest

from fedpeft.data.examples import NO_DATA


def test_there_is_a_table_without_examples():
    assert len(NO_DATA) == len(NO_DATA.examples) == 0
    with pytest.raises(IndexError, match="a table without examples has no batches"):
        NO_DATA.examples.batch([0], seed=None)
