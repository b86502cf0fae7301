"""Windows of few tokens: `robust` does not fit their chance, and heeds what they tell."""

from __future__ import annotations

from itertools import product

import numpy as np

from bench_few_tokens import ALLOWED, above, samples, three_ways
from equipoise import Greedy, Robust, Topology
from real_loads import place, score

SLOTS = {2: Topology(40, 2), 3: Topology(32, 3)}


def test_windows_of_few_tokens_are_no_worse_than_their_sum() -> None:
    """Five hundred random layers; heeding each window costs 0.01."""
    found = []
    for slots, windows, skew in product(SLOTS, (2, 3, 4, 8), (0.4, 1.3)):
        found.append(above(three_ways(*samples(64, 8, windows, skew, 32), SLOTS[slots])))
    gaps, errors = np.array(found).T
    assert gaps.mean() <= ALLOWED
    assert (gaps - 2.0 * errors <= ALLOWED).all()


def test_traffic_that_turns_from_window_to_window_is_planned_for_window_by_window() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.lognormal(0.0, 0.9, (2, 40, 64))
    for slots, topology in SLOTS.items():
        rates = np.stack([first, second] * 4) * 20.0
        seen, later = rng.poisson(rates).astype(float), rng.poisson(rates).astype(float)
        ways = {name: found.mean() for name, found in three_ways(seen, later, topology).items()}
        assert ways["windows"] < min(ways["sum"], ways["greedy"]) - 0.05, slots


def test_the_sum_stands_for_windows_of_unequal_size() -> None:
    """A window of few tokens says little, and does not count as much as one of many."""
    rng = np.random.default_rng(1)
    profile = rng.lognormal(0.0, 0.9, (60, 64))
    sizes = np.array([1.0, 1.0, 1.0, 60.0])[:, None, None]
    seen, later = rng.poisson(profile * sizes).astype(float), rng.poisson(profile * np.full((8, 1, 1), 60.0))
    topology = SLOTS[2]
    ours = score(later, place(Robust(), seen, topology), topology.num_ranks)
    theirs = score(later, place(Greedy(), seen.sum(axis=0), topology), topology.num_ranks)
    assert ours.mean() <= theirs.mean() + ALLOWED
