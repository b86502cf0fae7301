"""Groups to nodes, against trying everything."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given

from equipoise.planning import groups as groups_module
from equipoise.planning import scale
from problems import Problem, problems


@pytest.mark.parametrize(
    ("groups", "nodes", "count"), [(8, 4, 105), (4, 2, 3), (6, 2, 10), (8, 2, 35), (3, 1, 1)]
)
def test_pairings_are_all_ways_once(groups: int, nodes: int, count: int) -> None:
    table = groups_module.pairings(groups, nodes)
    assert table is not None
    ways = {frozenset(frozenset(np.flatnonzero(row == n).tolist()) for n in range(nodes)) for row in table}
    assert len(ways) == len(table) == count
    assert {len(node) for way in ways for node in way} == {groups // nodes}


@given(problems(hierarchical=True))
def test_groups_to_nodes_is_exact(problem: Problem) -> None:
    topology = problem.topology
    integers = scale.to_integers(problem.loads[0])
    groups = integers.reshape(len(integers), topology.num_groups, -1).sum(axis=2)
    by_node = groups_module.groups_to_nodes(integers, topology, exact=True)
    size = topology.num_groups // topology.num_nodes
    for row, loads in zip(by_node, groups, strict=True):
        assert sorted(row.tolist()) == list(range(topology.num_groups))
        largest = loads[row].reshape(topology.num_nodes, size).sum(axis=1).max()
        assert largest == best_pairing(loads.tolist(), size)


def best_pairing(loads: list[int], size: int) -> int:
    """The smallest largest sum of sets of ``size``, by trying everything."""
    if not loads:
        return 0
    best = sum(loads)
    for rest in combinations(range(1, len(loads)), size - 1):
        mine = loads[0] + sum(loads[i] for i in rest)
        if mine < best:
            best = min(
                best, max(mine, best_pairing([x for i, x in enumerate(loads) if i and i not in rest], size))
            )
    return best
