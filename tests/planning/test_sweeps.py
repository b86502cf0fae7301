"""The forest of a batch's sweeps, and what a few of them reach."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.planning.shares import ranks_of_slots, slots_by_expert, water_fill
from equipoise.planning.sweeps import grow_forest, sweep_batch


def forest_of(row: np.ndarray, experts: int, ranks: int) -> tuple[object, np.ndarray]:
    rank_of = ranks_of_slots(row.size, ranks)
    first, item_slots, _ = slots_by_expert(row, experts)
    return grow_forest((row, first, item_slots, rank_of), ranks), rank_of


def joined(row: np.ndarray, rank_of: np.ndarray, shared: list[int]) -> int:
    """How many sets of ranks share experts among themselves alone, lone ranks left out."""
    sets: list[set[int]] = []
    for e in shared:
        ranks = set(rank_of[row == e].tolist())
        touched = [one for one in sets if one & ranks]
        sets = [one for one in sets if not one & ranks] + [ranks.union(*touched)]
    return len(sets)


def rank_loads_of(loads: np.ndarray, row: np.ndarray, shares: np.ndarray, ranks: int) -> np.ndarray:
    return np.asarray((loads[row] * shares).reshape(ranks, -1).sum(axis=1))


@st.composite
def rows(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """Experts of slots with twins, single ranks and ranks that share nothing; experts, ranks."""
    ranks, size = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    experts = draw(st.integers(1, ranks * size))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    row = np.r_[:experts, rng.integers(0, experts, ranks * size - experts)]
    return rng.permutation(row), experts, ranks


@settings(max_examples=300)
@given(rows())
def test_every_shared_expert_hangs_from_a_rank_that_was_there(case: tuple[np.ndarray, int, int]) -> None:
    row, experts, ranks = case
    forest, rank_of = forest_of(row, experts, ranks)
    shared = [e for e in range(experts) if len(set(rank_of[row == e])) > 1]
    assert sorted(forest.experts) == shared  # type: ignore[attr-defined]
    reached: set[int] = set()
    children: set[int] = set()
    for m, e in enumerate(forest.experts):  # type: ignore[attr-defined]
        slots = forest.slots[forest.first[m] : forest.first[m + 1]]  # type: ignore[attr-defined]
        assert (row[slots] == e).all()
        assert sorted(rank_of[slots]) == sorted(set(rank_of[row == e]))
        # A root's tree is whole before another root's begins, and nothing of a tree was reached before its root.
        if int(rank_of[slots[0]]) not in reached:
            assert not reached & {int(r) for r in rank_of[slots]}
        children.update({int(r) for r in rank_of[slots[1:]]} - reached)
        reached.update(int(r) for r in rank_of[slots])
    assert reached == {int(r) for e in shared for r in rank_of[row == e]}
    assert len(reached) - len(children) == joined(row, rank_of, shared)


def a_tree(ranks: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks joined to a tree by experts of two replicas, each with more tokens than all that has to pass.

    Loads and experts of slots; of ``ranks`` experts each has one replica, those that join ranks come after them.
    """
    rng = np.random.default_rng(seed)
    ends = [(int(rng.integers(0, r)), r) for r in range(1, ranks)]
    loads = np.r_[rng.integers(0, 100, ranks), np.full(ranks - 1, 1000 * ranks)].astype(float)
    held: list[list[int]] = [[r] for r in range(ranks)]
    for e, pair in enumerate(ends):
        for r in pair:
            held[r].append(ranks + e)
    size = max(len(some) for some in held)
    for r, some in enumerate(held):  # what is left over goes to experts without load
        while len(some) < size:
            some.append(loads.size)
            loads = np.r_[loads, 0.0]
        held[r] = some
    return loads, np.concatenate(held)


@settings(max_examples=100)
@given(st.integers(2, 30), st.integers(0, 1 << 20))
def test_one_sweep_levels_a_tree_where_experts_have_enough_to_hand_on(ranks: int, seed: int) -> None:
    loads, row = a_tree(ranks, seed)
    found = rank_loads_of(loads, row, sweep_batch(loads[None], row[None], ranks, 1)[0], ranks)
    np.testing.assert_allclose(found, found.mean(), rtol=1e-9)


@settings(max_examples=100)
@given(st.integers(2, 30), st.integers(0, 1 << 20))
def test_two_sweeps_level_both_parts_of_a_tree_where_one_expert_has_too_little(ranks: int, seed: int) -> None:
    """The first sweep finds where tokens cannot pass, the second one levels what is on either side of it."""
    loads, row = a_tree(ranks, seed)
    narrow = ranks + seed % (ranks - 1)
    loads[narrow] = 0.0
    loads[side_of(row, ranks, narrow)] += 50_000.0 * ranks  # one side is much busier than the other
    found = rank_loads_of(loads, row, sweep_batch(loads[None], row[None], ranks, 2)[0], ranks)
    best = rank_loads_of(loads, row, water_fill(loads[None], row[None], ranks)[0], ranks)
    assert found.max() == pytest.approx(best.max(), rel=1e-6)


def side_of(row: np.ndarray, ranks: int, narrow: int) -> list[int]:
    """The ranks on one side of an expert that joins two."""
    held = row.reshape(ranks, -1)
    side = [next(r for r in range(ranks) if narrow in held[r])]
    for r in side:
        for e in set(held[r][(held[r] >= ranks) & (held[r] < 2 * ranks - 1)]) - {narrow}:
            side += [q for q in range(ranks) if e in held[q] and q not in side]
    return side


@settings(max_examples=300)
@given(rows(), st.integers(1, 12), st.integers(0, 1 << 20))
def test_no_rank_is_busier_than_in_an_even_split_and_sweeps_only_help(
    case: tuple[np.ndarray, int, int], sweeps: int, seed: int
) -> None:
    row, experts, ranks = case
    loads = np.random.default_rng(seed).integers(0, 50, experts).astype(float)
    largest = [
        rank_loads_of(loads, row, sweep_batch(loads[None], row[None], ranks, n)[0], ranks).max()
        for n in (0, sweeps, sweeps + 1, 20_000)
    ]
    assert (np.diff(largest) <= 1e-9 * largest[0]).all()
    best = rank_loads_of(loads, row, water_fill(loads[None], row[None], ranks)[0], ranks).max()
    assert largest[-1] == pytest.approx(best, rel=2e-6)
