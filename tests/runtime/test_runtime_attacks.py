"""What users of a live balancer do that nobody planned for: each ends in serving, on all ranks alike."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
# ruff: noqa: E402 - what follows imports torch

import small_moe as moe
import torch.distributed as dist
from forked import run
from live_ranks import DEADLINE, FOREVER, SHORT, Policy, begin, loader

from equipoise import (
    Balancer,
    Placement,
    Topology,
    TraceWriter,
    contiguous_placement,
    imbalance,
    load_trace,
    rank_loads,
)
from equipoise.runtime.live import LiveBalancer
from equipoise.runtime.pace import Pace, State
from equipoise.runtime.transport import TorchTransport
from equipoise.runtime.weights import ExpertWeights


def right(step, shift, live, tensors):
    """Whether a forward pass gives the bits of the whole model, and slots hold what the map says."""
    x = moe.tokens(step, 5)
    same = torch.equal(moe.served(x, shift, live, tensors, dist.group.WORLD), moe.alone(x, shift))
    return same and moe.holds(tensors, live.slots_of)


def side_by_side(rank, ranks, store):
    """A draft and a target model, each with a balancer, in one process and over one store; only one is disturbed."""
    parts = []
    for name in ("target", "draft"):
        room = dist.PrefixStore(name, store)
        parts.append(begin(rank, ranks, room, pace=Pace(interval=3, ask_every=1, layers_per_step=1)))
    good, seen = True, set()
    step = 0
    while step < 20 or min(live.executor.versions.min() for live, _ in parts) < 1:
        step += 1
        for number, (live, tensors) in enumerate(parts):
            good &= right(step + 100 * number, number, live, tensors)
            seen.add((number, live.step().value))
    parts[0][0].transport.abort()
    for step in range(12):
        live, tensors = parts[1]
        good &= right(step, 2, live, tensors)
        live.step()
    target, draft = (live for live, _ in parts)
    return (
        bool(good),
        seen,
        target.step().value,
        draft.state is not State.DEGRADED,
        draft.executor.versions.min(),
    )


def test_a_draft_and_a_target_model_do_not_hear_each_other():
    for good, seen, target, draft, versions in run(3, side_by_side):
        assert good
        assert {(0, "moving"), (1, "moving")} <= seen
        assert (target, draft) == ("degraded", True)
        assert versions >= 1


def change_pace(rank, ranks, store, everywhere):
    live, tensors = begin(
        rank, ranks, store, transport=TorchTransport(list(range(ranks)), store, deadline_s=SHORT)
    )
    good = True
    for step in range(24):
        if step == 6 and (everywhere or rank == 1):
            live.pace = Pace(interval=2, ask_every=1, layers_per_step=3)
        live.counter.add(0, torch.tensor([[0, 1], [step % 8, 2]]))
        live.step()
        good &= moe.holds(tensors, live.slots_of)
    return good, live.state is State.DEGRADED, live.executor.versions.tolist()


@pytest.mark.parametrize("everywhere", [True, False])
def test_a_pace_may_change_on_all_ranks_and_not_on_one(everywhere):
    answers = run(3, change_pace, everywhere)
    assert all(good for good, *_ in answers)
    assert [degraded for _, degraded, _ in answers] == [not everywhere] * 3
    assert not everywhere or all(answer == answers[0] for answer in answers)


def recover_twice(rank, ranks, store):
    """With the group that is there, and with another one that has the same ranks."""
    live, tensors = begin(rank, ranks, store)
    live.reload = loader(live.weights)
    good = True
    for epoch, transport in enumerate([live.transport, None, live.transport]):
        if transport is None or epoch == 2:
            transport = TorchTransport(list(range(ranks)), store, deadline_s=DEADLINE, epoch=10 + epoch)
        good &= live.recover(transport, Topology(ranks, 3))
        for step in range(8):
            good &= right(step, epoch, live, tensors)
            good &= live.step() is not State.DEGRADED
    return bool(good), live.executor.phy2log.tolist(), live.executor.versions.tolist()


def test_recovering_again_without_need_changes_nothing_for_the_worse():
    answers = run(3, recover_twice)
    assert answers[0][0]
    assert all(answer == answers[0] for answer in answers)


def raise_inside(rank, ranks, store, when):
    """One rank gives up in the middle of a forward pass, and its server with it; the others notice in their step."""
    transport = TorchTransport(list(range(ranks)), store, deadline_s=FOREVER)
    live, tensors = begin(rank, ranks, store, transport=transport)
    good, number = True, 0
    while live.state is not State.DEGRADED and number < 60:
        for layer in range(moe.LAYERS):
            live.counter.add(layer, torch.tensor([[layer, 7 - layer], [1, 2]]))
            if rank == 1 and live.state is when and layer == 1:
                transport.abort()
                return None
        live.step()
        good &= moe.holds(tensors, live.slots_of)
        number += 1
    return good, live.state.value, "given up" in live.reason or "peer" in live.reason


@pytest.mark.parametrize("when", [State.RECORDING, State.REDUCING, State.PLANNING, State.MOVING])
def test_a_rank_that_raises_in_a_forward_pass_takes_nobody_along(when):
    answers = run(3, raise_inside, when)
    assert answers[1] is None
    assert [answers[0], answers[2]] == [(True, "degraded", True)] * 2


def leave_while_recording(rank, ranks, store):
    """No call to the group is due before the end of days; those that are left notice all the same."""
    pace = Pace(interval=1 << 60)
    transport = TorchTransport(list(range(ranks)), store, deadline_s=FOREVER)
    live, _ = begin(rank, ranks, store, transport=transport, pace=pace)
    if rank == 1:
        transport.abort()
        return None
    while live.step() is not State.DEGRADED:
        pass
    return live.reason


def test_a_rank_that_leaves_is_noticed_by_those_who_only_count():
    assert run(3, leave_while_recording) == ["another rank has given up", None, "another rank has given up"]


def pause_everywhere(rank, ranks, store):
    """Weights are trained in every state that there is; what was under way goes on afterwards with the new ones."""
    live, tensors = begin(rank, ranks, store, pace=Pace(interval=2, ask_every=2, layers_per_step=1))
    good, paused, generation = True, [], 0
    for step in range(40):
        x = moe.tokens(step, 4)
        out = moe.served(x, step // 10, live, tensors, dist.group.WORLD)
        good &= torch.equal(out, moe.alone(x, step // 10, generation))
        state = live.step()
        if state.value not in paused or state is State.MOVING:
            paused.append(state.value)
            with live.paused():
                generation += 1
                moe.fill(tensors, live.slots_of, generation)
            good &= live.state is state
        good &= moe.holds(tensors, live.slots_of, generation)
    return bool(good), paused, live.executor.versions.tolist()


def test_a_pause_in_any_state_keeps_new_weights():
    answers = run(3, pause_everywhere)
    good, paused, versions = answers[0]
    assert all(answer == answers[0] for answer in answers)
    assert good
    assert {"recording", "reducing", "planning", "moving"} <= set(paused)
    assert paused.count("moving") >= 2
    assert max(versions) >= 1


def pause_and_raise(rank, ranks, store):
    """What is raised inside a pause comes out, and serving goes on."""
    live, _ = begin(rank, ranks, store)
    try:
        with live.paused():
            raise KeyError("weights")
    except KeyError:
        pass
    states = {live.step() for _ in range(12)}
    return State.DEGRADED in states, len(states)


def test_an_error_inside_a_pause_comes_out_and_serving_goes_on():
    assert run(3, pause_and_raise) == [(False, 3)] * 3


def serve_alone(rank, ranks, store):
    """One rank has nobody to talk to, and slots that change their experts."""
    live, tensors = begin(rank, ranks, store, slots=11, pace=Pace(interval=2, ask_every=1, layers_per_step=2))
    good = True
    for step in range(20):
        good &= right(step, step // 5, live, tensors)
        good &= live.step() is not State.DEGRADED
    return bool(good), min(live.executor.versions.tolist())


def test_a_world_of_one_rank():
    [(good, versions)] = run(1, serve_alone)
    assert good
    assert versions >= 1


def write_down(rank, ranks, store, folder):
    """Real counts through a real writer; the windows that all ranks counted come back."""
    writer = None
    if rank == 0:
        writer = TraceWriter(folder, num_layers=moe.LAYERS, num_experts=moe.EXPERTS, source="runtime")
    live, _ = begin(rank, ranks, store, recorder=writer, pace=Pace(interval=3, ask_every=1, patience=1))
    rng = np.random.default_rng(rank)
    windows, window = [], torch.zeros(moe.LAYERS, moe.EXPERTS, dtype=torch.int64)
    for _ in range(24):
        for layer in range(moe.LAYERS):
            chosen = torch.from_numpy(rng.integers(-1, moe.EXPERTS, (6, 2)))
            valid = torch.from_numpy(rng.random(6) < 0.8)
            live.counter.add(layer, chosen, valid)
            kept = chosen[valid]
            window[layer] += torch.bincount(kept[kept >= 0], minlength=moe.EXPERTS)
        if live.step() is State.REDUCING:
            total = window.clone()
            dist.all_reduce(total)
            windows.append(total.tolist())
            window.zero_()
    if writer is not None:
        writer.close()
    return windows


def test_a_recording_holds_what_all_ranks_counted(tmp_path):
    windows, *others = run(3, write_down, str(tmp_path / "trace"))
    assert len(windows) >= 3
    assert others == [windows] * 2
    trace = load_trace(tmp_path / "trace")
    counted = np.array(windows[: len(trace.counts)])
    assert len(windows) - len(trace.counts) <= 1  # the last one may be on its way still
    assert np.array_equal(trace.counts, counted)
    assert trace.steps is not None
    assert (np.diff(trace.steps, axis=1) >= 3).all()


def idle(rank, ranks, store):
    """Windows without a token are no reason to plan: a server that warms up, or has nobody to serve."""
    live, _ = begin(rank, ranks, store)
    states = [live.step(record=False).value for _ in range(16)]
    return states.count("moving"), live.executor.versions.tolist(), states[-1] != "degraded"


def test_without_load_nothing_moves():
    assert run(3, idle) == [(0, [0, 0, 0], True)] * 3


class Noted(TorchTransport):
    """Notes every call that all ranks have to make together."""

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.calls = []

    def exchange(self, send, receive):
        self.calls.append("round")
        super().exchange(send, receive)

    def lowest(self, *values):
        self.calls.append(f"lowest of {len(values)}")
        return super().lowest(*values)

    def add_up(self, table):
        self.calls.append(f"sum of {len(table)}")
        return super().add_up(table)

    def broadcast(self, tensor, source):
        self.calls.append(f"broadcast of {tensor.numel()}")
        super().broadcast(tensor, source)


def follow(rank, ranks, store, policy):
    transport = Noted(list(range(ranks)), store, deadline_s=DEADLINE)
    mine = policy if rank == 0 else "good"
    live, _ = begin(rank, ranks, store, policy=mine, transport=transport)
    step = 0
    while step < 20 or (policy == "good" and not live.executor.versions.any()):
        live.counter.add(step % moe.LAYERS, torch.tensor([[0, 1 + rank], [step % 8, 2]]))
        live.step()
        step += 1
    return transport.calls


@pytest.mark.parametrize("policy", ["good", "raises", "exits", "slow", "illegal"])
def test_all_ranks_make_the_same_calls_whatever_planning_does(policy):
    answers = run(4, follow, policy)
    assert len(answers[0]) >= 4
    assert all(calls == answers[0] for calls in answers)
    assert ("round" in answers[0]) == (policy == "good")


def note_order(rank, ranks, store):
    """Which layer was committed after which, and what each of them gained on the window."""
    live, _ = begin(rank, ranks, store)
    while live.state is not State.MOVING:
        for layer in range(moe.LAYERS):
            hot = torch.full((20 * (layer % 2) + 10 * layer + 4, 1), 1)
            live.counter.add(layer, torch.cat([hot, torch.arange(moe.EXPERTS)[:, None]]))
        live.step()
    old, order = live.executor.phy2log.copy(), []
    while live.state is State.MOVING:
        before = live.executor.versions.copy()
        live.step()
        order += np.flatnonzero(live.executor.versions > before).tolist()
    maps = [Placement(each, ranks, moe.EXPERTS) for each in (old, live.executor.phy2log)]
    was, now = (imbalance(rank_loads(live._window, each)) for each in maps)
    return order, (was - now)[order].tolist()


def test_layers_that_gain_most_move_first():
    answers = run(4, note_order)
    order, gains = answers[0]
    assert all(answer == answers[0] for answer in answers)
    assert sorted(order) == [0, 1, 2]
    assert order != [0, 1, 2]
    assert gains == sorted(gains, reverse=True)


class Still(Policy):
    """Wants one layer changed."""

    def place(self, problem):
        phy2log = problem.held.phy2log.copy()
        phy2log[1, [0, -1]] = phy2log[1, [-1, 0]]
        return phy2log


def change_one_layer(rank, ranks, store):
    topology = Topology(ranks, 3)
    balancer = Balancer(topology, moe.LAYERS, moe.EXPERTS, policy=Still(), max_moves=None)
    transport = Noted(list(range(ranks)), store, deadline_s=DEADLINE)
    tensors = moe.empty(3)
    placed = contiguous_placement(moe.LAYERS, moe.EXPERTS, ranks, 3 * ranks)
    live = LiveBalancer(
        balancer, ExpertWeights(tensors), transport, placed, pace=Pace(interval=4, ask_every=1)
    )
    moe.fill(tensors, live.slots_of)
    while not live.executor.versions.any():
        live.counter.add(0, torch.tensor([[0, 1]]))
        live.step()
    return live.executor.versions.tolist(), transport.calls.count("round"), moe.holds(tensors, live.slots_of)


def test_layers_that_stay_as_they_are_cost_no_round():
    assert run(4, change_one_layer) == [([0, 1, 0], 1, True)] * 4
