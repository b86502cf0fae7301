"""One decision on all ranks: first whether they ask the same, then what rank 0 says.

A rank that decides by itself, from its own history, clock or exception, takes part in other transfers than its
peers, and the engine hangs or serves wrong weights. So every rank makes the same collective calls whatever happens,
and all that is local goes through rank 0.
"""

from __future__ import annotations

from enum import IntEnum
from hashlib import blake2b
from typing import Any

import numpy as np

from ..placement import IntArray


class Status(IntEnum):
    """What rank 0 tells the others to do."""

    KEEP = 0
    """serve on with the map that is served"""
    MOVE = 1
    """take the map that comes with it"""
    ENGINE = 2
    """the same, but it is the engine's own plan"""
    FAILED = 3
    """nobody has a map: raise, all together"""


def digest(*parts: object) -> int:
    """A number of 62 bits for what ranks have to agree about: numbers, words, arrays."""
    state = blake2b(digest_size=8)
    for part in parts:
        state.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
        state.update(b"\0")
    return int.from_bytes(state.digest(), "big") >> 2


def all_agree(group: Any, mark: int, legal: bool) -> tuple[bool, bool]:
    """Whether all ranks of a group have the same digest, and whether all of them hold something legal.

    ``group`` is a process group on the CPU, or ``None`` for a single process.
    """
    if _alone(group):
        return True, legal
    import torch
    import torch.distributed as dist

    votes = torch.tensor([mark, -mark, int(legal)], dtype=torch.int64)
    dist.all_reduce(votes, op=dist.ReduceOp.MIN, group=group)
    low, high, everywhere = votes.tolist()
    return low == -high, bool(everywhere)


def added_up(group: Any, numbers: Any) -> IntArray:
    """Sums of ``numbers``, an int64 tensor on the CPU, over all ranks of a group."""
    if not _alone(group):
        import torch.distributed as dist

        dist.all_reduce(numbers, group=group)
    return np.asarray(numbers.numpy())


def word_of_rank_0(group: Any, status: Status, phy2log: IntArray, source: int = 0) -> tuple[Status, IntArray]:
    """Rank 0's status and map ``[L, R]``; other ranks hand in an array of the same shape, to be overwritten.

    ``source`` is the rank that speaks instead, where rank 0 is gone.
    """
    if _alone(group):
        return status, phy2log
    import torch
    import torch.distributed as dist

    message = torch.empty(1 + phy2log.size, dtype=torch.int64)
    message[0] = int(status)
    message[1:] = torch.from_numpy(np.ascontiguousarray(phy2log).ravel())
    dist.broadcast(message, group=group, group_src=source)
    return Status(int(message[0])), message[1:].reshape(phy2log.shape).numpy()


def _alone(group: Any) -> bool:
    return group is None or group.size() == 1
