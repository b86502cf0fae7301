"""Real ranks for tests: forked processes with a gloo group."""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any


def on_ranks(world: int, job: Callable[[int, Any], Any]) -> list[Any]:
    """What ``job(rank, group)`` returns on each of ``world`` ranks; fails with the text of what it raises."""
    context = multiprocessing.get_context("fork")
    results: Any = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = [(rank, world, f"file://{folder}/store", job, results) for rank in range(world)]
        ranks = [context.Process(target=_rank, args=one) for one in arguments]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(120)
        assert [process.exitcode for process in ranks] == [0] * world
    found = dict(results.get() for _ in range(world))
    for answer in found.values():
        assert not isinstance(answer, Trouble), answer.text
    return [found[rank] for rank in range(world)]


class Trouble:
    """What a rank raised, as text."""

    def __init__(self, text: str) -> None:
        self.text = text


def _rank(rank: int, world: int, store: str, job: Callable[[int, Any], Any], results: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    try:
        results.put((rank, job(rank, dist.group.WORLD)))
    except BaseException:
        results.put((rank, Trouble(traceback.format_exc())))
    dist.barrier()
    dist.destroy_process_group()
