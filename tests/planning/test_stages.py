"""Stages against plain-Python references and brute force, for the kernels (the torch form equals them)."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise import Topology, imbalance, rank_loads
from equipoise.planning import groups as groups_module
from equipoise.planning import orders, pack, refine, scale
from equipoise.planning.bounds import lower_bound
from equipoise.planning.replicate import replicate
from equipoise.policy.chunked import Chunked
from equipoise.policy.ensemble import Ensemble
from equipoise.policy.greedy import Greedy
from problems import KINDS, Problem, loads_of, problems
from real_loads import place

POLICIES = [Greedy(), Chunked(), Ensemble(random=1, noisy=2)]


# Replicate


def fewest(loads: list[int], num_slots: int) -> Fraction:
    """The smallest largest load per replica over all replica counts."""
    counts = product(range(1, num_slots - len(loads) + 2), repeat=len(loads))
    return min(
        max(Fraction(load, count) for load, count in zip(loads, way, strict=True))
        for way in counts
        if sum(way) == num_slots
    )


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.integers(0, 4))
def test_replica_counts_minimise_the_largest_load_per_replica(loads: list[int], extra: int) -> None:
    num_slots = len(loads) + extra
    (counts,) = replicate(np.array([loads]), num_slots)
    assert counts.sum() == num_slots
    assert counts.min() >= 1
    assert max(Fraction(a, int(b)) for a, b in zip(loads, counts, strict=True)) == fewest(loads, num_slots)


@given(st.integers(1, 9), st.integers(0, 20))
def test_experts_without_load_share_the_slots_evenly(num_experts: int, extra: int) -> None:
    (counts,) = replicate(np.zeros((1, num_experts)), num_experts + extra)
    assert counts.max() - counts.min() <= 1


def test_replicate_does_not_depend_on_scale() -> None:
    loads = loads_of("log-normal", (4, 40), 1)
    for factor in (1e-9, 1e9):
        assert np.array_equal(replicate(loads, 60), replicate(loads * factor, 60))


# Candidate orders


def test_interleaved_alternates_between_both_ends() -> None:
    order = np.empty(5, np.int64)
    orders.interleaved_order(np.array([10, 11, 12, 13, 14]), order)
    assert order.tolist() == [10, 14, 11, 13, 12]
    order = np.empty(4, np.int64)
    orders.interleaved_order(np.array([10, 11, 12, 13]), order)
    assert order.tolist() == [10, 13, 11, 12]


@given(st.lists(st.integers(0, 1 << 30), min_size=1, max_size=40), st.integers(0, 3), st.integers(0, 99))
def test_every_order_is_a_permutation(weights: list[int], kind: int, seed: int) -> None:
    weight = np.array(weights)
    lpt, order = np.empty_like(weight), np.empty_like(weight)
    orders.lpt_order(weight, lpt)
    assert lpt.tolist() == sorted(range(weight.size), key=lambda i: (-weight[i], i))
    orders.candidate_order(kind, np.uint64(orders.candidate_state(seed, 0, 0)), weight, lpt, 0.2, order)
    assert sorted(order.tolist()) == list(range(weight.size))


def test_noise_stays_within_its_width_and_random_orders_are_fair() -> None:
    # With noise 0.2 an item can overtake another only if it weighs more than 0.8 / 1.2 of it.
    weight = np.array([1500, 1499, 1000, 999, 600]) << 18
    first, places = np.zeros(5), np.zeros(5)
    order = np.empty(5, np.int64)
    for candidate in range(2000):
        state = np.uint64(orders.candidate_state(1, 0, candidate))
        orders.noisy_order(state, weight, 0.2, order)
        first[order[0]] += 1
        assert set(order[:2].tolist()) <= {0, 1, 2}
        assert order[:4].tolist().count(4) == 0 or weight[4] * 1.2 >= weight[3] * 0.8
        orders.random_order(state, order)
        places[order[0]] += 1
    assert 600 < first[0] < 1400
    assert first[3] == first[4] == 0
    assert (np.abs(places - 400) < 120).all(), "a random order prefers some items"


# Greedy pack


def plain_pack(weights: list[int], order: list[int], num_ranks: int) -> tuple[list[int], int]:
    room = [len(weights) // num_ranks] * num_ranks
    loads = [0] * num_ranks
    rank_of = [-1] * len(weights)
    for item in order:
        rank = min((r for r in range(num_ranks) if room[r]), key=lambda r: (loads[r], r))
        rank_of[item] = rank
        loads[rank] += weights[item]
        room[rank] -= 1
    return rank_of, max(loads)


def plain_chunks(weights: list[int], order: list[int], num_ranks: int) -> tuple[list[int], int]:
    loads = [0] * num_ranks
    rank_of = [-1] * len(weights)
    for start in range(0, len(order), num_ranks):
        ranks = sorted(range(num_ranks), key=lambda r: (loads[r], r))
        for rank, item in zip(ranks, order[start : start + num_ranks], strict=True):
            rank_of[item] = rank
            loads[rank] += weights[item]
    return rank_of, max(loads)


@st.composite
def items(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Weights of small numbers (ties!) or large ones, and a number of ranks that divides them."""
    ranks = draw(st.integers(1, 5))
    count = ranks * draw(st.integers(1, 5))
    largest = draw(st.sampled_from([2, 30, 1 << 30]))
    return np.array(draw(st.lists(st.integers(0, largest), min_size=count, max_size=count))), ranks


@given(items(), st.randoms(use_true_random=False))
def test_packing_matches_plain_python(packing: tuple[np.ndarray, int], rng: object) -> None:
    weight, num_ranks = packing
    order = list(range(weight.size))
    rng.shuffle(order)  # type: ignore[attr-defined]
    rank_of, keys, room = np.empty_like(weight), np.empty(num_ranks, np.int64), np.empty(num_ranks, np.int64)
    never = np.int64(1) << 50
    largest = pack.pack_greedy(np.array(order), weight, num_ranks, never, rank_of, room)
    assert (rank_of.tolist(), largest) == plain_pack(weight.tolist(), order, num_ranks)
    # Giving up at the result is giving up; above it is not.
    assert pack.pack_greedy(np.array(order), weight, num_ranks, largest + 1, rank_of, room) == largest
    if largest:
        assert pack.pack_greedy(np.array(order), weight, num_ranks, largest, rank_of, room) == largest
    largest = pack.pack_chunked(np.array(order), weight, num_ranks, rank_of, keys, room)
    assert (rank_of.tolist(), largest) == plain_chunks(weight.tolist(), order, num_ranks)


# Separate and refine


def heaviest_first(row: list[int], weights: list[int]) -> list[int]:
    return sorted(row, key=lambda item: (-weights[item], item))


def plain_refine(
    weights: list[int], experts: list[int], ranks: list[list[int]], max_swaps: int
) -> list[list[int]]:
    for _ in range(max_swaps):
        loads = [sum(weights[item] for item in row) for row in ranks]
        p = loads.index(max(loads))
        best = (loads[p],)
        for q, i, j in product(range(len(ranks)), range(len(ranks[p])), range(len(ranks[p]))):
            mine, theirs = ranks[p][i], ranks[q][j]
            change = weights[mine] - weights[theirs]
            value = max(loads[p] - change, loads[q] + change)
            left = [experts[item] for item in ranks[p] if item != mine]
            met = [experts[item] for item in ranks[q] if item != theirs]
            if q != p and experts[theirs] not in left and experts[mine] not in met:
                best = min(best, (value, q, i, j))
        if len(best) == 1:
            break
        _, q, i, j = best
        ranks[p][i], ranks[q][j] = ranks[q][j], ranks[p][i]
        ranks[p], ranks[q] = heaviest_first(ranks[p], weights), heaviest_first(ranks[q], weights)
    return ranks


def plain_separate(weights: list[int], experts: list[int], ranks: list[list[int]]) -> list[list[int]]:
    def names(row: list[int]) -> list[int]:
        return [experts[item] for item in row]

    while True:
        avoidable = [
            (p, i)
            for p, row in enumerate(ranks)
            for i, item in enumerate(row)
            if names(row).count(experts[item]) > 1
            and any(experts[item] not in names(other) for other in ranks)
        ]
        if not avoidable:
            return ranks
        p, i = avoidable[0]
        loads = [sum(weights[item] for item in row) for row in ranks]
        mine = ranks[p][i]
        ways = []
        for q, row in enumerate(ranks):
            if experts[mine] in names(row):
                continue
            for j, theirs in enumerate(row):
                change = weights[mine] - weights[theirs]
                makes_twin = experts[theirs] in names(ranks[p]) and names(row).count(experts[theirs]) == 1
                if not makes_twin:
                    ways.append((max(loads[p] - change, loads[q] + change), q, j))
        _, q, j = min(ways)  # there always is one
        ranks[p][i], ranks[q][j] = ranks[q][j], mine
        ranks[p], ranks[q] = heaviest_first(ranks[p], weights), heaviest_first(ranks[q], weights)


@st.composite
def replicas_on_ranks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Weights and experts of items, equal for equal experts, dealt out to ranks at random."""
    ranks = draw(st.integers(1, 5))
    count = ranks * draw(st.integers(1, 4))
    experts = draw(st.lists(st.integers(0, count), min_size=count, max_size=count))
    largest = draw(st.sampled_from([3, 40, 1 << 30]))
    loads = draw(st.lists(st.integers(0, largest), min_size=count + 1, max_size=count + 1))
    weights = [loads[expert] for expert in experts]
    dealt = draw(st.permutations(range(count)))
    rows = [heaviest_first(list(dealt[r::ranks]), weights) for r in range(ranks)]
    return np.array(weights), np.array(experts), rows


@given(replicas_on_ranks(), st.integers(0, 8))
@settings(max_examples=300)
def test_refine_matches_plain_python(case: tuple, max_swaps: int) -> None:
    weight, experts, rows = case
    members, loads = np.array(rows), weight[np.array(rows)].sum(axis=1)
    before = loads.max()
    done = refine.refine_layer(weight, experts, max_swaps, members, loads)
    assert members.tolist() == plain_refine(weight.tolist(), experts.tolist(), rows, max_swaps)
    assert loads.tolist() == weight[members].sum(axis=1).tolist()
    assert loads.max() <= before
    assert done <= max_swaps


@given(replicas_on_ranks())
@settings(max_examples=300)
def test_separate_matches_plain_python(case: tuple) -> None:
    weight, experts, rows = case
    members, loads = np.array(rows), weight[np.array(rows)].sum(axis=1)
    refine.separate_layer(weight, experts, members, loads)
    assert members.tolist() == plain_separate(weight.tolist(), experts.tolist(), rows)
    assert loads.tolist() == weight[members].sum(axis=1).tolist()


# Groups to nodes


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


# Bounds


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


@pytest.mark.parametrize("kind", KINDS)
def test_scaled_integers(kind: str) -> None:
    loads = loads_of(kind, (5, 30), 0)
    integers = scale.to_integers(loads)
    assert integers.min() >= 0
    for row, numbers in zip(loads, integers, strict=True):
        assert numbers.max() == (1 << 30 if row.max() else 0)
        assert np.allclose(numbers, row / (row.max() or 1) * (1 << 30), rtol=0, atol=0.5)
