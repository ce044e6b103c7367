"""The example plug-in, installed into a fresh environment as a user would install it."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import fedpeft

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment of its own that borrows this one's libraries, with the plug-in installed."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    own = next(folder.glob("lib/python*/site-packages"))
    source = Path(fedpeft.__file__).parents[1]
    (own / "borrowed.pth").write_text("\n".join([str(source), *site.getsitepackages()]) + "\n")
    copy = tmp_path_factory.mktemp("source") / "plugin"  # building leaves files beside the source
    shutil.copytree(ROOT / "examples" / "plugin", copy)
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
        "--no-build-isolation", "--target", str(own), str(copy),
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=300)
    return python


def call(python, *args, cwd):
    found = subprocess.run(
        [str(python), *args],
        cwd=cwd, capture_output=True, text=True, timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("algorithms", "coordinate_median"),
        ("stages", "sign"),
        ("samplers", "by_loss"),
        ("callbacks", "csv_log"),
    ],
)
def test_its_names_are_listed_with_its_package(environment, tmp_path, what, name):
    rows = json.loads(call(environment, "-m", "fedpeft", "list", what, "--json", cwd=tmp_path))
    assert {row["name"]: row["package"] for row in rows}[name] == "fedpeft-example"


def test_its_own_tests_pass(environment, tmp_path):
    tests = ROOT / "examples" / "plugin" / "tests"
    call(environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), cwd=tmp_path)


def test_its_experiment_is_planned_from_the_command_line(environment, tmp_path):
    file = ROOT / "examples" / "plugin" / "experiment.toml"
    plan = json.loads(call(environment, "-m", "fedpeft", "plan", str(file), "--json", cwd=tmp_path))
    assert plan["wire_bytes_up"] < plan["payload_bytes"] / 20  # one bit for each of 32


def test_without_the_package_its_names_are_unknown(tmp_path):
    file = ROOT / "examples" / "plugin" / "experiment.toml"
    found = subprocess.run(
        [sys.executable, "-m", "fedpeft", "check", str(file)],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(fedpeft.__file__).parents[1])},
    )  # fmt: skip
    assert found.returncode == 2 and "'coordinate_median' is unknown" in found.stderr
