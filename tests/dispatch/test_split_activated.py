"""Experts of a batch at one replica each: against brute force, a plain loop and a flow, in every backend."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow
from test_dispatch import batches, check_slots, counts_of

import equipoise as eq
from equipoise.planning.activated import activate
from equipoise.planning.sweeps import forests


def ranks_of(placement: eq.Placement, layer: int, expert: int) -> list[int]:
    slots = placement.log2phy[layer, expert, : placement.logcnt[layer, expert]]
    return sorted(set((slots // placement.slots_per_rank).tolist()))


def busiest(slots: np.ndarray, placement: eq.Placement) -> np.ndarray:
    """The largest number of activated experts of a rank ``[B, L]``, of slots ``[B, L, E]`` of hit experts."""
    ranks = np.where(slots < 0, -1, slots // placement.slots_per_rank)
    counts = (ranks[..., None] == np.arange(placement.num_ranks)).sum(axis=2)
    return counts.max(axis=-1)


def plain(counts: np.ndarray, placement: eq.Placement, layer: int, sweeps: int) -> dict[int, int]:
    """The rank of each hit expert of one layer, as the page describes it."""
    order = [
        e for e in forests(placement.phy2log, placement.num_ranks, placement.num_experts)[0][layer] if e >= 0
    ]
    ranks = {e: ranks_of(placement, layer, e) for e in range(placement.num_experts) if counts[layer, e] > 0}
    load = [0] * placement.num_ranks
    rank_of = {e: choice[0] for e, choice in ranks.items() if len(choice) == 1}
    for r in rank_of.values():
        load[r] += 2**20
    waits = [0] * placement.num_ranks
    shared = [e for e in reversed(order) if e in ranks]
    for e in shared:
        for r in ranks[e]:
            waits[r] += 2**20 // len(ranks[e])
    for sweep in range(sweeps + 1):
        for e in shared:
            if sweep:
                load[rank_of[e]] -= 2**20
            else:
                for r in ranks[e]:
                    waits[r] -= 2**20 // len(ranks[e])
            rank_of[e] = min(ranks[e], key=lambda r: (load[r] + waits[r], r))
            load[rank_of[e]] += 2**20
    return rank_of


@given(batches(), st.integers(0, 3))
@settings(max_examples=200)
def test_it_is_the_plain_loop(batch: tuple[eq.Placement, np.ndarray], sweeps: int) -> None:
    placement, topk = batch
    counts = counts_of(topk, placement.num_experts)
    slots = activate(counts[None] > 0, placement.phy2log, placement.num_ranks, sweeps)[0]
    for layer, row in enumerate(slots):
        wanted = plain(counts, placement, layer, sweeps)
        assert {e: s // placement.slots_per_rank for e, s in enumerate(row) if s >= 0} == wanted
        for e, s in enumerate(row):
            if s >= 0:
                assert placement.phy2log[layer, s] == e
                on_rank = placement.log2phy[layer, e, : placement.logcnt[layer, e]]
                assert s == min(
                    t for t in on_rank if t // placement.slots_per_rank == s // placement.slots_per_rank
                )


@given(batches(), st.integers(0, 3))
@settings(max_examples=200)
def test_every_hit_expert_is_served_at_one_slot(batch: tuple[eq.Placement, np.ndarray], sweeps: int) -> None:
    placement, topk = batch
    counts = counts_of(topk, placement.num_experts)
    shares = eq.split_activated(counts, placement, sweeps)
    for row, part in zip(placement.phy2log, shares, strict=True):
        np.testing.assert_allclose(np.bincount(row, part, placement.num_experts), 1.0, rtol=0, atol=1e-12)
    slots = eq.assign(topk, shares, placement)
    check_slots(placement, topk, slots)
    for layer, row in enumerate(slots):
        for e in range(placement.num_experts):
            assert len(set(row[topk[layer] == e].tolist())) == (counts[layer, e] > 0)
    assert (counts_of(slots, placement.num_slots).sum(axis=1) == (topk >= 0).sum(axis=(1, 2))).all()


@given(batches())
@settings(max_examples=150)
def test_the_optimum_is_that_of_brute_force(batch: tuple[eq.Placement, np.ndarray]) -> None:
    placement, topk = batch
    counts = counts_of(topk, placement.num_experts)
    found = busiest(activate(counts[None] > 0, placement.phy2log, placement.num_ranks, -1), placement)[0]
    near = busiest(activate(counts[None] > 0, placement.phy2log, placement.num_ranks, 2), placement)[0]
    for layer in range(placement.num_layers):
        choices = [ranks_of(placement, layer, e) for e in np.flatnonzero(counts[layer])]
        ways = itertools.islice(itertools.product(*choices), 3000)
        best = min(np.bincount(way or [0], minlength=1).max() if way else 0 for way in ways)
        if np.prod([len(choice) for choice in choices]) <= 3000:
            assert found[layer] == best
        assert found[layer] <= min(near[layer], best)


def flow_optimum(hit: np.ndarray, placement: eq.Placement, layer: int) -> int:
    """The smallest largest number of experts of a rank for which a flow serves them all."""
    experts = np.flatnonzero(hit)
    end = 1 + len(experts) + placement.num_ranks
    for most in range(placement.num_experts + 1):
        graph = np.zeros((end + 1, end + 1), np.int32)
        for i, e in enumerate(experts):
            graph[0, 1 + i] = 1
            for r in ranks_of(placement, layer, e):
                graph[1 + i, 1 + len(experts) + r] = 1
        graph[1 + len(experts) : end, end] = most
        if maximum_flow(csr_matrix(graph), 0, end).flow_value == len(experts):
            return most
    raise AssertionError


@pytest.mark.parametrize("shape", [(8, 10), (16, 5), (16, 6), (32, 3)])
def test_the_optimum_is_that_of_a_flow(shape: tuple[int, int]) -> None:
    """Of layers as large as real ones; and no sweep does better."""
    rng = np.random.default_rng(shape[0])
    ranks, slots = shape
    spare = ranks * slots - 64
    phy2log = np.stack([rng.permutation(np.r_[np.arange(64), rng.integers(0, 64, spare)]) for _ in range(3)])
    placement = eq.Placement(phy2log, ranks, 64)
    hit = rng.random((4, 3, 64)) < rng.random((4, 1, 1))
    best = busiest(activate(hit, phy2log, ranks, -1), placement)
    near = [busiest(activate(hit, phy2log, ranks, sweeps), placement) for sweeps in (0, 2)]
    for b, layer in itertools.product(range(4), range(3)):
        assert best[b, layer] == flow_optimum(hit[b, layer], placement, layer)
    assert (near[0] >= best).all()
    assert (near[1] >= best).all()


def test_layers_batches_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    phy2log = np.stack([rng.permutation(np.r_[np.arange(12), rng.integers(0, 12, 8)]) for _ in range(5)])
    hit, order = rng.random((7, 5, 12)) < 0.6, rng.permutation(5)
    for sweeps in (0, 2, -1):
        answers = []
        for threads in ("1", "3"):
            monkeypatch.setenv("EQUIPOISE_NUM_THREADS", threads)
            slots = activate(hit, phy2log, 4, sweeps)
            np.testing.assert_array_equal(activate(hit[:, order], phy2log[order], 4, sweeps), slots[:, order])
            np.testing.assert_array_equal(activate(hit[3:4], phy2log, 4, sweeps), slots[3:4])
            answers.append(slots)
        np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize(
    ("counts", "sweeps"),
    [([[1, 2]], 2), ([[1, 2, -1]], 2), ([[1, 2, np.nan]], 2), ([1, 2, 3], 2), ([[1, 2, 3]], -1)],
)
def test_bad_batches_are_refused(counts: object, sweeps: int) -> None:
    with pytest.raises(eq.ArgumentError):
        eq.split_activated(counts, eq.Placement([[0, 1, 0, 2]], 2, 3), sweeps)
