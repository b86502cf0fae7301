"""Where tokens go: against a plain loop over tokens, and pair counts against routes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import equipoise as eq
from equipoise import ArgumentError, PairCounts, Placement, Routes, Topology
from equipoise.plans.communication import communication, count_pairs, together


@st.composite
def cases(
    draw: st.DrawFn, *, replicas: bool = True, whole: bool = False
) -> tuple[Routes, Placement, Topology]:
    """Routes of a few tokens and a placement; experts named twice and missing unless ``whole``."""
    nodes = draw(st.integers(1, 3))
    ranks = nodes * draw(st.integers(1, 3))
    slots = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    experts = draw(st.integers(1, ranks * slots)) if replicas else ranks * slots
    layers, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    top_k = draw(st.integers(1, min(experts, 6)))
    if whole:
        topk = rng.permuted(np.tile(np.arange(experts), (layers, tokens, 1)), axis=2)[:, :, :top_k]
    else:
        topk = rng.integers(draw(st.sampled_from([-1, 0])), experts, (layers, tokens, top_k))
    spare = rng.integers(0, experts, (layers, ranks * slots - experts))
    phy2log = rng.permuted(np.hstack([np.tile(np.arange(experts), (layers, 1)), spare]), axis=1)
    source = rng.integers(0, ranks, tokens) if draw(st.booleans()) else None
    topology = Topology(ranks, slots, nodes)
    if nodes > 1 and ranks > nodes and draw(st.booleans()):
        topology = Topology(ranks, slots, node_of_rank=(*[0] * (ranks - nodes + 1), *range(1, nodes)))
    return Routes(topk, experts, source), Placement(phy2log, ranks, experts), topology


def plain(routes: Routes, placement: Placement, topology: Topology) -> tuple[list, list, list]:
    """Tokens, sends and sends between nodes, token by token."""
    ranks, nodes = topology.num_ranks, topology.num_nodes
    tokens, sends, between = [], [], []
    for topk, phy2log in zip(routes.topk.tolist(), placement.phy2log.tolist(), strict=True):
        turn: dict[int, int] = {}
        count, table = 0, [[0] * ranks for _ in range(ranks)]
        by_node = [[0] * nodes for _ in range(nodes)]
        for number, row in enumerate(topk):
            source = number % ranks if routes.rank_of_token is None else int(routes.rank_of_token[number])
            visited = set()
            for e in dict.fromkeys(e for e in row if e >= 0):
                slots = [slot for slot, held in enumerate(phy2log) if held == e]
                visited.add(slots[turn.get(e, 0) % len(slots)] // placement.slots_per_rank)
                turn[e] = turn.get(e, 0) + 1
            count += bool(visited)
            for rank in visited:
                table[source][rank] += 1
            for node in {topology.nodes[rank] for rank in visited}:
                by_node[topology.nodes[source]][node] += 1
        tokens.append(count)
        sends.append(table)
        between.append(by_node)
    return tokens, sends, between


@given(cases())
@settings(max_examples=200)
def test_it_equals_a_plain_loop_over_tokens(case) -> None:
    found = communication(*case)
    tokens, sends, between = plain(*case)
    assert (found.tokens.tolist(), found.sends.tolist(), found.node_sends.tolist()) == (
        tokens,
        sends,
        between,
    )
    for layer, count in enumerate(tokens):
        visits, crossed = np.array(sends[layer]), np.array(between[layer])
        assert found.ranks_per_token[layer] == visits.sum() / max(count, 1)
        assert found.nodes_per_token[layer] == crossed.sum() / max(count, 1)
        assert found.sent(3.0)[layer] == 3.0 * (visits.sum() - visits.trace())
        assert found.sent_between_nodes()[layer] == crossed.sum() - crossed.trace()


@given(cases())
@settings(max_examples=100)
def test_pairs_equal_a_plain_loop_over_tokens(case) -> None:
    routes = case[0]
    expected = np.zeros((routes.num_layers, routes.num_experts, routes.num_experts), np.int64)
    for layer, topk in enumerate(routes.topk.tolist()):
        for row in topk:
            hit = {e for e in row if e >= 0}
            for a in hit:
                for b in hit:
                    expected[layer, a, b] += 1
    assert np.array_equal(count_pairs(routes).counts, expected)


@given(cases(replicas=False, whole=True))
@settings(max_examples=150)
def test_pairs_say_what_routes_say_without_replicas(case) -> None:
    """The pairs in one place, to the last one; places a token between bounds, and both bounds where top-k is 2."""
    routes, placement, topology = case
    found, exact = together(count_pairs(routes), placement, topology), communication(*case)
    rank_of = np.empty(routes.num_experts, np.int64)
    for layer, topk in enumerate(routes.topk.tolist()):
        rank_of[placement.phy2log[layer]] = np.arange(placement.num_slots) // placement.slots_per_rank
        for share, place_of in ((found.on_rank, rank_of), (found.on_node, np.array(topology.nodes)[rank_of])):
            pairs = [(a, b) for row in topk for a in row for b in row if a < b]
            near = sum(place_of[a] == place_of[b] for a, b in pairs)
            assert share[layer] == pytest.approx(near / len(pairs) if pairs else 1.0)
    for bounds, places in (
        (found.ranks_per_token(), exact.ranks_per_token),
        (found.nodes_per_token(), exact.nodes_per_token),
    ):
        assert bounds is not None
        assert (bounds[0] <= places + 1e-9).all()
        assert (places <= bounds[1] + 1e-9).all()
        if routes.top_k <= 2:
            assert bounds[0] == pytest.approx(places)
            assert bounds[1] == pytest.approx(places)


def test_with_replicas_pairs_are_what_is_expected() -> None:
    """Expert 0 is on both ranks: half of its tokens with expert 1 find it there."""
    placement = Placement([[0, 1, 0, 2]], num_ranks=2, num_experts=3)
    pairs = count_pairs(Routes([[[0, 1]] * 8], 3))
    assert together(pairs, placement, Topology(2, 2)).on_rank.tolist() == [0.5]


def test_windows_of_tokens_and_layers() -> None:
    routes = Routes([[[0, 1], [1, 2], [0, 2]], [[2, 0], [1, 0], [1, 2]]], 3, [0, 1, 0], layers=(3, 4))
    part = routes[1:].rows([1])
    assert (part.topk.tolist(), part.layers, part.rank_of_token.tolist()) == (
        [[[1, 0], [1, 2]]],
        (4,),
        [1, 0],
    )
    assert np.array_equal(count_pairs(routes).rows([1]).counts, count_pairs(routes.rows([1])).counts)
    whole = count_pairs(routes).counts
    assert np.array_equal(whole, (count_pairs(routes[:1]) + count_pairs(routes[1:])).counts)
    assert np.array_equal(count_pairs(routes, every=2).counts, count_pairs(routes[::2]).counts)
    with pytest.raises(ArgumentError, match="every"):
        count_pairs(routes, every=0)
    with pytest.raises(ArgumentError, match="do not add up"):
        count_pairs(routes) + count_pairs(routes.rows([1]))


def test_routes_are_kept_small_and_are_nobody_elses() -> None:
    given = np.zeros((1, 4, 2), np.uint8)
    routes = Routes(given, 256)
    given[:] = 7
    assert (routes.topk.dtype, routes.topk.max()) == (np.uint8, 0)
    assert not routes.topk.flags.writeable
    assert Routes(-np.ones((1, 4, 2), int), 256).topk.dtype == np.int16
    assert np.shares_memory(Routes(routes.topk, 256).topk, routes.topk)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([[0, 1]], 4), r"\[layers, tokens, k\]"),
        (([[[0.5]]], 4), "integers"),
        (([[[0, 4]]], 4), "layer 0, token 0 has expert 4"),
        (([[[0, 1], [-2, 1]]], 4), "layer 0, token 1 has expert -2"),
        ((np.zeros((1, 0, 2), int), 4), "0, 2"),
        (([[[0]]], 0), "num_experts"),
        (([[[0]]], 4, [0, 1]), "each of 1 tokens"),
        (([[[0]]], 4, [-1]), "rank_of_token"),
    ],
)
def test_routes_that_are_none(arguments, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        Routes(*arguments)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([[1, 2], [2, 1]], "experts, experts"),
        ([[[1, 0, 0]]], "experts, experts"),
        ([[[2, 1], [0, 2]]], "symmetric"),
        ([[[1, 2], [2, 2]]], "on the diagonal"),
        ([[[-1, 0], [0, 1]]], "not negative"),
        ([[[np.nan, 0], [0, 1]]], "finite"),
        ([[["a"]]], "numbers"),
    ],
)
def test_pair_counts_that_are_none(counts, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        PairCounts(counts)


def test_what_does_not_fit_is_refused() -> None:
    routes, placement = Routes([[[0, 1]]], 4, [2]), Placement([[0, 1, 2, 3]], 2, 4)
    with pytest.raises(ArgumentError, match="tokens of rank 2"):
        communication(routes, placement, Topology(2, 2))
    with pytest.raises(ArgumentError, match="the topology 4"):
        communication(routes, placement, Topology(4, 1))
    with pytest.raises(ArgumentError, match="layers, experts"):
        together(PairCounts([[[1]]]), placement, Topology(2, 2))
    many = Placement([[0] * 2048], 2048, 1)
    with pytest.raises(ArgumentError, match="too many"):
        communication(Routes([[[0]]], 1), many, Topology(2048, 1))


def test_the_report_of_a_plan_tells_it() -> None:
    rng = np.random.default_rng(0)
    routes = Routes(rng.permuted(np.tile(np.arange(16), (2, 200, 1)), axis=2)[:, :, :4], 16)
    counts = np.stack([np.bincount(topk.ravel(), minlength=16) for topk in routes.topk])
    made = eq.plan(counts, Topology(4, 5, 2), routes=routes)
    exact = communication(routes, made.placement, Topology(4, 5, 2))
    content = made.report.as_dict()
    assert content["communication"] == exact.as_dict()
    assert content["communication_before"]["mean_ranks_per_token"] > 1
    by_pairs = eq.plan(counts, Topology(4, 5, 2), routes=count_pairs(routes))
    assert np.array_equal(by_pairs.placement.phy2log, made.placement.phy2log)
    assert "mean_pairs_on_one_node" in by_pairs.report.as_dict()["communication"]
    assert eq.plan(counts, Topology(4, 5)).report.as_dict()["communication"] is None
    assert (
        "One more slot"
        in eq.plan(counts, Topology(4, 5, 2), eq.Robust(affinity=1.1), routes=routes).explain()
    )
    grown = eq.plan(counts, Topology(4, 5, 2), current=made.placement, routes=routes)
    smaller = eq.plan(counts, Topology(2, 10), current=made.placement, routes=routes)
    assert grown.report.communication_before.as_dict() == exact.as_dict()
    assert smaller.report.communication_before is None


def test_what_ranks_send_is_for_1024_of_them_and_pairs_for_more() -> None:
    placement, topology = eq.contiguous_placement(1, 4, 1025, 1025), Topology(1025, 1)
    routes = Routes([[[0, 1], [2, 3]]], 4)
    with pytest.raises(ArgumentError, match="too many for a matrix"):
        communication(routes, placement, topology)
    assert together(count_pairs(routes), placement, topology).on_rank.tolist() == [0.0]
