"""Ranks that meet again after a failure, or for the first time: what does each of them hold now?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, eq=False)
class Counted:
    """What was counted in a window, by one rank or by all of them together."""

    loads: torch.Tensor
    """``[L, E]`` int64 on the CPU"""
    passes: int
    """forward passes of a rank, of all ranks added up: its batches, where each rank has batches of its own"""
    pairs: torch.Tensor | None
    """``[L, E, E]`` int64 on the CPU, where pairs are counted"""

    def beside(self, unit: str) -> dict[str, Any]:
        """What a recorder gets beside the loads."""
        found: dict[str, Any] = {"batches": self.passes} if unit == "batches" else {}
        return found if self.pairs is None else {**found, "pairs": self.pairs.numpy()}


class Reduction:
    """A window that is added up over all ranks beside serving, and with it whether all ranks agree.

    Parameters
    ----------
    transport : to the others
    counted : by this rank; its pairs are overwritten
    number : `digest` of what must be the same on all ranks, whether pairs are counted among it
    """

    def __init__(self, transport: Transport, counted: Counted, number: int) -> None:
        self._shape, self._pairs = counted.loads.shape, counted.pairs
        numbers = torch.zeros(transport.num_ranks, dtype=torch.int64)
        numbers[transport.rank] = number  # the sum has the number of every rank in a place of its own
        self._table = torch.cat([counted.loads.reshape(-1), torch.tensor([counted.passes]), numbers])
        self._pending = [transport.add_up(self._table)]
        if counted.pairs is not None:
            # Begun behind the table that tells whether ranks agree: one without pairs would take part in no such sum.
            self._pending.append(transport.add_up(counted.pairs))

    def done(self) -> bool:
        """Whether the sums are there; waits for nothing."""
        return all(pending.done() for pending in self._pending)

    def result(self) -> Counted:
        """What all ranks counted together. Raises `Disagreement`, on all of them, unless they agree."""
        self._pending[0].wait()
        cells = self._shape.numel()
        numbers = self._table[cells + 1 :]
        if (numbers != numbers[0]).any():
            raise Disagreement(DISAGREE)
        for pending in self._pending[1:]:
            pending.wait()
        return Counted(self._table[:cells].view(self._shape), int(self._table[cells]), self._pairs)


def _columns(phy2log: IntArray, old: list[int], new: list[int], stays: np.ndarray) -> IntArray:
    """The slots of the ranks that stay, in the new order; -1 for those that join."""
    slots = phy2log.reshape(len(phy2log), len(old), -1)
    held = np.full((len(phy2log), len(new), slots.shape[2]), -1, np.int64)
    for rank, name in enumerate(new):
        if stays[rank] and name in old:
            held[:, rank] = slots[:, old.index(name)]
    return held.reshape(len(phy2log), -1)
