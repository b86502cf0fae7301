"""Shares of a batch against linear programming, and tokens against their shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

import equipoise as eq
from equipoise.metrics import slot_shares
from equipoise.planning.shares import MAX_SWEEPS
from real_loads import deepseek, place

TRACES = Path(__file__).parents[3] / "shared" / "traces"


def best_largest(loads: np.ndarray, row: np.ndarray, num_ranks: int) -> float:
    """The smallest largest rank load over all splits of one layer, mean rank load 1, by HiGHS."""
    slots = np.arange(row.size)
    rows = np.r_[slots // (row.size // num_ranks), np.arange(num_ranks)]
    columns = np.r_[slots, np.full(num_ranks, row.size)]
    upper = coo_matrix((np.r_[np.ones(row.size), -np.ones(num_ranks)], (rows, columns)))
    equal = coo_matrix((np.ones(row.size), (row, slots)), shape=(loads.size, row.size + 1))
    goal = np.r_[np.zeros(row.size), 1.0]
    wanted = loads * num_ranks / loads.sum()
    return float(linprog(goal, upper, np.zeros(num_ranks), equal, wanted, method="highs").fun)


@pytest.mark.skipif(not TRACES.is_dir(), reason="needs the recorded loads")
@pytest.mark.parametrize("name", ["prefill_in2048", "decode_in2000out100"])
def test_run_to_the_end_it_is_the_optimum_on_every_layer(name: str) -> None:
    loads, topology = deepseek(TRACES, name)[0], eq.Topology(32, 9)
    made = eq.Placement(place(eq.Robust(), deepseek(TRACES, "prefill_in512"), topology), 32, 256)
    found = eq.imbalance(eq.rank_loads(loads, made, eq.split_batch(loads, made, MAX_SWEEPS)))
    best = [best_largest(*pair, 32) for pair in zip(loads, made.phy2log, strict=True)]
    np.testing.assert_allclose(found, best, rtol=0, atol=1e-6)


@st.composite
def batches(draw: st.DrawFn) -> tuple[eq.Placement, np.ndarray]:
    """A placement of any kind, twins and single ranks included, and routed tokens ``[L, T, K]``, some of them -1."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    experts, ranks, layers = draw(st.integers(1, 9)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    slots = ranks * (-(-experts // ranks) + draw(st.integers(0, 3)))
    phy2log = np.stack(
        [rng.permutation(np.r_[np.arange(experts), rng.integers(0, experts, slots - experts)])] * layers
    )
    used = draw(st.integers(1, experts))  # the others have no tokens
    topk = rng.integers(-1, used, (layers, draw(st.integers(0, 40)), draw(st.integers(1, 4))))
    return eq.Placement(rng.permuted(phy2log, axis=1), ranks, experts), topk


def counts_of(topk: np.ndarray, size: int) -> np.ndarray:
    return np.stack([np.bincount(row[row >= 0].ravel(), minlength=size) for row in topk])


@given(batches(), st.sampled_from([0, 1, 3, 64]))
@settings(max_examples=300, deadline=None)
def test_shares_of_a_batch(batch: tuple[eq.Placement, np.ndarray], sweeps: int) -> None:
    placement, topk = batch
    counts = counts_of(topk, placement.num_experts)
    shares = eq.split_batch(counts, placement, sweeps)
    assert (shares >= 0).all()
    for row, part in zip(placement.phy2log, shares, strict=True):
        np.testing.assert_allclose(np.bincount(row, part, placement.num_experts), 1.0, rtol=0, atol=1e-12)
    largest = [eq.rank_loads(counts, placement, part).max(axis=1) for part in (None, shares)]
    assert (largest[1] <= largest[0] * (1 + 1e-12)).all()
    if sweeps == 0:
        np.testing.assert_allclose(
            eq.rank_loads(counts, placement, shares), eq.rank_loads(counts, placement), atol=1e-9
        )


@given(batches(), st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_tokens_follow_their_shares(batch: tuple[eq.Placement, np.ndarray], random: object) -> None:
    placement, topk = batch
    counts = counts_of(topk, placement.num_experts)
    fixed = np.random.default_rng(random.randrange(2**32)).random(placement.phy2log.shape)  # type: ignore[attr-defined]
    layers = np.arange(len(topk))[:, None]
    sums = np.zeros(placement.logcnt.shape)
    np.add.at(sums, (layers, placement.phy2log), fixed)
    fixed /= sums[layers, placement.phy2log]
    for shares in (None, fixed, eq.split_batch(counts, placement)):
        slots = eq.assign(topk, shares, placement)
        check_slots(placement, topk, slots)
        wanted = counts[layers, placement.phy2log] * slot_shares(placement, shares)
        taken = counts_of(slots, placement.num_slots)
        assert (np.abs(taken - wanted) <= 1 + 1e-9).all()
        assert not taken[slot_shares(placement, shares) == 0].any()
        for experts, row in zip(topk, slots, strict=True):  # blocks: an expert's slots only rise
            for e in range(placement.num_experts):
                assert (np.diff(row[experts == e]) >= 0).all()
    check_slots(placement, topk, eq.assign_by_number(topk, placement))


def check_slots(placement: eq.Placement, topk: np.ndarray, slots: np.ndarray) -> None:
    """No token without a slot, and no slot but of its expert."""
    assert slots.shape == topk.shape
    for row, experts, found in zip(placement.phy2log, topk, slots, strict=True):
        assert (found[experts < 0] == -1).all()
        assert (row[found[experts >= 0]] == experts[experts >= 0]).all()


def test_layers_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    phy2log = np.stack([rng.permutation(np.r_[np.arange(12), rng.integers(0, 12, 8)]) for _ in range(5)])
    placement = eq.Placement(phy2log, 4, 12)
    topk = rng.integers(-1, 12, (5, 50, 3))
    counts = counts_of(topk, 12)
    order = rng.permutation(5)
    mixed = eq.Placement(phy2log[order], 4, 12)
    answers = []
    for threads in ("1", "3"):
        monkeypatch.setenv("EQUIPOISE_NUM_THREADS", threads)
        shares = eq.split_batch(counts, placement)
        slots = eq.assign(topk, shares, placement)
        np.testing.assert_array_equal(eq.split_batch(counts[order], mixed), shares[order])
        np.testing.assert_array_equal(eq.assign(topk[order], shares[order], mixed), slots[order])
        answers.append((shares, slots))
    for one, other in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, other)


def test_replicas_are_chosen_by_the_hash_of_the_token() -> None:
    """The rule of vLLM 0.32 (`eplb_map_to_physical_and_record`), written as plain Python."""
    placement = eq.Placement([[0, 1, 0, 0]], 2, 2)
    topk = np.random.default_rng(0).integers(-1, 2, (300, 3))
    slots_of = {0: [0, 2, 3], 1: [1]}
    expected = [
        [-1 if e < 0 else slots_of[e][(t * 2654435769 % 2**32) % len(slots_of[e])] for e in row]
        for t, row in enumerate(topk.tolist())
    ]
    assert eq.assign_by_number(topk, placement).tolist() == expected


@pytest.mark.parametrize(
    ("topk", "shares", "message"),
    [
        ([[3]], None, "experts 0 to 2"),
        ([[-2]], None, "experts 0 to 2"),
        ([[0.5]], None, "integers"),
        ([0, 1], None, "integers"),
        ([[[0]], [[1]]], None, "of 1 layers"),
        ([[0]], [[1, 1, np.nan, 1]], "not negative"),
        ([[0]], [[1, 1, -1, 1]], "not negative"),
        ([[0]], [[1, 1]], "layers, slots"),
    ],
)
def test_what_does_not_fit_is_refused(topk: object, shares: object, message: str) -> None:
    placement = eq.Placement([[0, 1, 0, 2]], 2, 3)
    with pytest.raises(eq.ArgumentError, match=message):
        eq.assign(topk, shares, placement)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("counts", "sweeps"),
    [([[1, 2]], 3), ([[1, 2, -1]], 3), ([[1, 2, np.nan]], 3), ([1, 2, 3], 3), ([[1, 2, 3]], -1)],
)
def test_bad_batches_are_refused(counts: object, sweeps: int) -> None:
    with pytest.raises(eq.ArgumentError):
        eq.split_batch(counts, eq.Placement([[0, 1, 0, 2]], 2, 3), sweeps)  # type: ignore[arg-type]
