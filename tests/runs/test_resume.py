"""Law: a run that is killed at any moment and resumed equals one that was not, bit for bit."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import TINY

EXPERIMENT = (
    TINY.replace(
        "rounds = 2\nclients_per_round = 2",
        'rounds = 3\nclients_per_round = 4\neval_every = 2\nalgorithm = "fedadam"',
    )
    + """
[[wire.up]]
name = "top_k"
fraction = 0.2
"""
)
WRITES = range(1, 38)
SOME_WRITES = (3, 14, 19, 26, 37)
MOMENTS = random.Random(1)
TWO = {"sets": ["engine.workers=2"]}
TRIALS: dict[str, list[dict[str, Any]]] = {
    "straight": [{}],
    "writes": [{"at": number} for number in SOME_WRITES],
    "moments": [{"after": MOMENTS.uniform(0, 0.4)} for _ in range(2)],
    "two workers": [{"at": 20, **TWO}],
    "forgotten": [{"at": 22, "forget": True}],
    "another seed": [{"sets": ["seed=2"]}],
}


BUFFERED = [
    'federation.mode="buffered"', "federation.buffered.size=3", "federation.buffered.concurrency=4",
    "federation.rounds=8", "stability.dropout=0.2", "stability.speed_spread=1.0",
]  # fmt: skip


def drive(folder: Path, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run trials in one process of their own."""
    file = folder / "tiny.toml"
    file.write_text(EXPERIMENT)
    whole = [
        {"file": str(file), "out": str(folder / f"run-{i}"), **t} for i, t in enumerate(trials)
    ]
    driver = Path(__file__).with_name("kill_driver.py")
    done = subprocess.run(
        [sys.executable, driver], input=json.dumps(whole), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    flat = drive(tmp_path_factory.mktemp("kills"), [t for some in TRIALS.values() for t in some])
    return {name: [flat.pop(0) for _ in some] for name, some in TRIALS.items()}


def same(result: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(result[key] == other[key] for key in ("code", "digest", "items", "records", "left"))


def test_killed_at_some_writes_equals_uninterrupted(results) -> None:
    assert [r["killed"] for r in results["writes"]] == [-9, -9, -9, -9, 0]
    assert all(same(result, results["straight"][0]) for result in results["writes"])


@pytest.mark.slow
def test_killed_at_every_write_equals_uninterrupted(tmp_path: Path) -> None:
    straight, *killed = drive(tmp_path, [{}, *({"at": number} for number in WRITES)])
    assert [result["killed"] for result in killed][:30] == [-9] * 30
    assert killed[-1]["killed"] == 0, "every write was reached"
    assert all(same(result, straight) for result in killed)


def test_killed_at_random_moments_equals_uninterrupted(results) -> None:
    assert all(same(result, results["straight"][0]) for result in results["moments"])


def test_two_workers_equal_one(results) -> None:
    assert all(same(result, results["straight"][0]) for result in results["two workers"])


def test_forgotten_client_memories_are_noticed(results) -> None:
    (result,) = results["forgotten"]
    assert result["killed"] == -9 and result["digest"] != results["straight"][0]["digest"]


def test_another_seed_is_noticed(results) -> None:
    assert results["another seed"][0]["digest"] != results["straight"][0]["digest"]


@pytest.mark.slow
@pytest.mark.parametrize("writes", [(23,), (17, 23, 26, 47)], ids=["one", "four"])
def test_buffered_training_killed_anywhere_equals_uninterrupted(
    tmp_path: Path, writes: tuple[int, ...]
) -> None:
    base = {"sets": BUFFERED}
    kills = [{"at": number, **base} for number in writes]
    two = {"at": 25, "sets": [*BUFFERED, "engine.workers=2"]}
    forgotten = {"at": 35, "forget": True, **base}
    straight, *others, lost = drive(tmp_path, [base, *kills, two, forgotten])
    assert straight["code"] == 0 and len(straight["records"]) == 8
    assert all("simulated_time" in record for record in straight["records"])
    assert [other["killed"] for other in others] == [-9] * len(others)
    assert all(same(other, straight) for other in others)
    assert not same(lost, straight)


@pytest.mark.slow
def test_killed_at_many_random_moments_with_two_workers(tmp_path: Path) -> None:
    moments = random.Random(2)
    trials = [TWO, *({"after": moments.uniform(0, 0.6), **TWO} for _ in range(60))]
    straight, *others = drive(tmp_path, [{}, *trials])
    assert all(same(other, straight) for other in others)
