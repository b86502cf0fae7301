"""Names for ranks and slots: against brute force over all permutations."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise import Placement, Topology
from equipoise.planning.relabel import keep_slots, relabel

Case = tuple[np.ndarray, np.ndarray, Topology, int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Two placements of two layers, twins included."""
    nodes, per_node = draw(st.sampled_from([(1, 1), (1, 3), (1, 5), (2, 1), (2, 2), (3, 1), (3, 2)]))
    topology = Topology(nodes * per_node, draw(st.integers(1, 4)), nodes)
    experts = draw(st.integers(1, topology.num_slots))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))

    def placement() -> np.ndarray:
        spare = rng.integers(0, experts, (2, topology.num_slots - experts))
        return rng.permuted(np.hstack([np.tile(np.arange(experts), (2, 1)), spare]), axis=1)

    return placement(), placement(), topology, experts


def fetches(new: np.ndarray, old: np.ndarray, topology: Topology, experts: int) -> np.ndarray:
    was = Placement(old, topology.num_ranks, experts)
    return Placement(new, topology.num_ranks, experts).moves_from(was)


def contents(row: np.ndarray, topology: Topology) -> list[tuple[int, ...]]:
    return sorted(tuple(sorted(rank)) for rank in row.reshape(topology.num_ranks, -1).tolist())


def renamings(topology: Topology) -> list[np.ndarray]:
    """Every order of nodes, with every order of ranks inside each node."""
    per_node = topology.ranks_per_node
    inner = list(permutations(range(per_node)))
    found: list[list[int]] = []
    for order in permutations(range(topology.num_nodes)):
        ways: list[list[int]] = [[]]
        for node in order:
            ways = [way + [node * per_node + r for r in ranks] for way in ways for ranks in inner]
        found += ways
    return [np.array(way) for way in found]


@given(cases())
@settings(max_examples=150)
def test_the_fewest_fetches_of_all_renamings(case: Case) -> None:
    new, old, topology, experts = case
    found = relabel(new, old, topology, experts)
    by_rank = new.reshape(len(new), topology.num_ranks, -1)
    every = [
        fetches(by_rank[:, way].reshape(new.shape), old, topology, experts) for way in renamings(topology)
    ]
    assert np.array_equal(fetches(found, old, topology, experts), np.min(every, axis=0))
    assert (fetches(found, old, topology, experts) <= fetches(new, old, topology, experts)).all()


@given(cases())
def test_contents_of_ranks_and_nodes_stay_together(case: Case) -> None:
    new, old, topology, experts = case
    found = relabel(new, old, topology, experts)
    for row, was in zip(found, new, strict=True):
        assert contents(row, topology) == contents(was, topology)
        nodes = [
            sorted(contents(node, Topology(topology.ranks_per_node, topology.slots_per_rank)))
            for node in row.reshape(topology.num_nodes, -1)
        ]
        before = [
            sorted(contents(node, Topology(topology.ranks_per_node, topology.slots_per_rank)))
            for node in was.reshape(topology.num_nodes, -1)
        ]
        assert sorted(nodes) == sorted(before)


@given(cases())
def test_what_stays_on_a_rank_keeps_its_slot(case: Case) -> None:
    new, old, topology, _ = case
    found = keep_slots(new, old, topology.num_ranks)
    shape = (len(new), topology.num_ranks, topology.slots_per_rank)
    for row, was, before in zip(found.reshape(shape), new.reshape(shape), old.reshape(shape), strict=True):
        for mine, put, theirs in zip(row.tolist(), was.tolist(), before.tolist(), strict=True):
            assert sorted(mine) == sorted(put)
            for expert in set(put):
                same = sum(a == b == expert for a, b in zip(mine, theirs, strict=True))
                assert same == min(put.count(expert), theirs.count(expert))


@given(cases())
def test_the_same_placement_under_other_names_comes_back(case: Case) -> None:
    _, old, topology, experts = case
    rng = np.random.default_rng(0)
    shuffled = old.reshape(len(old), topology.num_nodes, topology.ranks_per_node, -1)
    shuffled = shuffled[:, rng.permutation(topology.num_nodes)][
        :, :, rng.permutation(topology.ranks_per_node)
    ]
    found = relabel(shuffled.reshape(old.shape), old, topology, experts)
    assert not fetches(found, old, topology, experts).any()
    # Ranks with the same experts, one of them twice, cost no fetch under each other's name.
    alone = Placement(old, topology.num_ranks, experts).twins == 0
    assert np.array_equal(found[alone], old[alone])
