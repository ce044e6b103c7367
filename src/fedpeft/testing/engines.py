"""The laws of every engine."""

from __future__ import annotations

from collections.abc import Callable

import fedpeft.testing.world as world
from fedpeft.data.examples import Federated
from fedpeft.rounds.client_half import ClientHalf
from fedpeft.rounds.job import Engine
from fedpeft.wire.stages import float16, top_k


def check_engine(make: Callable[[Callable[[], ClientHalf], Federated], Engine]) -> None:
    """Check that an engine computes the same rounds as the local engine, bit for bit.

    Three rounds run without a stage, with half precision, and with a stage that has a memory at
    each client.

    >>> from fedpeft.engines.local import LocalEngine
    >>> check_engine(LocalEngine)

    Args:
      make: (builder of the client half, data of all clients) -> the engine; it need not be closed.

    Raises:
      AssertionError: if a law does not hold; the message names it.
    """
    data = world.make_data()
    for up in ((), (float16(),), (top_k(0.3),)):
        name = up[0].name if up else "no stage"
        engine = make(lambda up=up: world.make_half(up), data)  # type: ignore[misc]  # a default binds it
        assert list(engine.clients()) == list(data.clients), "clients(): not those of the data"
        plan = world.make_plan(up=up)
        expected, records = world.run_rounds(plan, world.make_engine(data, up))
        found, others = world.run_rounds(plan, engine)
        for mine, theirs in zip(others, records, strict=True):
            assert not mine.failures, f"{name}: clients failed: {dict(mine.failures)}"
            assert mine.cohort == theirs.cohort, f"{name}: another cohort was selected"
            assert mine.bytes_up == theirs.bytes_up, f"{name}: other bytes were sent"
            assert mine.metrics == theirs.metrics, f"{name}: other metrics were reported"
        assert world.same_state(found, expected), f"{name}: another state than the local engine's"
