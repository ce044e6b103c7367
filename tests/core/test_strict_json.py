from __future__ import annotations

import json
import re
from pathlib import Path

import fedpeft
from fedpeft.core.strict_json import to_json

SOURCE = Path(fedpeft.__file__).parent


def test_a_number_that_is_not_finite_becomes_null_at_any_depth():
    value = {"a": float("nan"), "b": [1.5, float("inf"), {"c": (float("-inf"), "NaN")}]}
    assert json.loads(to_json(value)) == {"a": None, "b": [1.5, None, {"c": [None, "NaN"]}]}
    assert to_json(value, indent=2).count("\n") > 5


def test_what_rooms_with_files_and_output_write_is_strict():
    """`json.dumps` there is for digests, keys and words of a message, never for a file."""
    allowed = {
        "runs/checkpoint.py", "runs/folder.py", "runs/lock.py", "cli/planning.py",
        "results/evidence.py", "results/grid.py", "results/runs.py", "report/detail.py",
    }  # fmt: skip
    found = {
        str(file.relative_to(SOURCE))
        for room in ("runs", "cli", "results", "studies", "plan", "launch", "report")
        for file in (SOURCE / room).rglob("*.py")
        if re.search(r"json\.dumps?\(", file.read_text())
    }
    assert found == allowed
