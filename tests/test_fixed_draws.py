"""Tests draw the same numbers in every run, and nothing in the package or its tests can avoid that.

The programs that tests start as new processes are not reached: they draw secrets of their own.
"""

from __future__ import annotations

import ast
import random
from pathlib import Path

import fixed_draws
import numpy as np
import pytest
import torch

from fedpeft.client.private import GradientPrivacy, with_root
from fedpeft.client.turns import ClientTurn
from fedpeft.core import noise
from fedpeft.data.examples import ClientData
from fedpeft.engines.workers import WorkerPool
from fedpeft.testing.world import make_data

ROOT = Path(__file__).resolve().parent.parent
SECRET = GradientPrivacy(1.0, 1.0, secret=True)
ALLOWED = {
    "src/fedpeft/core/noise.py": {"urandom"},
    "src/fedpeft/runs/ledger.py": {"secrets"},  # names a run
    "src/fedpeft/export/export.py": {"uuid"},  # names a folder for a moment
    "src/fedpeft/models/gguf.py": {"uuid"},  # so does this
    "tests/fixed_draws.py": {"urandom"},
    "tests/test_fixed_draws.py": {"urandom"},
}
"""Files that may ask the system for something that nobody can foresee, and what they use."""
SOURCES = {"urandom", "getrandom", "secrets", "uuid", "SystemRandom"}
UNSEEDED = {"default_rng", "RandomState", "Random", "SeedSequence", "PCG64", "seed"}


def unforeseeable(text: str) -> set[str]:
    """What a file uses that gives other numbers in every process."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                found |= {alias.name.split(".")[0] for alias in names} & SOURCES
            case ast.ImportFrom(module=str(module), names=names):
                found |= {module.split(".")[0], *(alias.name for alias in names)} & SOURCES
            case ast.Attribute(attr=name) if name in SOURCES - {"secrets"}:
                found.add(name)
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), args=args):
                nothing = not args or (isinstance(args[0], ast.Constant) and args[0].value is None)
                if name in UNSEEDED and nothing and not node.keywords:
                    found.add(f"{name}()")
    return found


@pytest.mark.parametrize("folder", ["src", "tests"])
def test_no_file_draws_what_cannot_be_foreseen(folder):
    found = {
        str(file.relative_to(ROOT)): words
        for file in (ROOT / folder).rglob("*.py")
        if (words := unforeseeable(file.read_text("utf-8")))
    }
    assert found == {file: words for file, words in ALLOWED.items() if file.startswith(folder)}


@pytest.mark.parametrize(
    "text",
    [
        "import secrets", "from os import urandom", "import os\nos.urandom(3)", "import uuid",
        "from random import SystemRandom", "import random\nrandom.Random()", "random.seed()",
        "import numpy as np\nnp.random.default_rng()", "np.random.default_rng(None)",
        "np.random.RandomState()", "torch.Generator().seed()", "import os\nos.getrandom(8)",
    ],
)  # fmt: skip
def test_what_cannot_be_foreseen_is_seen(text):
    assert unforeseeable(text)


def test_a_seeded_generator_is_allowed():
    assert not unforeseeable("random.Random(3); default_rng(seed=3); RandomState(0); f(seeds=())")


def digits(*tensors: torch.Tensor) -> list[int]:
    return [int.from_bytes(bytes(tensor.tolist()[:4])) for tensor in tensors]


def test_draws_follow_from_the_name_of_the_test(request):
    drawn = digits(noise.draw_root(), noise.draw_root())
    again = fixed_draws.Sequence(request.node.nodeid)
    assert drawn == [int.from_bytes(again(32)[:4]) for _ in range(2)]
    assert drawn[0] != drawn[1]
    assert drawn[0] != int.from_bytes(fixed_draws.Sequence("another test")(32)[:4])


def test_global_generators_follow_from_the_name_of_the_test(request):
    drawn = random.random(), np.random.rand(), float(torch.rand(1))
    fixed_draws._seed_generators(request.node.nodeid)
    assert drawn == (random.random(), np.random.rand(), float(torch.rand(1)))
    fixed_draws._seed_generators("another test")
    assert drawn[0] != random.random()


@pytest.fixture(scope="module")
def shared():
    return digits(noise.draw_root()), random.random(), float(torch.rand(1))


def test_a_shared_fixture_leaves_the_tests_own_draws_alone(request):
    """Whether this test is the first to use it, or comes after another."""
    before = random.getstate()
    drawn, *_ = request.getfixturevalue("shared")
    assert drawn != digits(noise.draw_root())
    assert random.getstate() == before
    assert noise.urandom.name == request.node.nodeid


def root_of(client: str) -> int:
    turn = ClientTurn(1, client, ClientData(make_data().train, np.arange(1)), {}, 0, 0)
    return digits(with_root(SECRET, turn).memory["gradient.root"])[0]


def test_a_client_draws_the_same_in_whichever_worker_process():
    clients = [f"c{i}" for i in range(6)]
    found = []
    for order, number in ((clients, 2), (clients[::-1], 2), (clients[::-1], 1)):
        pool = WorkerPool(root_of, number)
        try:
            found.append(dict(pool.map(order)))
        finally:
            pool.close()
    assert found[0] == found[1] == found[2] == {client: root_of(client) for client in clients}
    assert len(set(found[0].values())) == 6


def test_a_draw_on_import_is_refused():
    with pytest.raises(RuntimeError, match="draw it in a test or a fixture"):
        fixed_draws._nobody(32)


@pytest.mark.system_entropy
def test_the_package_itself_asks_the_operating_system(request):
    import os

    assert noise.urandom is os.urandom
    fixed = fixed_draws.Sequence(request.node.nodeid)(32)
    first, second = (bytes(noise.draw_root().tolist()) for _ in range(2))
    assert first != second and fixed not in (first, second)
