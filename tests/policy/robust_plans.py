"""Plans of `robust` for its tests: any current placement, and what holds for every plan."""

from __future__ import annotations

import numpy as np

from equipoise import (
    Placement,
    Robust,
    Topology,
)
from problems import Problem, check_legal
from real_loads import place

ROBUST = Robust()


def placement_of(phy2log: np.ndarray, problem: Problem) -> Placement:
    return Placement(phy2log, problem.topology.num_ranks, problem.loads.shape[2])


def fetched(phy2log: np.ndarray, current: Placement) -> int:
    return int(Placement(phy2log, current.num_ranks, current.num_experts).moves_from(current).sum())


def random_placement(problem: Problem, seed: int, groups_kept: bool) -> Placement:
    """Any legal placement; with ``groups_kept``, groups stay whole on nodes in order."""
    topology, (_, num_layers, experts) = problem.topology, problem.loads.shape
    rng = np.random.default_rng(seed)
    nodes = topology.num_nodes if groups_kept and topology.hierarchical else 1
    rows = []
    for _ in range(num_layers):
        parts = []
        for own in np.arange(experts).reshape(nodes, -1):
            spare = rng.choice(own, topology.num_slots // nodes - own.size)
            parts.append(rng.permutation(np.concatenate([own, spare])))
        rows.append(np.concatenate(parts))
    return placement_of(np.array(rows), problem)


def whole_on(placement: Placement, topology: Topology) -> np.ndarray:
    """Whether a node has every expert of a group: ``[L, N, G]``."""
    shape = (placement.num_layers, topology.num_nodes, -1, placement.num_experts)
    by_node = placement.holds.reshape(shape).any(axis=2)
    return by_node.reshape(placement.num_layers, topology.num_nodes, topology.num_groups, -1).all(axis=3)


def check_plan(problem: Problem, policy: Robust = ROBUST, **options: object) -> np.ndarray:
    before = problem.loads.copy()
    phy2log = place(policy, problem.loads, problem.topology, **options)  # type: ignore[arg-type]
    assert np.array_equal(before, problem.loads), "the loads were modified"
    check_legal(phy2log, problem)
    return phy2log
