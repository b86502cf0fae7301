"""How ranks hear of each other: by connections that close, by a word in the store, by deadlines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")
# ruff: noqa: E402 - what follows imports torch

import torch.distributed as dist
from forked import run
from live_ranks import DEADLINE, FOREVER, SHORT

from equipoise import ArgumentError
from equipoise.runtime.membership import LARGEST, Counted, Disagreement, Reduction, digest
from equipoise.runtime.transport import TorchTransport, TransportError


def until_told(transport):
    """Ask as a rank does that waits for nothing; whoever is told nothing stays here."""
    while True:
        try:
            transport.check()
        except TransportError as error:
            return str(error)
        threading.Event().wait(0.01)


KEPT = []  # a transport that is dropped closes its connections, too


def wait_for(rank, ranks, store, call):
    """Rank 1 gives up; rank 0 waits for it, rank 2 for rank 0, and rank 3 for nobody. No deadline helps."""
    transport = TorchTransport(list(range(ranks)), store, deadline_s=FOREVER)
    KEPT.append(transport)
    dist.barrier()
    if rank == 1:
        transport.abort()
        return "gone"
    try:
        if rank == 3:
            told = until_told(transport)
            transport.abort()
            return told
        flat = torch.zeros(8, dtype=torch.uint8)
        if call == "exchange":
            transport.exchange(None, (1 if rank == 0 else 0, flat))
        elif call == "lowest":
            transport.lowest(1)
        elif call == "add_up":
            transport.add_up(torch.zeros(4, dtype=torch.int64)).wait()
        else:
            transport.broadcast(torch.zeros(4), 1)
    except TransportError as error:
        transport.abort()
        return str(error)
    return None


@pytest.mark.parametrize("call", ["exchange", "lowest", "add_up", "broadcast"])
def test_one_that_gives_up_is_heard_by_all(call):
    told = run(4, wait_for, call)
    assert told[1] == "gone"
    assert told[3] == "another rank has given up"
    assert all(isinstance(each, str) for each in told)


def call_after(rank, ranks, store):
    transport = TorchTransport(list(range(ranks)), store)
    dist.barrier()
    transport.abort()
    transport.abort()
    heard = []
    for call in (lambda: transport.lowest(1), lambda: transport.exchange(None, None), transport.check):
        with pytest.raises(TransportError) as caught:
            call()
        heard.append(str(caught.value))
    return heard


def test_after_giving_up_every_call_says_so():
    assert run(2, call_after) == [["this rank has given up"] * 3] * 2


def threads_left(rank, ranks, store):
    """Groups that come and go, some given up while a sum is under way."""
    for epoch in range(6):
        transport = TorchTransport(list(range(ranks)), store, epoch=epoch, deadline_s=SHORT)
        if epoch % 2 and rank == 0:
            transport.add_up(torch.zeros(4, dtype=torch.int64))
        transport.abort()
    mine = [thread for thread in threading.enumerate() if thread.name.startswith("equipoise")]
    for thread in mine:
        thread.join(30)
    return [thread.name for thread in mine if thread.is_alive()]


def test_groups_that_were_given_up_leave_no_thread():
    assert run(2, threads_left) == [[]] * 2


def by_another_backend(rank, ranks, store):
    """Gloo through `batch_isend_irecv`, as NCCL would be called."""
    transport = TorchTransport(list(range(ranks)), store, deadline_s=DEADLINE, backend="gloo")
    got = torch.zeros(4)
    transport.exchange(((rank + 1) % ranks, torch.full((4,), float(rank))), ((rank - 1) % ranks, got))
    transport.exchange(None, None)
    return got.tolist(), transport.lowest(rank, -rank)


def test_experts_by_a_group_of_another_backend():
    assert run(3, by_another_backend) == [([float((rank - 1) % 3)] * 4, [0, -2]) for rank in range(3)]


def not_a_member(rank, ranks, store):
    if rank == 0:
        return None
    with pytest.raises(ArgumentError, match=r"rank 1 is not among .*\[0\]"):
        TorchTransport([0], store)
    return True


def test_a_process_that_is_no_member_is_refused():
    assert run(2, not_a_member) == [None, True]


def nobody_comes(rank, ranks, store):
    if rank == 1:
        return None
    with pytest.raises(TransportError, match="come together"):
        TorchTransport([0, 1], store, connect_s=1.0)
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("equipoise")]


def test_a_group_that_does_not_come_together_leaves_nothing():
    assert run(2, nobody_comes) == [[], None]


def hung_store(rank, ranks, store):
    """A store that hangs is told by the time that it owes an answer; one that answers late is not."""
    transport = TorchTransport(list(range(ranks)), store, deadline_s=SHORT)
    dist.barrier()
    if rank == 0:
        os.kill(int(store.get("host")), signal.SIGSTOP)
    return until_told(transport)


@pytest.mark.waits
def test_a_store_that_hangs_is_noticed_by_all_who_serve():
    assert run(3, hung_store) == ["the store does not answer"] * 3


def reduce(rank, ranks, store, agrees):
    transport = TorchTransport(list(range(ranks)), store)
    number = LARGEST - 1 if agrees or rank != 1 else 5
    pairs = torch.full((2, 3, 3), 10**rank) if agrees == "with pairs" or (rank == 2 and not agrees) else None
    begun = Reduction(transport, Counted(torch.full((2, 3), rank + 1), rank, pairs), number)
    try:
        found = begun.result()
    except Disagreement:
        return "no"
    return found.loads.tolist(), found.passes, None if found.pairs is None else found.pairs.unique().tolist()


@pytest.mark.parametrize("agrees", [True, "with pairs", False])
def test_a_window_is_added_up_where_all_agree(agrees):
    """With the passes of all ranks and their pairs; a rank that alone has pairs keeps nobody waiting."""
    pairs = [1111] if agrees == "with pairs" else None
    assert run(4, reduce, agrees) == [([[10] * 3] * 2, 6, pairs) if agrees else "no"] * 4


def late(rank, ranks, store):
    """Who comes late holds nobody up before the sum is wanted."""
    transport = TorchTransport(list(range(ranks)), store, deadline_s=FOREVER)
    dist.barrier()
    seen = []
    if rank == 0:
        begun = transport.add_up(torch.ones(3, dtype=torch.int64))
        seen.append(begun.done())
        dist.barrier()
    else:
        dist.barrier()
        begun = transport.add_up(torch.ones(3, dtype=torch.int64))
    begun.wait()
    return [*seen, begun.done()]


def test_adding_up_waits_for_nobody_until_it_is_asked_to():
    assert run(2, late) == [[False, True], [True]]


def test_digests_tell_arrays_apart_and_fit_the_sum():
    one, other = np.arange(4), np.arange(4)[::-1]
    assert digest(one) != digest(other)
    assert 0 <= digest(one) < LARGEST
    assert digest(one) == digest(one.astype(np.int32).reshape(2, 2))


ENDS = """
import os, time
from datetime import timedelta
from torch.distributed import FileStore
from equipoise.runtime.transport import _Word

class Slow:
    # A store whose answers take a while, without the interpreter's lock, as those of a busy one do.
    def __init__(self, number):
        self.store = FileStore(f"store{number}", 1)
        self.limit = timedelta(milliseconds=10 + 7 * number + 1500 * (number == 9))  # machines may be very busy

    def check(self, keys):
        try:
            self.store.wait(keys, self.limit)
        except RuntimeError:
            pass
        return False

words = [_Word(Slow(number), "word", 0.02) for number in range(60)]
time.sleep(0.5)
"""


def test_a_process_may_end_while_its_store_is_asked(tmp_path):
    """An answer that comes while the interpreter ends aborted the process, in nearly each such run."""
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", ENDS],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
