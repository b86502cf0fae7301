"""Tokens on nodes that they visit anyway: counts stay, visits fall."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import equipoise as eq
from equipoise import ArgumentError, Placement, Topology
from real_loads import cut, place


@st.composite
def cases(draw: st.DrawFn) -> tuple[Placement, Topology, np.ndarray, np.ndarray | None]:
    """A placement of any kind, twins included, its topology, routed tokens ``[L, T, K]``, some -1, and shares."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    nodes, per_node, layers = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    ranks, experts = nodes * per_node, draw(st.integers(1, 7))
    slots = ranks * (-(-experts // ranks) + draw(st.integers(0, 2)))
    rows = [
        rng.permutation(np.r_[np.arange(experts), rng.integers(0, experts, slots - experts)])
        for _ in range(layers)
    ]
    topology = Topology(ranks, slots // ranks, nodes)
    if ranks > 2 and draw(st.booleans()):
        topology = replace(topology, num_nodes=2, node_of_rank=(0,) * (ranks - 1) + (1,))
    topk = rng.integers(-1, experts, (layers, draw(st.integers(0, 30)), draw(st.integers(1, 4))))
    shares = rng.random((layers, slots)) if draw(st.booleans()) else None
    return Placement(rows, ranks, experts), topology, topk, shares


def places_of(placement: Placement, topology: Topology) -> np.ndarray:
    """The node of each slot, its rank where there is one node ``[R]``."""
    rank = np.arange(placement.num_slots) // placement.slots_per_rank
    return np.array(topology.nodes)[rank] if topology.num_nodes > 1 else rank


def visited(slots: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Places that tokens visit, all together, of each layer ``[L]``."""
    return np.array(
        [sum(len({places[s] for s in token if s >= 0}) for token in layer) for layer in slots.tolist()]
    )


@given(cases())
@settings(max_examples=200, deadline=None)
def test_slots_get_what_assign_gives_them_and_tokens_visit_no_more(case) -> None:
    placement, topology, topk, shares = case
    slots, plain = eq.assign_near(topk, shares, placement, topology), eq.assign(topk, shares, placement)
    assert slots.dtype == np.int64
    assert slots.shape == topk.shape
    layer = np.arange(len(topk))[:, None, None]
    assert np.array_equal(np.where(slots < 0, -1, placement.phy2log[layer, slots]), topk)
    size = placement.num_slots + 1
    for ours, theirs in zip(slots, plain, strict=True):
        assert np.array_equal(*(np.bincount(rows.ravel() + 1, minlength=size) for rows in (ours, theirs)))
    places = places_of(placement, topology)
    assert (visited(slots, places) <= visited(plain, places)).all()
    assert np.array_equal(slots, eq.assign_near(topk, shares, placement, topology))


def fewest(topk: np.ndarray, plain: np.ndarray, placement: Placement, places: np.ndarray) -> int:
    """The fewest places that tokens ``[T, K]`` of one layer can visit while slots get what they get: all tried."""
    choices = [placement.log2phy[0, e, : placement.logcnt[0, e]] for e in topk.ravel()]
    wanted = np.bincount(plain.ravel(), minlength=placement.num_slots)
    found = []
    for way in product(*choices):
        if np.array_equal(np.bincount(way, minlength=placement.num_slots), wanted):
            found.append(visited(np.reshape(way, (1, *topk.shape)), places)[0])
    return min(found)


def test_it_is_near_the_best_that_there_is() -> None:
    """Small batches against all ways to deal their tokens: at least nine tenths of what there is to save."""
    rng, saved, possible = np.random.default_rng(5), 0, 0
    topology = Topology(4, 2, 4)
    for _ in range(40):
        phy2log = rng.permutation(np.r_[np.arange(5), rng.integers(0, 5, 3)])[None]
        placement = Placement(phy2log, 4, 5)
        topk = np.stack([rng.permutation(5)[:2] for _ in range(5)])[None]
        places = places_of(placement, topology)
        plain, slots = eq.assign(topk, None, placement), eq.assign_near(topk, None, placement, topology)
        before, after = (visited(rows, places)[0] for rows in (plain, slots))
        best = fewest(topk[0], plain[0], placement, places)
        assert best <= after
        saved, possible = saved + before - after, possible + before - best
    assert possible > 20
    assert saved >= 0.9 * possible


@pytest.mark.parametrize("topology", [Topology(16, 5, 4), Topology(16, 6, 8)])
def test_recorded_routes(traces: Path, topology: Topology) -> None:
    """Planned from the first half of the tokens, batches of the second; benchmarks/bench_near.py has the table."""
    with np.load(traces / "deepseek-v2-lite" / "law_routes.npz") as file:
        topk = file["topk"].astype(np.int64)
    half = topk.shape[1] // 2
    placement = Placement(place(eq.Robust(), cut(topk[:, :half], 512), topology), 16, 64)
    batch = topk[:, half : half + 512]
    shares = eq.split_batch(cut(batch, 512)[0], placement)
    places = places_of(placement, topology)
    before, after = (
        visited(rows, places).sum()
        for rows in (eq.assign(batch, shares, placement), eq.assign_near(batch, shares, placement, topology))
    )
    assert after < 0.92 * before


def test_layers_threads_and_tensors_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    rng, topology = np.random.default_rng(0), Topology(4, 5, 2)
    placement = Placement(
        [rng.permutation(np.r_[np.arange(12), rng.integers(0, 12, 8)]) for _ in range(3)], 4, 12
    )
    topk = rng.integers(-1, 12, (3, 50, 4)).astype(np.int32)
    slots = eq.assign_near(topk, None, placement, topology)
    monkeypatch.setenv("EQUIPOISE_NUM_THREADS", "3")
    assert np.array_equal(eq.assign_near(topk, None, placement, topology), slots)
    for layer in range(3):
        one = Placement(placement.phy2log[layer : layer + 1], 4, 12)
        assert np.array_equal(eq.assign_near(topk[layer], None, one, topology), slots[layer])
    found = eq.assign_near(torch.from_numpy(topk), None, placement, topology)
    assert np.array_equal(found.numpy(), slots)


def test_what_does_not_fit_is_refused() -> None:
    torch = pytest.importorskip("torch")
    placement, topology = eq.contiguous_placement(1, 4, 2, 6), Topology(2, 3, 2)
    with pytest.raises(ArgumentError, match="2 ranks, the topology 4"):
        eq.assign_near([[0]], None, placement, Topology(4, 2))
    with pytest.raises(ArgumentError, match="experts 0 to 3"):
        eq.assign_near([[4]], None, placement, topology)
    with pytest.raises(ArgumentError, match="not negative"):
        eq.assign_near([[0]], np.full((1, 6), np.nan), placement, topology)
    maps = eq.DeviceMaps.of(placement, "cpu")
    for given_topk, given_maps in ((torch.zeros(1, 1, device="meta"), placement), ([[0]], maps)):
        with pytest.raises(ArgumentError, match="on the processor") as caught:
            eq.assign_near(given_topk, None, given_maps, topology)
        assert "\n" not in str(caught.value)
