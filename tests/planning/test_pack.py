"""Packing against plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.planning import pack


def plain_pack(weights: list[int], order: list[int], num_ranks: int) -> tuple[list[int], int]:
    room = [len(weights) // num_ranks] * num_ranks
    loads = [0] * num_ranks
    rank_of = [-1] * len(weights)
    for item in order:
        rank = min((r for r in range(num_ranks) if room[r]), key=lambda r: (loads[r], r))
        rank_of[item] = rank
        loads[rank] += weights[item]
        room[rank] -= 1
    return rank_of, max(loads)


def plain_chunks(weights: list[int], order: list[int], num_ranks: int) -> tuple[list[int], int]:
    loads = [0] * num_ranks
    rank_of = [-1] * len(weights)
    for start in range(0, len(order), num_ranks):
        ranks = sorted(range(num_ranks), key=lambda r: (loads[r], r))
        for rank, item in zip(ranks, order[start : start + num_ranks], strict=True):
            rank_of[item] = rank
            loads[rank] += weights[item]
    return rank_of, max(loads)


@st.composite
def items(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Weights of small numbers (ties!) or large ones, and a number of ranks that divides them."""
    ranks = draw(st.integers(1, 5))
    count = ranks * draw(st.integers(1, 5))
    largest = draw(st.sampled_from([2, 30, 1 << 30]))
    return np.array(draw(st.lists(st.integers(0, largest), min_size=count, max_size=count))), ranks


@given(items(), st.randoms(use_true_random=False))
def test_packing_matches_plain_python(packing: tuple[np.ndarray, int], rng: object) -> None:
    weight, num_ranks = packing
    order = list(range(weight.size))
    rng.shuffle(order)  # type: ignore[attr-defined]
    rank_of, keys, room = np.empty_like(weight), np.empty(num_ranks, np.int64), np.empty(num_ranks, np.int64)
    never = np.int64(1) << 50
    largest = pack.pack_greedy(np.array(order), weight, num_ranks, never, rank_of, room)
    assert (rank_of.tolist(), largest) == plain_pack(weight.tolist(), order, num_ranks)
    # Giving up at the result is giving up; above it is not.
    assert pack.pack_greedy(np.array(order), weight, num_ranks, largest + 1, rank_of, room) == largest
    if largest:
        assert pack.pack_greedy(np.array(order), weight, num_ranks, largest, rank_of, room) == largest
    assert (np.bincount(rank_of, minlength=num_ranks) == weight.size // num_ranks).all()
    largest = pack.pack_chunked(np.array(order), weight, num_ranks, rank_of, keys, room)
    assert (rank_of.tolist(), largest) == plain_chunks(weight.tolist(), order, num_ranks)


@pytest.mark.parametrize("num_ranks", [2, 3, 1 << pack.RANK_BITS])
def test_a_full_rank_is_never_the_least_loaded_one(num_ranks: int) -> None:
    """One item as heavy as all may be together: its rank waits until the others are full."""
    most = (1 << 51) - 1
    weight = np.zeros(2 * num_ranks, np.int64)
    weight[0], weight[-1] = most - 1, 1
    order = np.arange(weight.size)
    rank_of, room = np.empty_like(weight), np.empty(num_ranks, np.int64)
    largest = pack.pack_greedy(order, weight, num_ranks, np.int64(most + 1), rank_of, room)
    assert (np.bincount(rank_of, minlength=num_ranks) == 2).all()
    assert rank_of[-1] == rank_of[0]  # all other ranks were full
    assert largest == most
