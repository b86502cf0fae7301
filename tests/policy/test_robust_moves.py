"""`robust`: nothing moves for nothing, budgets hold, and twins are parted as far as they go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from robust_plans import ROBUST, fetched, placement_of, random_placement, whole_on

from equipoise import (
    Placement,
    Robust,
    Topology,
    contiguous_placement,
    plan,
    rank_loads,
)
from equipoise import problem as planner_problem
from problems import Problem, avoidable_twins, loads_of, problems
from real_loads import SEEN, deepseek, place


def in_sample(loads: np.ndarray, phy2log: np.ndarray, topology: Topology) -> np.ndarray:
    """Mean over windows of the largest rank load in means, of each node where groups stay on nodes: ``[L, N]``.

    Nodes are searched one by one; what each gains in the mean of its windows, their largest may lose.
    """
    found = rank_loads(loads, Placement(phy2log, topology.num_ranks, loads.shape[2]))
    means = found.mean(axis=2, keepdims=True)
    relative = np.divide(found, means, out=np.zeros_like(found), where=means > 0)
    nodes = topology.num_nodes if topology.hierarchical else 1
    return np.asarray(relative.reshape(*found.shape[:2], nodes, -1).max(axis=3).mean(axis=0))


def test_an_even_load_on_an_even_placement_moves_nothing() -> None:
    loads = np.ones((3, 2, 16))
    for topology in (Topology(4, 4), Topology(8, 4), Topology(8, 4, 2, 4), Topology(16, 1)):
        current = contiguous_placement(2, 16, topology.num_ranks, topology.num_slots)
        if topology.hierarchical:
            current = Placement(place(Robust(), loads[:1], topology), topology.num_ranks, 16)
        assert np.array_equal(
            rank_loads(loads, current), np.full((3, 2, topology.num_ranks), 16 / topology.num_ranks)
        )
        for part in (loads, loads[:1]):
            for budget in (None, 5, 1.0):
                phy2log = place(Robust(), part, topology, current=current, max_moves=budget)
                assert np.array_equal(phy2log, current.phy2log)


@given(problems(max_windows=4), st.sampled_from(["auto", "global", "anchored"]))
@settings(max_examples=250)
def test_an_unchanged_load_moves_nothing(problem: Problem, groups: str) -> None:
    assume(groups != "anchored" or problem.topology.hierarchical)
    policy = Robust(groups=groups)  # type: ignore[arg-type]
    current = placement_of(place(policy, problem.loads, problem.topology), problem)
    again = place(policy, problem.loads, problem.topology, current=current)
    # A placement does not tell which node a group was anchored to if it is whole on several.
    assume(groups != "anchored" or (whole_on(current, problem.topology).sum(axis=1) == 1).all())
    assert np.array_equal(again, current.phy2log)
    renamed = place(replace(policy, start="fresh"), problem.loads, problem.topology, current=current)
    assert fetched(renamed, current) == 0


@pytest.mark.parametrize("topology", [Topology(32, 9), Topology(64, 5), Topology(32, 9, 4, 8)], ids=str)
def test_an_unchanged_real_load_moves_nothing(traces: object, topology: Topology) -> None:
    seen = deepseek(traces, *SEEN)[:, ::5]  # type: ignore[arg-type]
    for loads in (seen, seen[:1]):
        current = Placement(place(Robust(), loads, topology), topology.num_ranks, 256)
        assert np.array_equal(place(Robust(), loads, topology, current=current), current.phy2log)


@given(problems(max_windows=3), st.integers(0, 1000), st.booleans())
@settings(max_examples=80)
def test_budgets_hold_and_more_is_never_worse(problem: Problem, seed: int, groups_kept: bool) -> None:
    current = random_placement(problem, seed, groups_kept)
    topology = problem.topology
    # Layers that break the groups are rebuilt, and twins parted, whatever that does to balance.
    in_order = not topology.hierarchical or groups_kept
    in_order = in_order and avoidable_twins(current.phy2log, topology) == []
    last = np.inf
    for budget in (0, 1, 2, 3, 5, 8, 13, 21, 10**6):
        phy2log = place(ROBUST, problem.loads, topology, current=current, max_moves=budget)
        placement_of(phy2log, problem)
        assert fetched(phy2log, current) <= budget
        if budget == 0:
            assert fetched(phy2log, current) == 0
        if in_order:
            value = in_sample(problem.loads, phy2log, topology).sum()
            assert value <= last + 1e-6
            last = value


@given(problems(max_windows=3), st.integers(0, 1000), st.sampled_from([None, 1, 4, 10**6]))
@settings(max_examples=100)
def test_no_layer_gets_worse_in_sample(problem: Problem, seed: int, budget: int | None) -> None:
    current = random_placement(problem, seed, groups_kept=True)
    assume(avoidable_twins(current.phy2log, problem.topology) == [])
    phy2log = place(ROBUST, problem.loads, problem.topology, current=current, max_moves=budget)
    before = in_sample(problem.loads, current.phy2log, problem.topology)
    after = in_sample(problem.loads, phy2log, problem.topology)
    assert (after <= before + 1e-6).all()


@given(problems(max_windows=3), st.integers(0, 1000), st.sampled_from([None, 1, 10**6]))
@settings(max_examples=60)
def test_no_move_is_made_that_does_not_earn_its_price(
    problem: Problem, seed: int, budget: int | None
) -> None:
    """A budget is a ceiling."""
    current = random_placement(problem, seed, groups_kept=True)
    assume(current.twins.sum() == 0)
    dear = Robust(min_gain=1e6)
    phy2log = place(dear, problem.loads, problem.topology, current=current, max_moves=budget)
    assert fetched(phy2log, current) == 0


def test_budgets_as_shares_and_huge_ones() -> None:
    problem = Problem(loads_of("log-normal", (2, 3, 24), 4), Topology(8, 4))
    current = random_placement(problem, 1, groups_kept=False)

    def allowed(max_moves: float) -> int | None:
        return planner_problem.Problem.of(
            problem.loads, problem.topology, current=current, max_moves=max_moves
        ).max_moves

    assert [allowed(x) for x in (0, 0.0, 0.05, 0.1, 1.0, 7, 96, 10**30)] == [
        0,
        0,
        4,
        9,
        96,
        7,
        96,
        96,
    ]
    assert allowed(np.float32(0.5)) == 48
    assert allowed(np.int32(5)) == 5
    by_share = place(ROBUST, problem.loads, problem.topology, current=current, max_moves=0.1)
    by_count = place(ROBUST, problem.loads, problem.topology, current=current, max_moves=9)
    assert np.array_equal(by_share, by_count)
    assert 0 < fetched(by_share, current) <= 9
    everything = place(ROBUST, problem.loads, problem.topology, current=current, max_moves=10**30)
    assert np.array_equal(
        everything, place(ROBUST, problem.loads, problem.topology, current=current, max_moves=1.0)
    )


def test_the_plan_reports_what_it_moves() -> None:
    loads = loads_of("log-normal", (3, 4, 24), 4)
    current = contiguous_placement(4, 24, 8, 32)
    found = plan(loads, Topology(8, 4), current=current, max_moves=10)
    assert found.report.moves.sum() == fetched(found.placement.phy2log, current) <= 10
    assert found.report.after.mean_imbalance < found.report.before.mean_imbalance


def test_slots_that_stay_keep_their_place() -> None:
    problem = Problem(loads_of("log-normal", (2, 4, 24), 4), Topology(8, 4))
    current = random_placement(problem, 1, groups_kept=False)
    for options in ({"max_moves": 6}, {}):
        phy2log = place(ROBUST, problem.loads, problem.topology, current=current, **options)
        same = (phy2log == current.phy2log).sum()
        assert same >= phy2log.size - 2 * fetched(phy2log, current) - 2 * int(current.twins.sum())


def test_twins_are_parted_as_far_as_the_budget_goes() -> None:
    # Four pairs of twins on four ranks; each swap parts two pairs for two fetches.
    row = [0, 0, 4, 1, 1, 5, 2, 2, 6, 3, 3, 7]
    current = Placement([row, row], 4, 8)
    loads = np.ones((1, 2, 8))
    left = []
    for budget in (0, 1, 2, 4, 8, None):
        phy2log = place(ROBUST, loads, Topology(4, 3), current=current, max_moves=budget)
        left.append(int(Placement(phy2log, 4, 8).twins.sum()))
        assert budget is None or fetched(phy2log, current) <= budget
    assert left == [8, 8, 6, 4, 0, 0]


def test_twins_that_no_rank_can_take_stay() -> None:
    current = Placement([[0, 0, 1, 0, 0, 1]], 2, 2)
    phy2log = place(ROBUST, np.ones((1, 1, 2)), Topology(2, 3), current=current)
    assert avoidable_twins(phy2log, Topology(2, 3)) == []
    assert (Placement(phy2log, 2, 2).holds).all()
