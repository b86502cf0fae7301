"""Token shares against linear programming, and packing for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

from equipoise import ArgumentError, Greedy, LoadTrace, Placement, Robust, Topology, rank_loads, split_shares
from equipoise.planning import objective
from equipoise.planning.scale import to_integers
from equipoise.planning.shares import split_windows, water_fill
from equipoise.planning.windows import to_vectors
from equipoise.planning.wrap import wrap_layer
from problems import KINDS, loads_of
from real_loads import deepseek, place

WITHIN = 1e-6


def best_split(loads: np.ndarray, row: np.ndarray, num_ranks: int) -> float:
    """The smallest largest rank load over all splits of one layer, by HiGHS: loads ``[E]``, slots ``[R]``."""
    num_slots = len(row)
    scale = loads.sum() / num_ranks or 1.0  # mean rank load 1: HiGHS has absolute tolerances
    slots = np.arange(num_slots)
    ranks = slots // (num_slots // num_ranks)
    # Tokens of each slot, then the largest rank load.
    upper = coo_matrix(
        (
            np.r_[np.ones(num_slots), -np.ones(num_ranks)],
            (np.r_[ranks, np.arange(num_ranks)], np.r_[slots, np.full(num_ranks, num_slots)]),
        )
    )
    equal = coo_matrix((np.ones(num_slots), (row, slots)), shape=(len(loads), num_slots + 1))
    cost = np.r_[np.zeros(num_slots), 1.0]
    found = linprog(cost, upper, np.zeros(num_ranks), equal, loads / scale, method="highs")
    assert found.success
    return float(found.fun) * scale


def largest(loads: np.ndarray, phy2log: np.ndarray, num_ranks: int, shares: np.ndarray) -> np.ndarray:
    """The largest rank load of each layer: ``[L]``."""
    return rank_loads(loads, Placement(phy2log, num_ranks, loads.shape[1]), shares).max(axis=1)


def check_shares(shares: np.ndarray, phy2log: np.ndarray, num_experts: int) -> None:
    assert shares.shape == phy2log.shape
    assert (shares >= 0).all()
    for share, row in zip(shares, phy2log, strict=True):
        assert np.allclose(np.bincount(row, share, num_experts), 1.0, rtol=0, atol=1e-9)


@st.composite
def placed(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Loads ``[W, L, E]`` on random placements ``[L, R]``, twins included."""
    ranks, slots = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    experts = draw(st.integers(1, ranks * slots))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 3)), experts)
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    loads = loads_of(draw(st.sampled_from(KINDS)), shape, draw(st.integers(0, 1 << 20)))
    spare = ranks * slots - experts
    rows = [rng.permutation(np.r_[:experts, rng.integers(0, experts, spare)]) for _ in range(shape[1])]
    return loads, np.array(rows), ranks


@settings(max_examples=300)
@given(placed())
def test_water_filling_is_optimal(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    loads, phy2log, ranks = case
    before = loads[0].copy(), phy2log.copy()
    shares = water_fill(loads[0], phy2log, ranks)
    check_shares(shares, phy2log, loads.shape[2])
    found = largest(loads[0], phy2log, ranks, shares)
    for layer, row in enumerate(phy2log):
        assert found[layer] == pytest.approx(best_split(loads[0, layer], row, ranks), rel=WITHIN)
    assert np.array_equal(loads[0], before[0])
    assert np.array_equal(phy2log, before[1])


@settings(max_examples=200)
@given(placed())
def test_shares_of_one_window_and_of_several(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    loads, phy2log, ranks = case
    placement = Placement(phy2log, ranks, loads.shape[2])
    one = split_shares(loads[:1], placement)
    check_shares(one, phy2log, loads.shape[2])
    # Loads go through integers of 2^-30 of their sum or so.
    even = loads[0].sum(axis=1) / ranks
    for layer, row in enumerate(phy2log):
        best = best_split(loads[0, layer], row, ranks)
        assert largest(loads[0], phy2log, ranks, one)[layer] <= best * (1 + WITHIN) + even[layer] * WITHIN
    several = split_shares(LoadTrace(loads), placement)
    check_shares(several, phy2log, loads.shape[2])
    vectors = to_vectors(loads, ranks)
    windows = vectors.transpose(1, 0, 2)

    def powers(shares: np.ndarray) -> np.ndarray:
        return objective.cost.py_func(rank_loads(windows, placement, shares)).sum(axis=(0, 2))

    of_the_mean = water_fill(vectors.mean(axis=1), phy2log, ranks)
    assert (powers(several) <= powers(of_the_mean) * (1 + 1e-9)).all()
    assert np.array_equal(several, split_windows(vectors, phy2log, ranks))


def test_several_windows_are_split_for_all_of_them() -> None:
    """Expert 0 is on both ranks; the other rank is busy now with 1, then with 2: half and half is best."""
    placement = Placement([[0, 1, 0, 2]], 2, 3)
    windows = np.array([[[40.0, 60, 20]], [[40.0, 20, 60]]])
    assert split_shares(windows, placement)[0] == pytest.approx([0.5, 1, 0.5, 1], abs=1e-5)
    # One window alone: rank 0 has its 60 and gets none.
    assert split_shares(windows[:1], placement)[0] == pytest.approx([0, 1, 1, 1], abs=1e-5)


def test_a_long_chain_of_ranks() -> None:
    """Expert e is on ranks e and e + 1: tokens have to pass through all of them from one end to the other."""
    ranks = 24
    row = np.r_[0, np.repeat(np.arange(ranks - 1), 2), ranks - 2]
    loads = np.r_[1000.0, np.full(ranks - 2, 10.0)]
    shares = water_fill(loads[None], row[None], ranks)
    check_shares(shares, row[None], ranks - 1)
    best = best_split(loads, row, ranks)
    assert largest(loads[None], row[None], ranks, shares)[0] == pytest.approx(best, rel=WITHIN)


@pytest.mark.parametrize("name", ["prefill_in1024", "decode_in2000out100"])
@pytest.mark.parametrize(("ranks", "slots"), [(16, 18), (32, 9), (64, 5)])
def test_water_filling_is_optimal_on_real_loads(traces: Path, name: str, ranks: int, slots: int) -> None:
    loads = deepseek(traces, name)[:, ::6]
    phy2log = place(Greedy(), loads, Topology(ranks, slots))
    shares = water_fill(loads[0], phy2log, ranks)
    check_shares(shares, phy2log, 256)
    found = largest(loads[0], phy2log, ranks, shares)
    best = [best_split(layer, row, ranks) for layer, row in zip(loads[0], phy2log, strict=True)]
    assert found == pytest.approx(best, rel=WITHIN)
    assert (found <= largest(loads[0], phy2log, ranks, None) * (1 + WITHIN)).all()


def test_shares_need_loads_that_fit() -> None:
    placement = Placement([[0, 1, 0, 2]], 2, 3)
    with pytest.raises(ArgumentError, match=r"\[1, 2\], the placement \[1, 3\]"):
        split_shares([[1.0, 2.0]], placement)
    with pytest.raises(ArgumentError, match="trace"):
        split_shares([[1.0, 2.0, np.nan]], placement)


# Packing for a free split

EIGHT = np.array([600.0, 560, 120, 120, 20, 10, 10, 10])


@settings(max_examples=300)
@given(
    st.integers(1, 8),
    st.integers(1, 5),
    st.data(),
    st.sampled_from([*KINDS, "zipf"]),
    st.integers(0, 1 << 20),
)
def test_cut_rows_are_legal(ranks: int, slots: int, data: st.DataObject, kind: str, seed: int) -> None:
    experts = data.draw(st.integers(1, ranks * slots))
    loads = (
        1000.0 / np.arange(1, experts + 1)[None] ** (seed % 3)
        if kind == "zipf"
        else loads_of(kind, (1, experts), seed)
    )
    integers = to_integers(loads)[0]
    before = integers.copy()
    row = wrap_layer(integers, ranks, slots)
    assert np.array_equal(integers, before)
    if row is not None:
        placement = Placement(row[None], ranks, experts)  # checks that every expert has a slot
        assert placement.slots_per_rank == slots


def test_a_cut_row_lets_every_rank_carry_the_mean() -> None:
    integers = to_integers(EIGHT[None])[0]
    row = wrap_layer(integers, 8, 2)
    assert row is not None
    assert best_split(EIGHT, row, 8) == pytest.approx(EIGHT.sum() / 8)


def test_no_room_for_all_cuts() -> None:
    """One slot a rank and as many experts: nothing can be cut, and their loads differ."""
    row = wrap_layer(to_integers(np.array([[5.0, 3.0, 1.0]]))[0], 3, 1)
    assert row is None or sorted(row.tolist()) == [0, 1, 2]


def test_robust_for_shares() -> None:
    """The best even split leaves 590 / 3 = 196.67 tokens on the busiest of the 8 ranks; shares reach the mean."""
    topology = Topology(8, 2)
    loads = EIGHT[None, None]
    phy2log = place(Robust(split="shares"), loads, topology)
    shares = split_shares(loads, Placement(phy2log, 8, 8))
    check_shares(shares, phy2log, 8)
    assert largest(loads[0], phy2log, 8, shares)[0] == pytest.approx(181.25, rel=WITHIN)


@settings(max_examples=60)
@given(st.integers(2, 6), st.integers(1, 4), st.data(), st.sampled_from(KINDS), st.integers(0, 1 << 20))
def test_robust_for_shares_is_no_worse_than_for_an_even_split(
    ranks: int, slots: int, data: st.DataObject, kind: str, seed: int
) -> None:
    loads = loads_of(kind, (1, 2, data.draw(st.integers(1, ranks * slots))), seed)
    topology = Topology(ranks, slots)
    found = []
    for policy in (Robust(split="shares"), Robust()):
        phy2log = place(policy, loads, topology)
        shares = split_shares(loads, Placement(phy2log, ranks, loads.shape[2]))
        found.append(largest(loads[0], phy2log, ranks, shares))
    mean = loads[0].sum(axis=1) / ranks
    assert (found[0] <= found[1] + mean * 1e-5).all()
