"""What a test draws depends on its name alone: not on the machine, the hour, or tests before it.

    draw n of a test = SHA-256(seed, name of the test, n)          secret roots of privacy noise
    random, numpy and torch's global generators                     seeded by the name of the test

Noise for privacy comes from the operating system, so a test of what a private run computes fails
now and then by chance alone: an audit of level 1/1000 once in a thousand runs. Here the system is
replaced, where `fedpeft.core.noise` asks it, by a fixed sequence. A client's draw is keyed by the
client and its turn, so that it is the same in whichever worker process it happens.

A fixture that several tests share draws by its own name, so that it does not matter which of them
comes first. A test of the secrecy itself carries the marker `system_entropy`.

`FEDPEFT_TEST_SEED=7 make test` draws other numbers: a sound law holds for (almost) every seed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from fedpeft.client.turns import ClientTurn
from fedpeft.core import noise

SEED = os.environ.get("FEDPEFT_TEST_SEED", "0")


@dataclass
class Sequence:
    """A fixed sequence of draws.

    Attributes:
      name: of the test or fixture that draws.
      drawn: how many draws each client, or "" for a server, has made.
    """

    name: str
    drawn: Counter[str] = field(default_factory=Counter)

    def __call__(self, size: int) -> bytes:
        """Return the next `size` bytes, at most 32."""
        who = _turn()
        self.drawn[who] += 1
        text = "\x1f".join((SEED, self.name, who, str(self.drawn[who])))
        return hashlib.sha256(text.encode()).digest()[:size]


def _nobody(size: int) -> bytes:
    raise RuntimeError(
        "a secret is drawn while test files are imported, where nothing says which test it belongs "
        "to: draw it in a test or a fixture"
    )


def _turn() -> str:
    """Return the client and turn for which a root is drawn; "" if it is the server's."""
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]  # None ends the loop
        turn = frame.f_locals.get("turn")
        if isinstance(turn, ClientTurn):
            return f"{turn.client}/{turn.round}/{turn.seed}"
    return ""


@contextlib.contextmanager
def _generators_of(name: str) -> Iterator[None]:
    """Seed the global generators by a name inside the block, and put them back."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _seed_generators(name)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _seed_generators(name: str) -> None:
    number = int.from_bytes(hashlib.sha256(f"{SEED} {name}".encode()).digest()[:4])
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse draws until a test or a fixture begins."""
    noise.urandom = _nobody


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin the sequence of a test, before its fixtures."""
    real = item.get_closest_marker("system_entropy")
    noise.urandom = os.urandom if real else Sequence(item.nodeid)
    _seed_generators(item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Iterator[None]:
    """Let a fixture that tests share draw by its own name."""
    if fixturedef.scope == "function":
        return (yield)
    name = f"{fixturedef.baseid}::{fixturedef.argname}[{request.param_index}]"
    of_test, noise.urandom = noise.urandom, Sequence(name)
    try:
        with _generators_of(name):
            return (yield)
    finally:
        noise.urandom = of_test
