"""Replica counts against trying everything."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from equipoise.planning.replicate import replicate
from problems import loads_of


def fewest(loads: list[int], num_slots: int) -> Fraction:
    """The smallest largest load per replica over all replica counts."""
    counts = product(range(1, num_slots - len(loads) + 2), repeat=len(loads))
    return min(
        max(Fraction(load, count) for load, count in zip(loads, way, strict=True))
        for way in counts
        if sum(way) == num_slots
    )


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.integers(0, 4))
def test_replica_counts_minimise_the_largest_load_per_replica(loads: list[int], extra: int) -> None:
    num_slots = len(loads) + extra
    (counts,) = replicate(np.array([loads]), num_slots)
    assert counts.sum() == num_slots
    assert counts.min() >= 1
    assert max(Fraction(a, int(b)) for a, b in zip(loads, counts, strict=True)) == fewest(loads, num_slots)


@given(st.integers(1, 9), st.integers(0, 20))
def test_experts_without_load_share_the_slots_evenly(num_experts: int, extra: int) -> None:
    (counts,) = replicate(np.zeros((1, num_experts)), num_experts + extra)
    assert counts.max() - counts.min() <= 1


def test_replicate_does_not_depend_on_scale() -> None:
    loads = loads_of("log-normal", (4, 40), 1)
    for factor in (1e-9, 1e9):
        assert np.array_equal(replicate(loads, 60), replicate(loads * factor, 60))
