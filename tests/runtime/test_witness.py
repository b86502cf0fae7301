"""Who watches a runtime: one that raises ends nothing, and what holds up a pass is counted whatever comes of it."""

from __future__ import annotations

import logging
import os
import re
import signal

import numpy as np
import pytest

torch = pytest.importorskip("torch")
# ruff: noqa: E402 - what follows imports torch

import small_moe as moe
from forked import run
from live_ranks import DEADLINE, Fragile, begin

from equipoise.runtime.live import State
from equipoise.runtime.transport import _in_short
from equipoise.runtime.witness import Witness


class Unspeakable(Exception):
    """Raises once more when it is asked what it is."""

    def __str__(self):
        raise ValueError("no words")


RAISED = [ValueError("one\nand two"), SystemExit(3), GeneratorExit(), MemoryError(), Unspeakable()]


class Raising:
    """Raises at one call of a kind, as a recorder or as metrics; notes what it is told."""

    def __init__(self, at, what):
        self.at, self.what, self.told = at, what, []

    def __getattr__(self, name):
        def call(*_, **__):
            self.told.append(name)
            if name == self.at:
                raise self.what

        return call


@pytest.mark.parametrize("what", RAISED, ids=lambda what: type(what).__name__)
def test_one_that_raises_is_told_nothing_more_and_named_in_one_line(what, caplog):
    raising = Raising("add", what)
    witness = Witness(raising, raising)
    for _ in range(3):
        witness.record(np.ones((2, 3), np.int64), 1)
    raising.at = "failed"
    for _ in range(3):
        witness.count(lambda metrics: metrics.failed())
    assert raising.told == ["add", "failed"]
    assert len(caplog.records) == 2
    assert all(type(what).__name__ in record.getMessage() for record in caplog.records)
    assert not any("\n" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    "call", [lambda w: w.record(np.ones((1, 1)), 1), lambda w: w.count(lambda m: m.failed())]
)
def test_ctrl_c_comes_through(call):
    both = Raising("add", KeyboardInterrupt())
    witness = Witness(both, Raising("failed", KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        call(witness)


def test_who_records_cannot_change_what_is_planned_from():
    class Meddler:
        def add(self, counts, step=None, steps=1):
            counts[:] = 0

    window = np.ones((2, 3), np.int64)
    Witness(Meddler(), None).record(window, 1)
    assert (window == 1).all()
    assert window.flags.writeable


def watched(rank, ranks, store, at, what):
    """All ranks have watchers that raise, each another kind of thing; experts move as if nobody watched."""
    logging.disable()
    raising = Raising(at, RAISED[(what + rank) % len(RAISED)])
    live, tensors = begin(rank, ranks, store, metrics=raising, recorder=raising)
    good = True
    for _ in range(12):
        live.counter.add(0, torch.tensor([[0, 1]] * 8))
        good &= live.step() is not State.DEGRADED
        good &= moe.holds(tensors, live.slots_of)
    return good, int(live.executor.versions.sum()), raising.told.count(at)


@pytest.mark.parametrize("at", ["add", "decided", "committed", "held_up", "enter", "lost"])
def test_watchers_that_raise_end_nothing_on_any_rank(at):
    answers = run(4, watched, at, len(at))
    alone = at not in ("enter", "lost")
    assert [good for good, *_ in answers] == [True] * 4
    assert min(commits for _, commits, _ in answers) > 0
    assert [times for *_, times in answers] == [int(rank == 0 or not alone) for rank in range(4)]


def held_up(rank, ranks, store, at):
    transport = Fragile(list(range(ranks)), store, deadline_s=DEADLINE).set("drop", at, 2)
    if rank != 2:
        transport.at = None
    notes = Raising(None, None)
    live, _ = begin(rank, ranks, store, transport=transport, metrics=notes)
    for _ in range(14):
        for layer in range(moe.LAYERS):  # all of them move
            live.counter.add(layer, torch.tensor([[layer, layer + 1]] * 8))
        live.step()
    return live.state.value, notes.told.count("held_up"), notes.told.count("committed")


def test_a_pass_is_held_up_also_by_a_move_that_fails():
    answers = run(4, held_up, "vote")
    assert answers == [("degraded", 2, 1)] + [("degraded", 0, 0)] * 3


# What gloo and the store said on this version, and what torch says with TORCH_SHOW_CPP_STACKTRACES.
SAID = [
    (
        "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:28066. "
        "This is typically caused by a remote worker crashing. Check the logs of the remote worker",
        "Connection closed by peer [127.0.0.1]:28066",
    ),
    (
        "Broken pipe\nException raised from sendBytes at /__w/pytorch/torch/csrc/distributed/c10d/Utils.hpp:758 "
        "(most recent call first):\nframe #0: c10::Error::Error() + 0x9d (0x7f1b in /usr/lib/torch/lib/libc10.so)",
        "Broken pipe",
    ),
    ("/a/b.cpp:3: failed", ": failed"),
    ("\n\n", "RuntimeError"),
    ("", "RuntimeError"),
    ("[/only/a/path.cc:12]", "RuntimeError"),
    ("tcp://host:80 refused 1/2 of them", "tcp://host:80 refused 1/2 of them"),
    ("x" * 1000, "x" * 200),
]


@pytest.mark.parametrize(("said", "short"), SAID)
def test_what_torch_says_becomes_one_line_without_paths(said, short):
    assert _in_short(RuntimeError(said)) == short


def reason_after(rank, ranks, store, what):
    """Rank 1 dies in a vote, or the store dies; why the others are degraded."""
    transport = Fragile(list(range(ranks)), store, deadline_s=DEADLINE).set("kill", "vote", 1)
    if rank != 1 or what == "store":
        transport.at = None
    live, _ = begin(rank, ranks, store, transport=transport)
    if what == "store" and rank == 0:
        os.kill(int(store.get("host")), signal.SIGKILL)
    while live.step() is not State.DEGRADED:
        live.counter.add(0, torch.tensor([[0, 1]] * 8))
    return live.reason


@pytest.mark.parametrize("what", ["rank", "store"])
def test_reasons_are_one_line_without_paths(what):
    gone = 1 if what == "rank" else None
    reasons = [reason for reason in run(3, reason_after, what, gone=gone) if reason is not None]
    assert len(reasons) == (2 if what == "rank" else 3)
    for reason in reasons:
        assert reason
        assert "\n" not in reason
        assert not re.search(r"\w/\w|\.(?:cc|cpp|hpp|so)\b|frame #|most recent call", reason), reason
