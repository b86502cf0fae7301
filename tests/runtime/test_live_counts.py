"""What a live balancer counts beside tokens: pairs of experts, and batches in which an expert was hit."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
# ruff: noqa: E402 - what follows imports torch

import small_moe as moe
from forked import run
from live_ranks import DEADLINE, FOREVER, Fragile, begin, loader

import equipoise as eq
from equipoise import ArgumentError, Balancer, PairCounts, Routes, Topology, TraceWriter
from equipoise.control import cost_model
from equipoise.runtime.live import LiveBalancer
from equipoise.runtime.transport import TorchTransport
from equipoise.runtime.weights import ExpertWeights
from equipoise.runtime.witness import Witness

PASSES, TOKENS = 10, 12


def chosen(rank, number):
    """What routers choose in a pass ``[L, tokens, k]``; the batches of ranks differ in size."""
    rng = np.random.default_rng([rank, number])
    rows = np.tile(np.arange(moe.EXPERTS), (moe.LAYERS, TOKENS - rank, 1))
    return rng.permuted(rows, axis=2)[:, :, : moe.TOP_K]


def counts_on(rank, number):
    """Whether a pass of a rank counts: one of them has a dummy batch now and then."""
    return rank != 1 or number % 3 != 0


def count(rank, ranks, store, folder, unit, every):
    """Serve, and record on rank 0."""
    recorder = None
    if rank == 0:
        about = {"top_k": moe.TOP_K, "unit": unit, "flush_seconds": 0}
        recorder = TraceWriter(folder, moe.LAYERS, moe.EXPERTS, **about)
    live, tensors = begin(rank, ranks, store, unit=unit, pairs_every=every, recorder=recorder)
    for number in range(PASSES):
        for layer, topk in enumerate(chosen(rank, number)):
            live.counter.add(layer, torch.from_numpy(topk))
        live.step(record=counts_on(rank, number))
    return live.state.value != "degraded", moe.holds(tensors, live.slots_of)


def hits(topk):
    """Tokens of each expert ``[L, E]``."""
    return np.stack([np.bincount(rows.ravel(), minlength=moe.EXPERTS) for rows in topk])


@pytest.mark.parametrize("unit", ["tokens", "batches"])
def test_pairs_and_batches_of_all_ranks_are_recorded(unit, tmp_path):
    """Rank 0 counts every pass, so that the steps of a window are the numbers of its passes."""
    assert run(3, count, str(tmp_path), unit, 1) == [(True, True)] * 3
    trace, pairs = eq.load_trace(tmp_path), eq.load_routes(tmp_path)
    assert trace.unit == unit
    assert isinstance(pairs, PairCounts)
    assert pairs.top_k == moe.TOP_K
    served = []
    for window, (first, end) in enumerate(trace.steps.tolist()):
        passes = range(first, end)
        topk = [chosen(r, number) for r in range(3) for number in passes if counts_on(r, number)]
        if unit == "batches":
            assert trace.batches[window] == len(topk) < 3 * len(passes)
        wanted = sum((hits(each) > 0).astype(int) if unit == "batches" else hits(each) for each in topk)
        assert trace.counts[window].tolist() == wanted.tolist()
        served += topk
    together = eq.count_pairs(Routes(np.concatenate(served, axis=1), moe.EXPERTS))
    assert pairs.counts.tolist() == together.counts.tolist()


def test_without_pairs_none_are_recorded(tmp_path):
    assert run(3, count, str(tmp_path), "tokens", None) == [(True, True)] * 3
    with pytest.raises(eq.FormatError, match="no token routes"):
        eq.load_routes(tmp_path)


def differ(rank, ranks, store, one, other):
    """Rank 1 counts something else than the others."""
    live, _ = begin(rank, ranks, store, **(one if rank == 1 else other))
    for number in range(8):
        live.counter.add(0, torch.from_numpy(chosen(rank, number)[0]))
        live.step()
    return live.state.value, "do not agree" in live.reason, live.executor.versions.tolist()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"pairs_every": 2}, {}),
        ({}, {"pairs_every": 2}),
        ({"pairs_every": 2}, {"pairs_every": 3}),
        ({"unit": "batches"}, {}),
    ],
)
def test_ranks_that_count_something_else_notice_before_anything_moves(one, other):
    answers = run(3, differ, one, other)
    assert [(state, versions) for state, _, versions in answers] == [("degraded", [0] * moe.LAYERS)] * 3
    assert any(said for _, said, _ in answers)


def outlive(rank, ranks, store, victim):
    """A rank dies between its loads and its pairs, when the second window is added up; the others go on."""
    transport = Fragile(list(range(ranks)), store, deadline_s=FOREVER).set("kill", "window", 4)
    if rank != victim:
        transport.at = None
    live, tensors = begin(rank, ranks, store, transport=transport, pairs_every=1)
    for number in range(60):
        for layer, topk in enumerate(chosen(rank, number)):
            live.counter.add(layer, torch.from_numpy(topk))
        if live.step().value == "degraded":
            break
    else:
        return None
    left = [other for other in range(ranks) if other != victim]
    live.reload = loader(live.weights)
    again = live.recover(TorchTransport(left, store, deadline_s=DEADLINE, epoch=1), Topology(len(left), 3))
    live.counter.take()
    live.counter.take_pairs()
    seen = Seen()
    live._witness = Witness(seen, None)
    for number in range(6):
        for layer, topk in enumerate(chosen(rank, number)):
            live.counter.add(layer, torch.from_numpy(topk))
        live.step()
    return again, moe.holds(tensors, live.slots_of), [pairs.tolist() for pairs in seen.pairs]


class Seen:
    """A recorder that keeps pairs."""

    def __init__(self):
        self.pairs = []

    def add(self, counts, step=None, steps=1, *, pairs=None):
        self.pairs.append(pairs.copy())


@pytest.mark.parametrize("victim", [0, 2])
def test_survivors_count_on_after_a_rank_died_between_loads_and_pairs(victim):
    answers = run(4, outlive, victim, gone=victim)
    left = [rank for rank in range(4) if rank != victim]
    assert [answers[rank][:2] for rank in left] == [(True, True)] * 3
    topk = [chosen(rank, number) for rank in left for number in range(4)]
    together = eq.count_pairs(Routes(np.concatenate(topk, axis=1), moe.EXPERTS)).counts.tolist()
    assert [answers[rank][2] for rank in left] == [[together], [], []]


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ArgumentError, match="unit must be tokens or batches, got 'passes'"):
        run_alone(unit="passes")
    with pytest.raises(ArgumentError, match="pairs_every must be an integer from 1"):
        run_alone(pairs_every=0)
    with pytest.raises(ArgumentError, match="the cost model is one of tokens"):
        run_alone(cost=cost_model("qwen3-30b"), unit="batches")


def run_alone(cost=None, **more):
    """A live balancer on one rank, which fails before it needs a group."""
    balancer = Balancer(Topology(1, 9), moe.LAYERS, moe.EXPERTS, cost=cost)
    transport = SimpleNamespace(num_ranks=1, members=[0], rank=0)
    LiveBalancer(balancer, ExpertWeights(moe.empty(9)), transport, None, **more)
