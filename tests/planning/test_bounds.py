"""The lower bound, against trying everything and against plans."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given

from equipoise import Topology, imbalance, rank_loads
from equipoise.planning.bounds import lower_bound
from equipoise.policy.chunked import Chunked
from equipoise.policy.ensemble import Ensemble
from equipoise.policy.greedy import Greedy
from problems import Problem, loads_of, problems
from real_loads import place

POLICIES = [Greedy(), Chunked(), Ensemble(random=1, noisy=2)]


def best_of_all(loads: np.ndarray, topology: Topology) -> float:
    """The smallest imbalance of a tiny flat problem over all placements."""
    slots = topology.num_slots
    best = np.inf
    for row in set(permutations(tuple(range(loads.size)) * slots, slots)) if slots <= 4 else ():
        if set(row) == set(range(loads.size)):
            shares = np.array([loads[e] / row.count(e) for e in row])
            best = min(best, float(imbalance(shares.reshape(topology.num_ranks, -1).sum(axis=1))))
    return best


@pytest.mark.parametrize(("ranks", "slots", "experts"), [(2, 2, 2), (2, 2, 3), (2, 2, 4), (4, 1, 3)])
@pytest.mark.parametrize("kind", ["log-normal", "small integers", "few carry all"])
def test_the_bound_is_a_bound(ranks: int, slots: int, experts: int, kind: str) -> None:
    topology = Topology(ranks, slots)
    for seed in range(3):
        loads = loads_of(kind, (1, experts), seed)
        assert lower_bound(loads, topology)[0] <= best_of_all(loads[0], topology) * (1 + 1e-12)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
@given(problem=problems())
def test_no_plan_beats_the_bound(policy: Greedy, problem: Problem) -> None:
    from equipoise import Placement

    total = problem.loads.sum(axis=0)
    phy2log = place(policy, problem.loads, problem.topology)
    placement = Placement(phy2log, problem.topology.num_ranks, total.shape[1])
    bound = lower_bound(total, problem.topology)
    assert (bound >= 1).all()
    assert (imbalance(rank_loads(total, placement)) >= bound * (1 - 1e-8)).all()
