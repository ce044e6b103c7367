"""Choosing clients: secret coins have the promised rate."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.core.noise import seeded_root
from fedpeft.server.sampling import Draw, poisson_cohort

ROOT = seeded_root(5)


def test_poisson_cohorts_have_the_promised_rate_and_may_be_empty():
    clients = [f"c{i}" for i in range(64)]
    sizes = [len(poisson_cohort(clients, 0.125, root=ROOT, round=r)) for r in range(1, 2001)]
    assert np.mean(sizes) == pytest.approx(8.0, abs=0.25)
    assert np.var(sizes) == pytest.approx(64 * 0.125 * 0.875, rel=0.1)  # binomial, not fixed
    few = [poisson_cohort(clients[:2], 0.1, root=ROOT, round=r) for r in range(1, 50)]
    assert () in few
    assert poisson_cohort(clients, 1.0, root=ROOT, round=1) == tuple(clients)


def test_a_printed_draw_does_not_show_the_root():
    assert "root" not in repr(Draw(1, 8, 3, ROOT)) and "seed=3" in repr(Draw(1, 8, 3, ROOT))
