"""Ranks for tests: forked processes with a gloo group, and a store that outlives them all."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

LIMIT = 60.0  # seconds that a rank may take


class Raised(str):
    """The traceback of a rank that failed."""


def serve(rank: int, num_ranks: int, port: int, call: Callable[..., Any], pipe: Any, args: tuple) -> None:
    torch.set_num_threads(1)
    try:
        store = dist.TCPStore("127.0.0.1", port, num_ranks + 1, False, timedelta(seconds=LIMIT))
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=num_ranks, timeout=timedelta(seconds=LIMIT)
        )
        answer = call(rank, num_ranks, dist.PrefixStore("test", store), *args)
    except BaseException:
        answer = Raised(traceback.format_exc())
    pipe.send_bytes(pickle.dumps(answer))
    signal.pause()  # whoever leaves first would look like a failure to the others


def host(num_ranks: int, pipe: Any) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore(
        "127.0.0.1", 0, num_ranks + 1, True, timedelta(seconds=LIMIT), wait_for_workers=False
    )
    store.set("test/host", str(os.getpid()))
    pipe.send(store.port)
    pipe.recv()


def run(num_ranks: int, call: Callable[..., Any], *args: Any, gone: int | None = None) -> list[Any]:
    """What ``call(rank, num_ranks, store, *args)`` returns on each rank; ``None`` of one that was killed.

    Nobody waits for the rank ``gone``, which may be stopped.
    """
    context = multiprocessing.get_context("fork")
    # The store has a process of its own: whoever forks must have no threads, and tests may kill it.
    ours, theirs = context.Pipe()
    server = context.Process(target=host, args=(num_ranks, theirs))
    server.start()
    port = ours.recv()
    pipes, processes = [], [server]
    for rank in range(num_ranks):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=serve, args=(rank, num_ranks, port, call, theirs, args))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    answers: list[Any] = [None] * num_ranks
    for rank in sorted(range(num_ranks), key=lambda rank: rank == gone):
        pipe, limit = pipes[rank], 0.0 if rank == gone else LIMIT
        with contextlib.suppress(EOFError):
            answers[rank] = pickle.loads(pipe.recv_bytes()) if pipe.poll(limit) else None
    for process in processes:
        process.kill()
        process.join()
    failed = [f"rank {rank}: {answer}" for rank, answer in enumerate(answers) if isinstance(answer, Raised)]
    assert not failed, "\n".join(failed)
    return answers
