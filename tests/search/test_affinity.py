"""Ranks named, and experts swapped, so that experts hit by the same tokens are near each other."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import equipoise as eq
from equipoise import ArgumentError, PairCounts, Placement, Robust, Topology, imbalance, rank_loads
from equipoise.planning import objective
from equipoise.planning.windows import to_vectors
from equipoise.plans.communication import together
from equipoise.search.affinity import bring_together
from equipoise.search.names import name_ranks
from equipoise.search.sublayers import Sublayers
from real_loads import cut, place

cost = objective.cost.py_func


def random_pairs(rng: np.random.Generator, layers: int, experts: int) -> np.ndarray:
    """Pair counts of random tokens, experts of one block being hit together more often."""
    block = rng.permutation(experts) // max(experts // 3, 1)
    pairs = rng.integers(0, 20, (layers, experts, experts)) + 60 * (block[:, None] == block)
    pairs = pairs + pairs.transpose(0, 2, 1)
    every = np.arange(experts)
    pairs[:, every, every] = pairs.max(axis=(1, 2))[:, None]
    return pairs


@st.composite
def cases(draw: st.DrawFn, *, sizes: tuple[tuple[int, int], ...] = ((2, 2), (2, 3), (3, 2), (1, 4), (4, 1))):
    """Pair counts, vectors ``[L, W, E]``, a placement without avoidable twins and its topology."""
    nodes, per_node = draw(st.sampled_from(sizes))
    ranks, slots = nodes * per_node, draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    experts = draw(st.integers(max(1, ranks * slots // 2), ranks * slots))
    loads = rng.lognormal(0.0, 1.0, (draw(st.integers(1, 3)), 2, experts))
    topology = Topology(ranks, slots, nodes)
    phy2log = place(Robust(), loads, Topology(ranks, slots))
    if draw(st.booleans()):
        topology = replace(topology, rank_speed=tuple(rng.choice([0.5, 1.0], ranks)))
    return random_pairs(rng, 2, experts), loads, phy2log, topology


def contents(phy2log: np.ndarray, topology: Topology) -> list[list[tuple]]:
    """Per layer, what ranks hold, with their speeds, in no order."""
    speed = topology.speeds
    return [
        sorted(
            (s, *rank) for s, rank in zip(speed, row.reshape(topology.num_ranks, -1).tolist(), strict=True)
        )
        for row in phy2log
    ]


def near(phy2log: np.ndarray, pairs: np.ndarray, topology: Topology) -> np.ndarray:
    """Share of pairs on one node, or on one rank where there is one node ``[L]``."""
    found = together(PairCounts(pairs), Placement(phy2log, topology.num_ranks, pairs.shape[1]), topology)
    return found.on_node if topology.num_nodes > 1 else found.on_rank


@given(cases())
@settings(max_examples=80)
def test_names_change_nothing_but_names(case) -> None:
    pairs, _, phy2log, topology = case
    named = name_ranks(phy2log, pairs, topology)
    assert contents(named, topology) == contents(phy2log, topology)
    assert (near(named, pairs, topology) >= near(phy2log, pairs, topology) - 1e-12).all()
    assert np.array_equal(name_ranks(named, pairs, topology), named)


@given(cases(sizes=((2, 2), (3, 1), (2, 3))))
@settings(max_examples=40)
def test_small_cases_are_named_in_the_best_way(case) -> None:
    """Against all orders of ranks. With speeds, where ways are not enumerated, it may be a local best."""
    pairs, _, phy2log, topology = case
    topology = replace(topology, rank_speed=None)
    named, ranks = near(name_ranks(phy2log, pairs, topology), pairs, topology), topology.num_ranks
    orders = list(permutations(range(ranks)))
    held = phy2log[:1].reshape(ranks, -1)
    rows = np.array([held[list(order)].ravel() for order in orders])
    best = near(rows, np.repeat(pairs[:1], len(rows), axis=0), topology).max()
    assert named[0] == pytest.approx(best)


@pytest.mark.parametrize(
    "topology", [Topology(16, 4, 4), Topology(9, 4, node_of_rank=(0, 0, 0, 0, 1, 1, 1, 2, 2))]
)
def test_where_ways_are_too_many_no_two_names_are_left_to_trade(topology: Topology) -> None:
    rng = np.random.default_rng(3)
    pairs = random_pairs(rng, 2, topology.num_slots)
    phy2log = rng.permuted(np.tile(np.arange(topology.num_slots), (2, 1)), axis=1)
    named = name_ranks(phy2log, pairs, topology)
    best = near(named, pairs, topology)
    assert (best > near(phy2log, pairs, topology)).all()
    for p in range(topology.num_ranks):
        for q in range(p):
            rows = named.reshape(2, topology.num_ranks, -1).copy()
            rows[:, [p, q]] = rows[:, [q, p]]
            assert (near(rows.reshape(2, -1), pairs, topology) <= best + 1e-9).all()


def objectives(loads: np.ndarray, phy2log: np.ndarray, topology: Topology) -> np.ndarray:
    """The objective of each layer ``[L]``, the plain way; a rank of speed ``s`` is ``s`` ranks."""
    vectors = to_vectors(loads, topology.num_ranks).transpose(1, 0, 2)
    on_rank = rank_loads(vectors, Placement(phy2log, topology.num_ranks, loads.shape[2]))
    speed = np.array(topology.speeds)
    return (speed * cost(on_rank / speed)).sum(axis=(0, 2))


@given(cases(), st.sampled_from([1.0, 1.02, 1.3, 10.0]))
@settings(max_examples=80)
def test_swaps_stay_under_the_cap_and_bring_pairs_together(case, cap: float) -> None:
    pairs, loads, phy2log, topology = case
    layers = Sublayers.whole(to_vectors(loads, topology.num_ranks), topology).layers
    found = bring_together(layers, phy2log, pairs, topology, cap)
    assert (
        objectives(loads, found, topology) <= cap * objectives(loads, phy2log, topology) * (1 + 1e-9)
    ).all()
    assert (near(found, pairs, topology) >= near(phy2log, pairs, topology) - 1e-12).all()
    before, after = (Placement(rows, topology.num_ranks, loads.shape[2]) for rows in (phy2log, found))
    assert np.array_equal(before.logcnt, after.logcnt)
    assert (after.twins <= before.twins).all()


@given(cases())
@settings(max_examples=30)
def test_a_wider_cap_brings_no_fewer_pairs_together_up_to_the_highest_price(case) -> None:
    """Up to 1.1 prices are the same, so the placements on the way are."""
    pairs, loads, phy2log, topology = case
    layers = Sublayers.whole(to_vectors(loads, topology.num_ranks), topology).layers
    found = [
        near(bring_together(layers, phy2log, pairs, topology, cap), pairs, topology)
        for cap in (1.0, 1.02, 1.05, 1.1)
    ]
    assert (np.diff(found, axis=0) >= -1e-9).all()


def placements(ranks: int, slots: int) -> np.ndarray:
    """All ways to give each of ``ranks * slots`` experts a slot, but for the order on a rank ``[ways, R]``."""

    def fill(left: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [
            (*rank, *rest)
            for rank in combinations(left, slots)
            for rest in (fill(tuple(e for e in left if e not in rank)) if len(left) > slots else [()])
        ]

    return np.array(fill(tuple(range(ranks * slots))))


@pytest.mark.parametrize(("cap", "part"), [(1.0, 0.4), (1.1, 0.6)])
def test_small_layers_gain_most_of_what_the_best_placement_under_the_cap_does(
    cap: float, part: float
) -> None:
    """Against all placements of 8 experts on 4 ranks, where single swaps are coarse."""
    topology, rng = Topology(4, 2, 2), np.random.default_rng(7)
    every = placements(4, 2)
    gained, possible = 0.0, 0.0
    for _ in range(12):
        pairs, loads = random_pairs(rng, 1, 8), rng.lognormal(0.0, 0.3, (2, 1, 8))
        phy2log = place(Robust(), loads, Topology(4, 2))
        layers = Sublayers.whole(to_vectors(loads, 4), topology).layers
        found = bring_together(layers, phy2log, pairs, topology, cap)
        of_all = objectives(np.repeat(loads, len(every), axis=1), every, topology)
        fits = of_all <= cap * objectives(loads, phy2log, topology)[0] * (1 + 1e-12)
        best = near(every[fits], np.repeat(pairs, fits.sum(), axis=0), topology).max()
        start, end = (near(rows, pairs, topology)[0] for rows in (phy2log, found))
        assert end <= best + 1e-9
        gained, possible = gained + end - start, possible + best - start
    assert possible > 0.1
    assert gained >= part * possible


def test_it_is_on_where_pairs_and_nodes_are_known() -> None:
    rng = np.random.default_rng(1)
    loads, pairs = rng.lognormal(0.0, 0.4, (3, 2, 30)), random_pairs(rng, 2, 30)
    flat, nodes = Topology(8, 4), Topology(8, 4, 4)
    plain, tied = place(Robust(), loads, flat), place(Robust(), loads, nodes, pair_counts=pairs)
    named = name_ranks(plain, pairs, nodes)
    nearer = near(tied, pairs, nodes) - near(named, pairs, nodes)
    assert nearer.min() >= -1e-12
    assert nearer.max() > 0.01
    assert (near(named, pairs, nodes) > near(plain, pairs, nodes)).all()
    assert (objectives(loads, tied, nodes) <= objectives(loads, plain, nodes) * (1 + 1e-12)).all()
    assert np.array_equal(tied, place(Robust(affinity=1.0), loads, nodes, pair_counts=pairs))
    assert np.array_equal(tied, name_ranks(tied, pairs, nodes))
    assert np.array_equal(plain, place(Robust(), loads, nodes))
    assert np.array_equal(plain, place(Robust(), loads, flat, pair_counts=pairs))
    shared = [place(Robust(split="shares"), loads, each, pair_counts=pairs) for each in (flat, nodes)]
    assert np.array_equal(shared[1], name_ranks(shared[0], pairs, nodes))


def by_node(phy2log: np.ndarray, topology: Topology) -> list[list[list[tuple]]]:
    """Per layer, what nodes hold: what each of their ranks holds, with its speed; all in no order."""
    found = []
    for row in phy2log:
        held = [
            (speed, *sorted(rank))
            for speed, rank in zip(topology.speeds, row.reshape(topology.num_ranks, -1).tolist(), strict=True)
        ]
        nodes = [
            sorted(rank for rank, at in zip(held, topology.nodes, strict=True) if at == n)
            for n in range(topology.num_nodes)
        ]
        found.append(sorted(nodes))
    return found


@pytest.mark.parametrize(
    "topology",
    [
        Topology(8, 5, 4),
        Topology(7, 6, node_of_rank=(0, 0, 1, 1, 1, 2, 2)),
        Topology(6, 6, 3, rank_speed=(1, 1, 0.5, 0.5, 1, 0.5)),
    ],
)
def test_where_ranks_hold_something_nodes_stay_together_and_names_follow_it(topology: Topology) -> None:
    rng = np.random.default_rng(6)
    loads, pairs = rng.lognormal(0.0, 0.4, (3, 2, 32)), random_pairs(rng, 2, 32)
    fresh = place(Robust(affinity=1.1), loads, topology, pair_counts=pairs)
    for holes in (0.0, 0.2):
        moved = rng.permuted(fresh.reshape(2, topology.num_ranks, -1), axis=1).reshape(fresh.shape)
        held = eq.Held(np.where(rng.random(fresh.shape) < holes, -1, moved), topology.num_ranks, 32)
        found = place(Robust(affinity=1.1), loads, topology, pair_counts=pairs, current=held)
        assert by_node(found, topology) == by_node(fresh, topology)
        assert near(found, pairs, topology) == pytest.approx(near(fresh, pairs, topology))
        stays = [Placement(rows, topology.num_ranks, 32).moves_from(held).sum() for rows in (found, fresh)]
        assert stays[0] <= stays[1]
    again = place(
        Robust(affinity=1.1),
        loads,
        topology,
        pair_counts=pairs,
        current=Placement(fresh, len(topology.nodes), 32),
    )
    assert np.array_equal(again, fresh)


def test_without_an_affinity_names_follow_what_ranks_hold() -> None:
    rng, topology = np.random.default_rng(8), Topology(8, 4, 4)
    loads, pairs = rng.lognormal(0.0, 0.4, (3, 2, 30)), random_pairs(rng, 2, 30)
    held = eq.contiguous_placement(2, 30, 8, 32)
    for policy in (Robust(), Robust(start="fresh")):
        plain = place(policy, loads, topology, current=held)
        assert np.array_equal(place(policy, loads, topology, current=held, pair_counts=pairs), plain)


def test_layers_without_load_are_tied_by_their_pairs_alone() -> None:
    pairs, topology = random_pairs(np.random.default_rng(4), 1, 8), Topology(4, 2, 2)
    tied = place(Robust(), np.zeros((1, 1, 8)), topology, pair_counts=pairs)
    assert near(tied, pairs, topology) > near(np.arange(8)[None], pairs, topology)


def test_where_it_does_not_go_it_says_so() -> None:
    loads, pairs = np.ones((1, 1, 8)), PairCounts(random_pairs(np.random.default_rng(0), 1, 8))
    current, topology = eq.contiguous_placement(1, 8, 4), Topology(4, 2)
    for options, message in (
        ({"topology": topology}, "pass routes"),
        ({"topology": Topology(4, 2, 2, 2), "routes": pairs}, "num_groups must be 1"),
        ({"topology": topology, "routes": pairs, "current": current, "max_moves": 3}, "leave max_moves out"),
    ):
        with pytest.raises(ArgumentError, match=message) as caught:
            eq.plan(loads, policy=Robust(affinity=1.1), **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(ArgumentError, match="even split"):
        Robust(affinity=1.1, split="shares")
    for affinity in (0.99, float("nan"), float("inf"), -1.0):
        with pytest.raises(ArgumentError, match="affinity must be"):
            Robust(affinity=affinity)


@pytest.mark.parametrize("one", [0.0, 5.0])
def test_without_pairs_nothing_moves(one: float) -> None:
    loads, topology = np.random.default_rng(2).lognormal(0.0, 1.0, (2, 1, 16)), Topology(8, 2, 4)
    alike = np.full((1, 16, 16), one)
    plain = place(Robust(), loads, topology)
    for policy in (Robust(), Robust(affinity=1.3)):
        assert np.array_equal(place(policy, loads, topology, pair_counts=alike), plain)


@pytest.mark.parametrize(
    ("topology", "named", "free", "most"),
    [(Topology(8, 8, 4), 0.02, 0.05, 2.70), (Topology(16, 4, 4), 0.07, 0.12, 2.85)],
)
def test_recorded_routes(traces: Path, topology: Topology, named: float, free: float, most: float) -> None:
    """Planned from the first half of the tokens, scored on the second; benchmarks/bench_affinity.py has the table."""
    with np.load(traces / "deepseek-v2-lite" / "law_routes.npz") as file:
        topk = file["topk"]
    half = topk.shape[1] // 2
    seen, unseen = eq.Routes(topk[:, :half], 64), eq.Routes(topk[:, half:], 64)
    planned, later = cut(topk[:, :half], 512), (cut(topk[:, half:], half), cut(topk[:, half:], 256))
    pairs = eq.count_pairs(seen).counts
    plain = place(Robust(), planned, topology)
    nodes, balance = [], []
    for phy2log in (
        plain,
        name_ranks(plain, pairs, topology),
        place(Robust(), planned, topology, pair_counts=pairs),
        place(Robust(affinity=1.1), planned, topology, pair_counts=pairs),
    ):
        placement = Placement(phy2log, topology.num_ranks, 64)
        nodes.append(eq.communication(unseen, placement, topology).nodes_per_token.mean())
        balance.append([imbalance(rank_loads(windows, placement)).mean() for windows in later])
    assert nodes[1] < (1 - named) * nodes[0]
    assert balance[1] == pytest.approx(balance[0], rel=1e-12)
    assert nodes[2] < (1 - free) * nodes[0]
    assert np.subtract(balance[2], balance[0]).max() < 0.006
    assert nodes[3] < most
    assert np.subtract(balance[3], balance[0]).max() < 0.03
