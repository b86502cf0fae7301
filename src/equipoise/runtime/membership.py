"""Ranks that meet again after a failure, or for the first time: what does each of them hold now?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from ..placement import IntArray
from .executor import Executor
from .transport import Transport, TransportError

LARGEST = 1 << 62
DISAGREE = "ranks do not agree on step, settings or maps: start all of them anew"


class Disagreement(TransportError):
    """Ranks that should know the same do not: moving experts would spoil them."""


@dataclass(frozen=True, eq=False)
class Meeting:
    """What all ranks of a new group know of each other."""

    held: IntArray
    """``[L, P * slots_per_rank]``, in the order of the new ranks; -1 on ranks that joined"""
    versions: IntArray
    """``[L]``, commits of each layer so far"""


def meet(
    transport: Transport, executor: Executor, members: list[int], joining: bool, settings: IntArray
) -> Meeting:
    """Bring the ranks of a new group to the same layers, and tell those that join.

    A rank that staged and voted, but heard no result, commits here where any other rank has: it voted, so all had
    staged. After that the maps of those that stay are compared.

    Parameters
    ----------
    transport : to the ranks of the new group
    executor : of this rank, from the group before
    members : names of the ranks of the group before, in the order of its placement
    joining : whether this rank holds nothing yet
    settings : must be the same on all ranks

    Raises
    ------
    TransportError
        if ranks fail again, or none holds anything
    Disagreement
        if ranks that stay hold different maps
    """
    agree(transport, settings)
    here = np.ones(transport.num_ranks, np.int64)
    here[transport.rank] = not joining
    stays = np.array(transport.lowest(*here), dtype=bool)
    if not stays.any():
        raise TransportError("no rank holds any expert")
    versions = -np.array(transport.lowest(*(-executor.versions)))
    behind = [] if joining else executor.roll_forward(versions)
    held = _columns(executor.phy2log, members, transport.members, stays)
    agree(transport, held, np.array(behind), known=not joining)
    told = torch.from_numpy(held)
    transport.broadcast(told, int(np.flatnonzero(stays)[0]))
    return Meeting(told.numpy(), versions)


def agree(transport: Transport, *arrays: IntArray, known: bool = True) -> None:
    """Raise `Disagreement`, on all ranks, unless those who know have the same arrays."""
    number = digest(*arrays)
    low, high = transport.lowest(*((number, -number) if known else (LARGEST, LARGEST)))
    if low != -high:
        raise Disagreement(DISAGREE)


def digest(*arrays: IntArray) -> int:
    """A number from 0 to `LARGEST` - 1 that hangs on every integer of the arrays."""
    found = hashlib.blake2b(digest_size=8)
    for array in arrays:
        found.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
    return int.from_bytes(found.digest(), "little") % LARGEST


class Reduction:
    """A window that is added up over all ranks beside serving, and with it whether all ranks agree.

    Parameters
    ----------
    transport : to the others
    window : ``[L, E]`` int64 on the CPU, what this rank counted
    pairs : ``[L, E, E]`` int64 on the CPU, where pairs are counted; overwritten
    number : `digest` of what must be the same on all ranks, whether pairs are counted among it
    """

    def __init__(
        self, transport: Transport, window: torch.Tensor, pairs: torch.Tensor | None, number: int
    ) -> None:
        self._shape, self._pairs = window.shape, pairs
        numbers = torch.zeros(transport.num_ranks, dtype=torch.int64)
        numbers[transport.rank] = number  # the sum has the number of every rank in a place of its own
        self._table = torch.cat([window.reshape(-1), numbers])
        self._pending = transport.add_up(self._table)
        # Begun after the table that tells whether ranks agree: who has no pairs would wait for other sizes.
        self._pending_pairs = None if pairs is None else transport.add_up(pairs)

    def done(self) -> bool:
        """Whether the sums are there; waits for nothing."""
        return self._pending.done() and (self._pending_pairs is None or self._pending_pairs.done())

    def result(self) -> tuple[IntArray, IntArray | None]:
        """The window ``[L, E]`` of all ranks, and their pairs; `Disagreement` on all of them unless they agree."""
        self._pending.wait()
        total, numbers = self._table.split([self._shape.numel(), len(self._table) - self._shape.numel()])
        if (numbers != numbers[0]).any():
            raise Disagreement(DISAGREE)
        window = np.asarray(total.view(self._shape).numpy())
        if self._pairs is None or self._pending_pairs is None:
            return window, None
        self._pending_pairs.wait()
        return window, np.asarray(self._pairs.numpy())


def _columns(phy2log: IntArray, old: list[int], new: list[int], stays: np.ndarray) -> IntArray:
    """The slots of the ranks that stay, in the new order; -1 for those that join."""
    slots = phy2log.reshape(len(phy2log), len(old), -1)
    held = np.full((len(phy2log), len(new), slots.shape[2]), -1, np.int64)
    for rank, name in enumerate(new):
        if stays[rank] and name in old:
            held[:, rank] = slots[:, old.index(name)]
    return held.reshape(len(phy2log), -1)
