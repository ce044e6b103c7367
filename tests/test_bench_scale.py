"""The table of docs/lab/scale.md and what it is written from."""

from __future__ import annotations

import pytest
from bench.scale import run, table


def test_a_table_has_a_row_a_point() -> None:
    point = {"clients": 10**6, "cohort": 200, "round_cpu_seconds": 1.5, "peak_bytes": 2**30}
    machine = {"processor": "a processor"}
    text = table({"points": [point, point], "machine": machine, "date": "2026-01-02"})
    assert text.count("| 1,000,000 | 200 | 1.50 | 7.50 | 1024 |") == 2
    assert "a processor, one worker, one thread, 2026-01-02" in text


@pytest.mark.slow
def test_a_hundred_times_the_clients_take_no_more_memory() -> None:
    few, many = run(small=True)["points"]
    assert many["clients"] == 100 * few["clients"]
    assert many["peak_bytes"] < few["peak_bytes"] + 20 * 2**20
