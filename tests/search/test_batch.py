"""Placements for batches: legal, deterministic, better where they were searched, refused where they do not fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import equipoise as eq
from equipoise.planning.shares import water_fill
from equipoise.planning.windows import to_vectors
from equipoise.search import batch
from equipoise.search.flows import new_flows, try_step

BATCH = eq.Robust(split="batch")


def loads_of(seed: int, windows: int, layers: int, experts: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    base = rng.lognormal(0.0, 1.0, (1, layers, experts))
    return np.rint(1000 * base * rng.lognormal(0.0, 0.5, (windows, layers, experts)))


def check_flows(flows: object, size: int) -> None:
    """Everything that follows from the placement follows from it, and no token is lost."""
    vectors, phy2log = flows.vectors, flows.phy2log  # type: ignore[attr-defined]
    for e in range(vectors.shape[1]):
        slots = np.flatnonzero(phy2log == e)
        begin = e * flows.rank_loads.shape[1]  # type: ignore[attr-defined]
        listed = flows.slots_of[begin : begin + flows.logcnt[e]]  # type: ignore[attr-defined]
        assert sorted(listed) == slots.tolist()
        np.testing.assert_allclose(flows.taken[:, slots].sum(axis=1), vectors[:, e], atol=1e-9)  # type: ignore[attr-defined]
    taken = flows.taken  # type: ignore[attr-defined]
    assert (taken >= -1e-12).all()
    sums = taken.reshape(len(taken), -1, size).sum(axis=2)
    np.testing.assert_allclose(flows.rank_loads, sums, atol=1e-9)  # type: ignore[attr-defined]
    assert not flows.queued.any()  # type: ignore[attr-defined]


@given(st.integers(0, 2**32), st.sampled_from([(2, 3, 4), (4, 3, 9), (5, 2, 7)]))
@settings(max_examples=60, deadline=None)
def test_steps_taken_and_undone_leave_a_split(seed: int, shape: tuple[int, int, int]) -> None:
    ranks, size, experts = shape
    rng = np.random.default_rng(seed)
    row = eq.contiguous_placement(1, experts, ranks, ranks * size).phy2log[0].copy()
    vectors = to_vectors(loads_of(seed, 3, 1, experts), ranks)[0]
    flows = new_flows(vectors, row, ranks)
    check_flows(flows, size)
    for _ in range(40):
        t, u = (int(x) for x in rng.integers(0, row.size, 2))
        b = int(rng.integers(0, experts))
        a = flows.phy2log[t]
        before = flows.phy2log.copy(), flows.taken.copy(), flows.costs.sum()
        if rng.random() < 0.5:
            if t // size == u // size or a == flows.phy2log[u]:
                continue
            done = try_step(flows, t, u, -1, 24, 0.0)
        else:
            if flows.logcnt[a] < 2 or a == b or flows.logcnt[b] >= ranks:
                continue
            done = try_step(flows, t, -1, b, 24, 0.0)
        check_flows(flows, size)
        if done:
            assert flows.costs.sum() <= before[2] * (1 + 1e-12)
        else:
            np.testing.assert_array_equal(flows.phy2log, before[0])
            np.testing.assert_array_equal(flows.taken, before[1])


def test_the_search_lowers_what_it_looks_at() -> None:
    """The objective of water-filled loads in the pushed windows is never above that of the start."""
    loads, topology = loads_of(1, 4, 6, 32), eq.Topology(8, 5)
    start = eq.Robust().place(eq.Problem.of(loads, topology))
    found = batch._searched(loads, start, topology)
    assert (found != start).any()
    windows = batch.pushed(to_vectors(loads, 8), 8).transpose(1, 0, 2)

    def value(phy2log: np.ndarray) -> np.ndarray:
        placement = eq.Placement(phy2log, 8, 32)
        filled = [eq.rank_loads(w, placement, water_fill(w, phy2log, 8)) for w in windows]
        return (np.array(filled) ** 8).sum(axis=(0, 2))

    assert (value(found) <= value(start) * (1 + 1e-3)).all()
    assert value(found).sum() < value(start).sum()


@given(st.integers(0, 2**32), st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_plans_are_legal_without_twins_and_follow_permuted_layers(seed: int, windows: int) -> None:
    loads = loads_of(seed, windows, 3, 9)
    found = BATCH.place(eq.Problem.of(loads, eq.Topology(4, 3)))
    assert not eq.Placement(found, 4, 9).twins.any()
    order = np.random.default_rng(seed).permutation(3)
    np.testing.assert_array_equal(
        BATCH.place(eq.Problem.of(loads[:, order], eq.Topology(4, 3))), found[order]
    )


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = eq.Problem.of(loads_of(3, 3, 5, 16), eq.Topology(4, 5))
    monkeypatch.setenv("EQUIPOISE_NUM_THREADS", "1")
    one = BATCH.place(problem)
    monkeypatch.setenv("EQUIPOISE_NUM_THREADS", "3")
    np.testing.assert_array_equal(BATCH.place(problem), one)


@pytest.mark.parametrize(
    ("loads", "topology"),
    [
        (np.zeros((3, 2, 8)), eq.Topology(4, 3)),
        (loads_of(0, 3, 2, 8), eq.Topology(1, 9)),
        (loads_of(0, 3, 2, 1), eq.Topology(2, 1)),
        (loads_of(0, 3, 2, 8), eq.Topology(8, 1)),
        (loads_of(0, 3, 2, 4), eq.Topology(4, 6)),
    ],
)
def test_corners(loads: np.ndarray, topology: eq.Topology) -> None:
    assert eq.plan(loads, topology, BATCH).placement.num_slots == topology.num_slots


def test_one_window_keeps_the_plan_for_an_even_split() -> None:
    problem = eq.Problem.of(loads_of(2, 1, 3, 16), eq.Topology(4, 5))
    np.testing.assert_array_equal(BATCH.place(problem), eq.Robust().place(problem))


def test_what_ranks_hold_only_names_ranks_and_slots() -> None:
    """The same experts stand together as in a plan from nothing, and less is fetched than from that."""
    loads, topology = loads_of(5, 3, 4, 24), eq.Topology(6, 5)
    held = eq.contiguous_placement(4, 24, 6, 30)
    fresh = eq.Placement(BATCH.place(eq.Problem.of(loads, topology)), 6, 24)
    named = eq.Placement(BATCH.place(eq.Problem.of(loads, topology, current=held)), 6, 24)
    for one, other in zip(fresh.phy2log, named.phy2log, strict=True):
        sets = [sorted(tuple(sorted(rank)) for rank in row.reshape(6, 5)) for row in (one, other)]
        assert sets[0] == sets[1]
    assert named.moves_from(held).sum() < fresh.moves_from(held).sum()


def test_groups_are_let_go_where_that_is_said() -> None:
    grouped = eq.Topology(4, 3, 2, 4)
    made = eq.plan(loads_of(0, 2, 1, 8), grouped, eq.Robust(split="batch", groups="global"))
    assert made.placement.split == "batch"


def test_groups_and_budgets_are_refused() -> None:
    with pytest.raises(eq.ArgumentError, match="split='batch'"):
        eq.plan(loads_of(0, 2, 1, 8), eq.Topology(4, 3, 2, 4), BATCH)
    now = eq.contiguous_placement(1, 8, 4, 12)
    with pytest.raises(eq.ArgumentError, match="does not limit moves"):
        eq.plan(loads_of(0, 2, 1, 8), eq.Topology(4, 3), BATCH, current=now, max_moves=3)
    with pytest.raises(eq.ArgumentError, match="leave max_moves out"):
        BATCH.place(eq.Problem.of(loads_of(0, 2, 1, 8), eq.Topology(4, 3), current=now, max_moves=3))
    with pytest.raises(eq.ArgumentError, match="rebalance_experts"):
        eq.rebalance_experts(np.ones((1, 8)), 12, 1, 1, 4, policy=BATCH)
    with pytest.raises(eq.ArgumentError, match="even, shares or batch"):
        eq.Robust(split="other")  # type: ignore[arg-type]
