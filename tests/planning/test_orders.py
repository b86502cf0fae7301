"""Candidate orders: permutations, fair and within their noise."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from equipoise.planning import orders


def test_interleaved_alternates_between_both_ends() -> None:
    order = np.empty(5, np.int64)
    orders.interleaved_order(np.array([10, 11, 12, 13, 14]), order)
    assert order.tolist() == [10, 14, 11, 13, 12]
    order = np.empty(4, np.int64)
    orders.interleaved_order(np.array([10, 11, 12, 13]), order)
    assert order.tolist() == [10, 13, 11, 12]


@given(st.lists(st.integers(0, 1 << 30), min_size=1, max_size=40), st.integers(0, 3), st.integers(0, 99))
def test_every_order_is_a_permutation(weights: list[int], kind: int, seed: int) -> None:
    weight = np.array(weights)
    lpt, order = np.empty_like(weight), np.empty_like(weight)
    orders.lpt_order(weight, lpt)
    assert lpt.tolist() == sorted(range(weight.size), key=lambda i: (-weight[i], i))
    orders.candidate_order(kind, np.uint64(orders.candidate_state(seed, 0, 0)), weight, lpt, 0.2, order)
    assert sorted(order.tolist()) == list(range(weight.size))


def test_noise_stays_within_its_width_and_random_orders_are_fair() -> None:
    # With noise 0.2 an item can overtake another only if it weighs more than 0.8 / 1.2 of it.
    weight = np.array([1500, 1499, 1000, 999, 600]) << 18
    first, places = np.zeros(5), np.zeros(5)
    order = np.empty(5, np.int64)
    for candidate in range(2000):
        state = np.uint64(orders.candidate_state(1, 0, candidate))
        orders.noisy_order(state, weight, 0.2, order)
        first[order[0]] += 1
        assert set(order[:2].tolist()) <= {0, 1, 2}
        assert order[:4].tolist().count(4) == 0 or weight[4] * 1.2 >= weight[3] * 0.8
        orders.random_order(state, order)
        places[order[0]] += 1
    assert 600 < first[0] < 1400
    assert first[3] == first[4] == 0
    assert (np.abs(places - 400) < 120).all(), "a random order prefers some items"


@given(st.sets(st.integers(0, 1 << 40), max_size=300), st.booleans(), st.randoms(use_true_random=False))
def test_keys_are_sorted(keys: set[int], crowded: bool, random: random.Random) -> None:
    """Also where one far above the others leaves these a single bucket."""
    wanted = sorted(keys | {1 << 60} if crowded else keys)
    mixed = np.array(random.sample(wanted, len(wanted)), np.int64)
    orders.sort_keys(mixed)
    assert mixed.tolist() == wanted
