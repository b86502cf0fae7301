"""Ranks that were set up differently, plans that come late, and meetings in the middle of something else."""

from __future__ import annotations

import logging
import threading
import time
from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")
# ruff: noqa: E402 - what follows imports torch

import small_moe as moe
from forked import run
from live_ranks import DEADLINE, SHORT, Policy, begin, loader

from equipoise import Balancer, Topology, TraceWriter, contiguous_placement
from equipoise.errors import ArgumentError
from equipoise.problem import Held
from equipoise.runtime.live import LiveBalancer
from equipoise.runtime.membership import DISAGREE
from equipoise.runtime.pace import Pace, State
from equipoise.runtime.planner import MOST_WAITING, Planner
from equipoise.runtime.transport import TorchTransport
from equipoise.runtime.weights import ExpertWeights


def begin_otherwise(rank, ranks, store, *, nodes=1, turned=False, policy=None, pace=None):
    """A live balancer of a rank that may think of other nodes, or name its tensors in another order."""
    balancer = Balancer(
        Topology(ranks, 3, num_nodes=nodes),
        moe.LAYERS,
        moe.EXPERTS,
        policy=policy or Policy(),
        max_moves=None,
    )
    tensors = moe.empty(3)  # both of an expert's tensors have as many bytes
    if turned:
        tensors = [dict(reversed(layer.items())) for layer in tensors]
    transport = TorchTransport(list(range(ranks)), store, deadline_s=DEADLINE)
    placed = contiguous_placement(moe.LAYERS, moe.EXPERTS, ranks, 3 * ranks)
    pace = pace or Pace(interval=4, ask_every=1)
    live = LiveBalancer(balancer, ExpertWeights(tensors), transport, placed, pace=pace)
    moe.fill(tensors, live.slots_of)
    return live, tensors


def count(live):
    for layer in range(moe.LAYERS):
        live.counter.add(layer, torch.tensor([[layer, 1 + layer]] * 8))
    return live.step()


def differ(rank, ranks, store, how):
    """Rank 1 differs. Either would send what another takes for something else, for sizes are the same."""
    odd = rank == 1
    more = {
        "nodes": {"nodes": 2 if odd else 1},
        "order": {"turned": odd},
        "nothing": {},
    }[how]
    live, tensors = begin_otherwise(rank, ranks, store, **more)
    good = True
    while live.state is not State.DEGRADED and not live.executor.versions.all():
        count(live)
        good &= moe.holds(tensors, live.slots_of)
    return good, live.reason == DISAGREE, bool(live.executor.versions.any())


@pytest.mark.parametrize("how", ["nodes", "order", "nothing"])
def test_ranks_that_were_set_up_otherwise_move_nothing(how):
    assert run(4, differ, how) == [(True, how != "nothing", how == "nothing")] * 4


def recover_otherwise(rank, ranks, store, how):
    live, tensors = begin(rank, ranks, store)
    transport = TorchTransport(list(range(ranks)), store, deadline_s=SHORT, epoch=1)
    nodes = 2 if how == "nodes" and rank == 1 else 1
    limit = 4 * SHORT if how == "limit" and rank == 1 else SHORT
    again = live.recover(transport, Topology(ranks, 3, num_nodes=nodes), limit_s=limit)
    return again, live.reason == DISAGREE, moe.holds(tensors, live.slots_of)


@pytest.mark.parametrize("how", ["nodes", "limit"])
def test_ranks_that_recover_otherwise_move_nothing(how):
    assert run(4, recover_otherwise, how) == [(False, True, True)] * 4


class SlowAtFirst(Policy):
    """Its first plan takes some seconds."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = [seconds]

    def place(self, problem):
        time.sleep(self.seconds.pop() if self.seconds else 0)
        return super().place(problem)


def lose_one_while_planning(rank, ranks, store):
    """The plan that is being made is for four ranks, and comes while three wait for theirs."""
    pace = Pace(interval=2, ask_every=1)
    live, tensors = begin_otherwise(rank, ranks, store, policy=SlowAtFirst(1.0), pace=pace)
    live.reload = loader(live.weights)
    while live.state is not State.PLANNING:
        count(live)
    if rank == 3:
        return None
    transport = TorchTransport([0, 1, 2], store, deadline_s=DEADLINE, epoch=1)
    again = live.recover(transport, Topology(3, 3))
    return again, live.executor.phy2log.shape, moe.holds(tensors, live.slots_of)


def test_a_plan_for_the_ranks_before_is_not_taken_for_one_of_those_that_are_left():
    assert run(4, lose_one_while_planning)[:3] == [(True, (moe.LAYERS, 9), True)] * 3


def recover_in_a_pause(rank, ranks, store, when):
    live, tensors = begin(rank, ranks, store, pace=Pace(interval=2, ask_every=2))
    while live.state is not when:
        count(live)
    with live.paused():
        transport = TorchTransport(list(range(ranks)), store, deadline_s=DEADLINE, epoch=1)
        good = live.recover(transport, Topology(ranks, 3))
    after = live.state
    for _ in range(6):
        good &= count(live) is not State.DEGRADED
    return good, after.value, moe.holds(tensors, live.slots_of)


@pytest.mark.parametrize("when", [State.REDUCING, State.PLANNING, State.MOVING])
def test_ranks_may_recover_in_a_pause(when):
    assert run(3, recover_in_a_pause, when) == [(True, "recording", True)] * 3


class Failed:
    """Stands in for metrics: notes plans that failed."""

    def __init__(self):
        self.number = 0

    def failed(self):
        self.number += 1

    def enter(self, state):
        pass

    def lost(self, experts):
        pass


def come_late(rank, ranks, store):
    lines = []
    log, handler = logging.getLogger("equipoise"), logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    metrics = Failed()
    pace = Pace(interval=2, ask_every=1, patience=2)
    live, _ = begin(rank, ranks, store, policy="slow", pace=pace, metrics=metrics)
    states = [count(live) for _ in range(15)]
    ended = sum(one is State.PLANNING and two is State.RECORDING for one, two in pairwise(states))
    return ended, metrics.number, sum("took too long" in line for line in lines)


def test_plans_that_come_late_are_counted_and_logged():
    answers = run(3, come_late)
    ended, failed, logged = answers[0]
    assert ended == failed == logged >= 2
    assert [answer[1:] for answer in answers[1:]] == [(0, 0)] * 2


def test_a_plan_that_does_not_end_keeps_no_windows_without_end():
    begun, over = threading.Event(), threading.Event()

    class Endless(Policy):
        def place(self, problem):
            begun.set()
            over.wait(60)
            return super().place(problem)

    balancer = Balancer(Topology(2, 2), 1, 4, policy=Endless(), max_moves=None)
    planner = Planner(balancer)
    planner.observe(np.ones((1, 4)), 1)
    placement = contiguous_placement(1, 4, 2, 4)
    planner.start(Held(placement.phy2log, 2, 4))
    assert begun.wait(60)
    for _ in range(10 * MOST_WAITING):
        planner.observe(np.ones((1, 4)), 1)
    planner.commit(placement)
    assert len(planner._waiting) == MOST_WAITING + 1
    over.set()
    assert planner.answer(60) is not None
    planner.observe(np.ones((1, 4)), 1)
    assert not planner._waiting
    assert balancer.placement is placement  # whatever the load did, what is served came through


def test_a_forecast_that_needs_phases_is_refused():
    balancer = Balancer(Topology(1, 8), moe.LAYERS, moe.EXPERTS, forecast="phase-mix")
    with pytest.raises(ArgumentError, match="phases"):
        LiveBalancer(balancer, ExpertWeights(moe.empty(8)), None, None)


def test_a_pace_that_ranks_could_not_compare_is_refused():
    assert Pace(layers_per_step=(1 << 62) - 1)
    with pytest.raises(ArgumentError, match="layers_per_step"):
        Pace(layers_per_step=1 << 62)


def record_in_vain(rank, ranks, store, folder):
    """A writer that was closed too early, as at the end of a server."""
    writer = None
    if rank == 0:
        writer = TraceWriter(folder, moe.LAYERS, moe.EXPERTS)
        writer.close()
    live, tensors = begin(rank, ranks, store, recorder=writer, pace=Pace(interval=2, ask_every=1))
    while live.state is not State.DEGRADED and not live.executor.versions.all():
        count(live)
    return live.state is not State.DEGRADED, moe.holds(tensors, live.slots_of)


def test_a_recorder_that_raises_does_not_end_balancing(tmp_path):
    assert run(3, record_in_vain, str(tmp_path / "trace")) == [(True, True)] * 3


class Raises:
    """Metrics of which every call raises."""

    def __getattr__(self, name):
        raise RuntimeError(f"no {name} here")


def count_in_vain(rank, ranks, store):
    live, tensors = begin(rank, ranks, store, metrics=Raises(), pace=Pace(interval=2, ask_every=1))
    while live.state is not State.DEGRADED and not live.executor.versions.all():
        count(live)
    return live.state is not State.DEGRADED, moe.holds(tensors, live.slots_of)


def test_metrics_that_raise_do_not_end_balancing():
    assert run(3, count_in_vain) == [(True, True)] * 3
