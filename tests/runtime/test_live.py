"""A model that serves while its experts move: outputs stay the same bits, whatever policies and ranks do."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
# ruff: noqa: E402 - what follows imports torch

import small_moe as moe
import torch.distributed as dist
from forked import run
from live_ranks import DEADLINE, FOREVER, SHORT, SLACK, Fragile, Policy, begin, loader, other_group

from equipoise import ArgumentError, Balancer, EquipoiseError, Placement, Topology, contiguous_placement
from equipoise.control.metrics import Metrics
from equipoise.runtime.live import LiveBalancer, Pace, State
from equipoise.runtime.transport import TorchTransport
from equipoise.runtime.weights import ExpertWeights


def serve(rank, ranks, store, layers_per_step):
    pace = Pace(interval=4, ask_every=1, layers_per_step=layers_per_step)
    live, tensors = begin(rank, ranks, store, pace=pace, slots=6 if ranks == 2 else 3)
    watched = [t for row in tensors for t in row.values()]
    watched += [live.maps.phy2log, live.maps.log2phy, live.maps.logcnt]
    addresses = [tensor.data_ptr() for tensor in watched]
    good, states, window = True, [], 0
    for step in range(36):
        count, shift = (1, 5, 32, 128)[step % 4] if step < 8 else 6, step // 12
        x = moe.tokens(step, count)
        good &= torch.equal(moe.served(x, shift, live, tensors, dist.group.WORLD), moe.alone(x, shift))
        window += count
        states.append(live.step().value)
        if states[-2:] == ["recording", "reducing"]:
            counted, window = window, 0
        if states[-2:] == ["reducing", "planning"]:
            good &= (live._window.sum(1) == counted * moe.TOP_K).all()  # no token is lost or counted twice
        good &= moe.holds(tensors, live.slots_of)
        good &= np.array_equal(live.maps.phy2log.numpy(), live.executor.phy2log)
    good &= addresses == [tensor.data_ptr() for tensor in watched]
    return bool(good), states, live.executor.versions.tolist(), live.executor.phy2log.tolist()


@pytest.mark.parametrize(("ranks", "layers_per_step"), [(2, 3), (4, 1), (4, 2)])
def test_outputs_are_the_same_bits_before_during_and_after(ranks, layers_per_step):
    first, *others = run(ranks, serve, layers_per_step)
    good, states, versions, _ = first
    assert good
    assert min(versions) >= 1
    assert {"recording", "reducing", "planning", "moving"} <= set(states)
    assert all(other == first for other in others)  # also the states after every step


def misbehave(rank, ranks, store, policy):
    pace = Pace(interval=3, ask_every=1, patience=2)
    live, tensors = begin(rank, ranks, store, pace=pace, policy=policy)
    states = []
    for step in range(14):
        moe.served(moe.tokens(step, 4), 0, live, tensors, dist.group.WORLD)
        states.append(live.step().value)
    threads = sum(thread.name == "equipoise-plan" for thread in threading.enumerate())
    return states, live.executor.versions.tolist(), moe.holds(tensors, live.slots_of), threads


@pytest.mark.parametrize("policy", ["raises", "exits", "slow", "illegal"])
def test_a_policy_that_misbehaves_changes_nothing(policy):
    answers = run(4, misbehave, policy)
    assert len({tuple(states) for states, *_ in answers}) == 1
    for states, versions, good, threads in answers:
        assert good
        assert versions == [0, 0, 0]
        assert set(states) == {"recording", "reducing", "planning"}
        assert states.count("recording") > 4
        assert threads <= 1


def survive(rank, ranks, store, victim, what, at, number):
    deadline = SHORT if what == "stop" else FOREVER
    transport = Fragile(list(range(ranks)), store, deadline_s=deadline).set(what, at, number)
    if rank != victim:
        transport.at = None
    live, tensors = begin(rank, ranks, store, transport=transport)
    live.reload = loader(live.weights)
    good, noticed = True, None
    for _ in range(40):
        for layer in range(moe.LAYERS):
            live.counter.add(
                layer, torch.tensor([[layer, layer + 1]] * 8)
            )  # without collectives that would fail by themselves
        start = time.monotonic()
        if live.step() is State.DEGRADED:
            noticed = time.monotonic() - start
            break
    if noticed is None:
        return None
    whole = moe.holds(tensors, live.slots_of)
    left = [other for other in range(ranks) if other != victim]
    again = live.recover(TorchTransport(left, store, deadline_s=DEADLINE, epoch=1), Topology(len(left), 3))
    group = other_group(left, rank, store, 1)
    for step in range(12):
        x = moe.tokens(step, 4)
        good &= torch.equal(moe.served(x, 1, live, tensors, group), moe.alone(x, 1))
        good &= live.step() is not State.DEGRADED
        good &= moe.holds(tensors, live.slots_of)
    return {
        "whole": whole,
        "noticed": noticed,
        "again": again,
        "good": bool(good),
        "same": (live.executor.phy2log.tolist(), live.executor.versions.tolist()),
    }


KILLED_AT = [
    ("window", 1),
    ("broadcast", 1),
    ("broadcast", 2),
    ("round", 1),
    ("round", 3),
    ("vote", 1),
    ("vote", 2),
    ("commit", 1),
    ("commit", 3),
]
STOPPED_AT = [
    ("broadcast", 1, 0),
    ("round", 2, 1),
    ("vote", 2, 3),
    ("commit", 1, 0),
]  # each waits for a deadline


@pytest.mark.parametrize(
    ("what", "at", "number", "victim"),
    [
        *(("kill", *call, victim) for call in KILLED_AT for victim in (0, 1, 3)),
        *(pytest.param("stop", *call, marks=pytest.mark.waits) for call in STOPPED_AT),
    ],
)
def test_survivors_serve_on_after_a_rank_is_gone(what, at, number, victim):
    answers = run(4, survive, victim, what, at, number, gone=victim)
    left = [answer for rank, answer in enumerate(answers) if rank != victim]
    assert answers[victim] is None
    for answer in left:
        assert what == "kill" or answer["noticed"] < SHORT + SLACK
        assert answer["whole"]
        assert answer["again"]
        assert answer["good"]
        assert answer["same"] == left[0]["same"]


def serve_without_store(rank, ranks, store, how):
    live, tensors = begin(
        rank, ranks, store, transport=TorchTransport(list(range(ranks)), store, deadline_s=SHORT)
    )
    took, since = [], 0
    for step in range(200):
        live.counter.add(0, torch.tensor([[0, 1]] * 8))
        if step == 5 and rank == 0:
            os.kill(int(store.get("host")), how)
        start = time.monotonic()
        since += live.step() is State.DEGRADED
        took.append(time.monotonic() - start)
        if since == 5:
            break
        time.sleep(0.05)
    return live.state.value, moe.holds(tensors, live.slots_of), max(took) < 10


@pytest.mark.waits
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_without_a_store_all_ranks_serve_on_as_they_are(how):
    assert run(4, serve_without_store, how) == [("degraded", True, True)] * 4


def breathe(rank, ranks, store):
    """Four ranks become three and four again; the last one comes back with nothing."""
    live, tensors = begin(rank, ranks, store)
    live.reload = loader(live.weights)
    outcome = []
    for epoch, members in enumerate([[0, 1, 2], [0, 1, 2, 3]], start=1):
        if rank == 3 and epoch == 1:
            continue
        transport = TorchTransport(members, store, deadline_s=DEADLINE, epoch=epoch)
        if rank == 3:
            balancer = Balancer(Topology(4, 3), moe.LAYERS, moe.EXPERTS, policy=Policy(), max_moves=None)
            tensors = moe.empty(3)
            live = LiveBalancer(balancer, ExpertWeights(tensors), transport, None, pace=live.pace)
            assert live.step() is State.DEGRADED
            assert live.slots_of(0) == {}
        outcome.append(live.recover(transport, Topology(len(members), 3)))
        group = other_group(members, rank, store, epoch)
        for step in range(15):
            x = moe.tokens(step, 5)
            outcome.append(torch.equal(moe.served(x, epoch, live, tensors, group), moe.alone(x, epoch)))
            outcome.append(live.step() is not State.DEGRADED)
            outcome.append(moe.holds(tensors, live.slots_of))
    return all(outcome), live.executor.phy2log.tolist()


def test_four_ranks_three_ranks_four_ranks():
    answers = run(4, breathe)
    assert all(good for good, _ in answers)
    assert all(phy2log == answers[0][1] for _, phy2log in answers)
    assert min(min(row) for row in answers[0][1]) >= 0


def train(rank, ranks, store):
    """Weights change while experts move; a transfer must not bring the old ones back."""
    live, tensors = begin(rank, ranks, store)
    good, generation, seen = True, 0, []
    for step in range(24):
        x = moe.tokens(step, 4)
        out = moe.served(x, step // 8, live, tensors, dist.group.WORLD)
        good &= torch.equal(out, moe.alone(x, step // 8, generation))
        live.step()
        if step % 3 == 0:
            seen.append(live.state.value)
            with live.paused():
                generation += 1
                moe.fill(tensors, live.slots_of, generation)
                live.step()
                good &= live.state is State.PAUSED
        good &= moe.holds(tensors, live.slots_of, generation)
    return bool(good), seen, live.executor.versions.tolist()


def test_weights_that_are_changed_in_a_pause_stay_changed():
    answers = run(4, train)
    good, seen, versions = answers[0]
    assert all(answer == answers[0] for answer in answers)
    assert good
    assert "moving" in seen
    assert max(versions) >= 1


def disagree(rank, ranks, store, how):
    placed = contiguous_placement(moe.LAYERS, moe.EXPERTS, ranks, ranks * 3)
    if rank == 1 and how == "map":
        other = placed.phy2log.copy()
        other[0] = np.roll(other[0], 1)
        placed = Placement(other, ranks, moe.EXPERTS)
    pace = Pace(interval=4, ask_every=2 if rank == 1 and how == "pace" else 1)
    live, tensors = begin(rank, ranks, store, placed=placed, pace=pace)
    for _ in range(6):
        live.step()
    again = live.recover(
        TorchTransport(list(range(ranks)), store, deadline_s=DEADLINE, epoch=1), Topology(ranks, 3)
    )
    try:
        with live.paused():
            raise AssertionError("paused")
    except EquipoiseError:
        pass
    return live.state.value, live.executor.versions.tolist(), moe.holds(tensors, live.slots_of), again


def test_ranks_with_other_maps_never_move_anything():
    assert run(4, disagree, "map") == [("degraded", [0, 0, 0], True, False)] * 4


def test_ranks_at_another_pace_notice_before_anything_moves():
    for answer in run(4, disagree, "pace"):
        assert answer[1:3] == ([0, 0, 0], True)


def die_one_after_the_other(rank, ranks, store, at, number):
    """While four of five ranks recover, another one dies; the three that are left recover from that."""
    live, tensors = begin(rank, ranks, store)
    live.reload = loader(live.weights)
    if rank == 4:
        return None
    transport = Fragile([0, 1, 2, 3], store, deadline_s=FOREVER, epoch=1)
    transport.set("kill", at if rank == 3 else None, number)
    first = live.recover(transport, Topology(4, 3))
    whole = moe.holds(tensors, live.slots_of)
    again = live.recover(TorchTransport([0, 1, 2], store, deadline_s=DEADLINE, epoch=2), Topology(3, 3))
    group, good = other_group([0, 1, 2], rank, store, 2), True
    for step in range(8):
        x = moe.tokens(step, 4)
        good &= torch.equal(moe.served(x, 1, live, tensors, group), moe.alone(x, 1))
        good &= live.step() is not State.DEGRADED
        good &= moe.holds(tensors, live.slots_of)
    return first, whole, again, bool(good), live.executor.phy2log.tolist()


@pytest.mark.parametrize(
    ("at", "number"),
    [("any", 1), ("any", 2), ("any", 4), ("broadcast", 1), ("round", 1), ("vote", 2), ("commit", 2)],
)
def test_a_rank_that_dies_while_the_others_recover(at, number):
    answers = run(5, die_one_after_the_other, at, number, gone=3)
    assert answers[3] is None
    left = answers[:3]
    assert all(answer == left[0] for answer in left)
    assert left[0][:4] == (False, True, True, True)


def roll_forward_and_fail(rank, ranks, store):
    """Rank 1 hears no result of a vote, rolls forward when ranks meet, and then that meeting fails."""
    transport = Fragile(list(range(ranks)), store, deadline_s=FOREVER)
    transport.set("drop", "commit" if rank == 1 else None, 2)
    live, tensors = begin(rank, ranks, store, transport=transport)
    live.reload = loader(live.weights)
    while live.state is not State.DEGRADED:
        for layer in range(moe.LAYERS):
            live.counter.add(layer, torch.tensor([[layer, layer + 1]] * 8))
        live.step()
    behind = live.executor.versions.tolist()
    meeting = Fragile(list(range(ranks)), store, deadline_s=FOREVER, epoch=1)
    meeting.set("kill", "any" if rank == 3 else None, 4)  # the call after that which tells of versions
    first = live.recover(meeting, Topology(ranks, 3))
    shown = np.array_equal(live.maps.phy2log.numpy(), live.executor.phy2log)
    whole = moe.holds(tensors, live.slots_of)
    ahead = live.executor.versions.tolist()
    again = live.recover(TorchTransport([0, 1, 2], store, deadline_s=DEADLINE, epoch=2), Topology(3, 3))
    return behind, first, shown, whole, ahead, again, moe.holds(tensors, live.slots_of)


def test_a_rank_that_rolled_forward_shows_it_even_where_the_meeting_fails():
    answers = run(4, roll_forward_and_fail, gone=3)
    assert answers[3] is None
    after = answers[0][4]
    assert sum(answers[1][0]) == sum(after) - 1
    assert [answer[1:] for answer in answers[:3]] == [(False, True, True, after, True, True)] * 3


def lose_for_good(rank, ranks, store):
    """Nobody can load what is lost: the ranks say so, and what they hold stays right."""
    live, tensors = begin(rank, ranks, store)
    if rank == 1:
        return None
    again = live.recover(TorchTransport([0, 2, 3], store, deadline_s=DEADLINE, epoch=1), Topology(3, 3))
    return again, live.state.value, "lost" in live.reason, moe.holds(tensors, live.slots_of)


def test_lost_experts_that_cannot_be_loaded_leave_it_degraded():
    assert run(4, lose_for_good)[2:] == [(False, "degraded", True, True)] * 2


def fail_here(rank, ranks, store):
    live, _ = begin(rank, ranks, store)
    if rank == 2:
        live.executor.weights.pack = None  # as if memory ran out on this rank alone
    raised = False
    for _ in range(12):
        live.counter.add(0, torch.tensor([[0, 1]] * 8))
        try:
            live.step()
        except TypeError:
            raised = True
    return raised, live.state.value


def test_an_error_of_one_rank_is_raised_there_and_told_to_the_others():
    assert run(4, fail_here) == [(rank == 2, "degraded") for rank in range(4)]


class Notes:
    """Stands in for metrics: notes what it is told."""

    def __init__(self):
        self.told = []

    def decided(self, proposal, *, expert_bytes=0, seconds=0.0):
        self.told.append(("decided", proposal.moves > 0, expert_bytes > 0, seconds >= 0))

    def failed(self):
        self.told.append("failed")

    def committed(self, seconds):
        self.told.append("committed")

    def held_up(self, seconds):
        self.told.append("held up")

    def lost(self, experts):
        assert experts == 0

    def enter(self, state):
        self.told.append(state)

    def add(self, counts, step=None, steps=1):
        self.told.append(("window", int(counts.sum()), steps))


def note(rank, ranks, store, folder):
    notes = Notes()
    live, _ = begin(rank, ranks, store, metrics=notes, recorder=notes)
    for step in range(10):
        live.counter.add(0, torch.tensor([[0, 1]] * 8))
        live.step(record=step != 1)
    live.save(f"{folder}/{rank}")
    saved = Balancer.restore(f"{folder}/{rank}", policy=Policy()).placement
    return notes.told, saved.phy2log.tolist() == live.executor.phy2log.tolist()


def test_rank_0_tells_and_records_and_the_balancer_is_saved(tmp_path):
    answers = run(4, note, str(tmp_path))
    assert ("window", 4 * 3 * 16, 3) in answers[0][0]  # one of the four passes did not count
    assert ("decided", True, True, True) in answers[0][0]
    assert all(("decided", True, True, True) not in told for told, _ in answers[1:])
    assert all(good for _, good in answers)


def count_for_prometheus(rank, ranks, store):
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry()
    live, _ = begin(rank, ranks, store, metrics=Metrics("draft", registry))
    for _ in range(12):
        live.counter.add(0, torch.tensor([[0, 1]] * 8))
        live.step()
    moved = int(live.executor.versions.sum())
    if rank == 1:
        live.transport.abort()
    while live.step() is not State.DEGRADED:
        pass
    told = {}
    for line in client.generate_latest(registry).decode().splitlines():
        if not line.startswith("#") and not any(word in line for word in ("_created", "_bucket")):
            name, value = line.rsplit(" ", 1)
            told[name.replace('part="draft"', "").replace("{,", "{").replace(",}", "}")] = float(value)
    return moved, told


def test_what_prometheus_sees_of_a_live_balancer():
    pytest.importorskip("prometheus_client")
    answers = run(4, count_for_prometheus)
    for rank, (moved, told) in enumerate(answers):
        assert told['equipoise_state{state="degraded"}'] == 1
        assert told['equipoise_state{state="balancing"}'] == 0
        assert told["equipoise_lost_experts{}"] == 0
        assert len(told) < 24
        if rank == 0:
            assert told['equipoise_decisions_total{decision="move"}'] >= 1
            assert told["equipoise_layer_commit_seconds_count{}"] == moved >= 1
            assert told["equipoise_move_pause_seconds_count{}"] == moved  # one layer a pass
            assert told["equipoise_move_pause_seconds_sum{}"] >= told["equipoise_layer_commit_seconds_sum{}"]
            assert told["equipoise_moves_total{}"] >= 1
            assert told["equipoise_moved_bytes_total{}"] >= 4 * 96
        else:
            assert not any(name.startswith("equipoise_decisions") for name in told)


@pytest.mark.parametrize("name", ["interval", "ask_every", "patience", "layers_per_step"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_paces_that_are_none_are_refused(name, value):
    with pytest.raises(ArgumentError, match=name):
        Pace(**{name: value})
