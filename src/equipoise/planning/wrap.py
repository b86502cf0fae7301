"""Packing for a free split: experts cut so that every rank carries the mean.

McNaughton's wrap-around rule (Scheduling with deadlines and loss functions, Management Science, 1959) with a limit
on the pieces of a rank: each rank takes as many of the smallest experts left as still let the largest ones, the
last of them cut, fill it up to the mean.
"""

from __future__ import annotations

from bisect import insort

import numpy as np
import numpy.typing as npt


def wrap_layer(loads: npt.NDArray[np.int64], num_ranks: int, slots: int) -> npt.NDArray[np.int64] | None:
    """The experts of every slot of one layer ``[R]``, or ``None`` where the rule does not find room for all.

    Parameters
    ----------
    loads : ``[E]`` as `to_integers` makes them
    """
    left = sorted((float(load), expert) for expert, load in enumerate(loads))
    mean = float(loads.sum()) / num_ranks
    slack = mean * 1e-9
    ranks: list[list[int]] = []
    for _ in range(num_ranks):
        taken: list[int] = []
        room = mean
        small = _smallest(left, room, slots, slack)
        for load, expert in left[:small]:
            room -= load
            taken.append(expert)
        del left[:small]
        while left and len(taken) < slots and room > slack:
            load, expert = left.pop()
            taken.append(expert)
            if load > room + slack:
                insort(left, (load - room, expert))
                room = 0.0
            else:
                room -= load
        ranks.append(taken)
    for _, expert in reversed(left):  # experts without load, or crumbs of rounding
        home = min(ranks, key=len)
        if len(home) == slots or any(expert in rank for rank in ranks):
            if not any(expert in rank for rank in ranks):
                return None
            continue
        home.append(expert)
    count = np.bincount([e for rank in ranks for e in rank], minlength=len(loads))
    for rank in ranks:  # spare slots: replicas that the split may use or leave idle
        while len(rank) < slots:
            free = np.isin(np.arange(len(loads)), rank, invert=True) if len(rank) < len(loads) else count > 0
            expert = int(np.argmax(np.where(free, loads / np.maximum(count, 1), -1.0)))
            rank.append(expert)
            count[expert] += 1
    return np.array(ranks, dtype=np.int64).ravel() if (count > 0).all() else None


def _smallest(left: list[tuple[float, int]], room: float, slots: int, slack: float) -> int:
    """How many of the smallest go to a rank: the most for which the largest in its other slots fill it."""
    small = 0
    below = 0.0
    while small < min(slots, len(left)) and below + left[small][0] <= room + slack:
        below += left[small][0]
        small += 1
    while small > 0:
        rest = left[small:][-(slots - small) :] if small < slots else []
        if below + sum(load for load, _ in rest) >= room - slack:
            break
        small -= 1
        below -= left[small][0]
    return small
