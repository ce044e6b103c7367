"""The draw of a cohort: the first places of one shuffle, made whole or not."""

from __future__ import annotations

import time

import pytest
import torch

from fedpeft.core import seeds
from fedpeft.core.errors import ConfigError
from fedpeft.data.drawn import Names
from fedpeft.server import sampling
from fedpeft.server.sampling import fixed_cohort


@pytest.mark.parametrize(("total", "size"), [(64, 8), (10_000, 1), (12_345, 1000), (200_000, 77)])
def test_a_cohort_is_the_beginning_of_a_permutation(total: int, size: int) -> None:
    for round in (1, 2, 3):
        generator = seeds.generator(5, "cohort", round)
        places = torch.randperm(total, generator=generator)[:size].tolist()
        cohort = fixed_cohort(Names(total), size, seed=5, round=round)
        assert list(cohort) == [Names(total)[place] for place in places]
        assert len(set(cohort)) == size
    assert fixed_cohort(Names(total), size, seed=6, round=1) != fixed_cohort(
        Names(total), size, seed=5, round=1
    )


def test_words_swapped_would_give_another_cohort(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: the order of the generator's words matters."""
    expected = fixed_cohort(Names(20_000), 50, seed=1, round=1)
    right = sampling._words

    def swapped(count: int, generator: torch.Generator) -> list[int]:
        return right(count, generator)[::-1]

    monkeypatch.setattr(sampling, "_words", swapped)
    assert fixed_cohort(Names(20_000), 50, seed=1, round=1) != expected


def test_a_large_population_costs_no_more() -> None:
    began = time.process_time()
    for round in range(100):
        fixed_cohort(Names(100_000_000), 10, seed=1, round=round)
    assert time.process_time() - began < 2  # one shuffle of so many takes longer than all of these


@pytest.mark.parametrize("size", [0, 5])
def test_a_cohort_of_nobody_or_of_more_than_all_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=rf"clients_per_round: found {size}, allowed are 1 to 4"):
        fixed_cohort(Names(4), size, seed=1, round=1)
