"""`robust`: groups and the nodes that they are kept on."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from robust_plans import ROBUST, check_plan, fetched, placement_of, random_placement, whole_on
from scipy.optimize import linear_sum_assignment

from equipoise import (
    Robust,
    Topology,
)
from problems import Problem, loads_of, problems
from real_loads import deepseek, place, score


def nodes_of(row: np.ndarray, topology: Topology, experts: int) -> list[set[int]]:
    nodes = row.reshape(topology.num_nodes, -1) // (experts // topology.num_groups)
    return [set(node.tolist()) for node in nodes]


@given(problems(hierarchical=True, max_windows=3), st.integers(0, 1000))
@settings(max_examples=80)
def test_groups_that_are_on_nodes_stay_there(problem: Problem, seed: int) -> None:
    current = random_placement(problem, seed, groups_kept=True)
    for budget in (None, 4):
        phy2log = check_plan(problem, current=current, max_moves=budget)
        for row, was in zip(phy2log, current.phy2log, strict=True):
            experts = problem.loads.shape[2]
            assert nodes_of(row, problem.topology, experts) == nodes_of(was, problem.topology, experts)


def test_groups_on_several_nodes_are_brought_together_when_the_budget_allows() -> None:
    topology, loads = Topology(8, 4, 2, 4), loads_of("log-normal", (2, 3, 16), 3)
    problem = Problem(loads, topology)
    whole = random_placement(problem, 0, groups_kept=True)
    broken = whole.phy2log.copy()
    broken[1] = np.arange(32) % 16  # each half of the ranks holds all groups
    current = placement_of(broken, problem)
    free = check_plan(problem, current=current)  # legal: groups whole on nodes in all layers
    needed = int(placement_of(free, problem).moves_from(current)[1])
    assert needed > 0
    tight = place(ROBUST, loads, topology, current=current, max_moves=needed - 1)
    assert np.array_equal(tight[1], broken[1])
    assert fetched(tight, current) <= needed - 1
    enough = check_plan(problem, current=current, max_moves=needed)
    assert fetched(enough, current) <= needed


@given(problems(hierarchical=True, max_windows=3), st.integers(0, 1000), st.booleans())
@settings(max_examples=100)
def test_anchored_experts_keep_a_replica_on_the_node_of_their_group(
    problem: Problem, seed: int, groups_kept: bool
) -> None:
    topology = problem.topology
    policy = Robust(groups="anchored")
    current = random_placement(problem, seed, groups_kept)
    for phy2log in (
        place(policy, problem.loads, topology),
        place(policy, problem.loads, topology, current=current),
    ):
        whole = whole_on(placement_of(phy2log, problem), topology)
        # Every group is whole on some node, and no node is home to more than its part of them.
        size = topology.num_groups // topology.num_nodes
        for layer in whole:
            fits = np.repeat(layer, size, axis=0)
            rows, columns = linear_sum_assignment(fits, maximize=True)
            assert fits[rows, columns].all()


def test_anchored_is_between_groups_on_nodes_and_none(traces: object) -> None:
    loads = deepseek(traces, "prefill_in1024")[:, ::6]  # type: ignore[arg-type]
    topology = Topology(32, 9, 4, 8)
    found = {
        groups: score(loads, place(Robust(groups=groups), loads, topology), 32).mean()  # type: ignore[arg-type]
        for groups in ("nodes", "anchored", "global")
    }
    assert found["global"] <= found["anchored"] < found["nodes"]
