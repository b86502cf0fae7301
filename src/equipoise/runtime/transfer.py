"""From what ranks hold to a new placement: who sends which expert to whom, and in which order. Moves nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ArgumentError
from ..placement import BoolArray, IntArray, Placement
from ..planning.rounds import in_rounds
from ..problem import Held
from ..topology import Topology


@dataclass(frozen=True, eq=False)
class LayerTransfer:
    """The transfer of one layer. Slots are numbered on their rank, from 0.

    Contents are those before the transfer: everything is read before anything is written.
    """

    layer: int
    """row of the placement"""
    fetches: IntArray
    """``[F, 6]``: round, source rank, source slot, target rank, target slot, expert; by round, then source"""
    copies: IntArray
    """``[C, 3]``: rank, slot read, slot written, where a rank holds the expert already"""
    twins: IntArray
    """``[K, 3]``: rank, slot, slot written: the first is the target of a fetch, the second gets the same"""
    lost: IntArray
    """``[X, 3]``: rank, slot, expert that no rank holds: to be loaded from elsewhere"""
    num_rounds: int

    def sends(self, rank: int, number: int) -> tuple[int, int, int] | None:
        """Slot, target rank and expert of what a rank sends in a round, if anything."""
        fetches = self.fetches
        found = fetches[(fetches[:, 0] == number) & (fetches[:, 1] == rank)]
        return (int(found[0, 2]), int(found[0, 3]), int(found[0, 5])) if len(found) else None

    def receives(self, rank: int, number: int) -> tuple[int, int, int] | None:
        """Slot, source rank and expert of what a rank receives in a round, if anything."""
        fetches = self.fetches
        found = fetches[(fetches[:, 0] == number) & (fetches[:, 3] == rank)]
        return (int(found[0, 4]), int(found[0, 1]), int(found[0, 5])) if len(found) else None


@dataclass(frozen=True, eq=False)
class TransferPlan:
    """The transfers of all layers that change."""

    layers: tuple[LayerTransfer, ...]
    """in the order of their rows; layers whose slots stay as they are have none"""
    num_ranks: int

    @property
    def num_fetches(self) -> int:
        """Experts that are sent from rank to rank, over all layers."""
        return sum(len(layer.fetches) for layer in self.layers)

    def link_bytes(self, expert_bytes: int) -> IntArray:
        """What each rank sends to each other one ``[P, P]`` (source, target), in bytes."""
        table = np.zeros((self.num_ranks, self.num_ranks), np.int64)
        for layer in self.layers:
            np.add.at(table, (layer.fetches[:, 1], layer.fetches[:, 3]), expert_bytes)
        return table


def transfer_plan(
    old: Placement | Held, new: Placement, topology: Topology, *, ranks: Sequence[int] | None = None
) -> TransferPlan:
    """Plan a transfer.

    An expert comes from the same rank where that holds it, else from the same node, else from any; of several ranks
    from the one that sends least. In a round a rank sends to one rank at most and receives from one at most, one
    expert each; there are as many rounds as one rank has to send or to receive.

    Parameters
    ----------
    old : what ranks hold; slots may be empty (-1) and experts lost
    new : what they shall hold, on the ranks of ``topology``
    topology : says which ranks share a node
    ranks : ``[P]``, the rank in ``old`` of each rank of ``new``, -1 for one that joined; needed where their numbers
        differ or have changed

    Raises
    ------
    ArgumentError
        if layers, experts, ranks or slots do not fit each other

    Examples
    --------
    >>> old, new = Placement([[0, 1, 2, 3]], 2, 4), Placement([[0, 2, 1, 3]], 2, 4)
    >>> transfer_plan(old, new, Topology(2, 2)).layers[0].fetches.tolist()
    [[0, 0, 1, 1, 0, 1], [0, 1, 0, 0, 1, 2]]
    """
    before = _held(old, new, topology, ranks)
    after = new.phy2log.reshape(before.shape)
    changed = (after >= 0) & (after != before)
    first = _first_slots(before, new.num_experts)
    nodes = np.array(topology.nodes, dtype=np.int64)
    layers = [
        _layer(int(row), before[row], after[row], first[row], nodes)
        for row in np.flatnonzero(changed.any(axis=(1, 2)))
    ]
    return TransferPlan(tuple(layers), new.num_ranks)


def _held(old: Placement | Held, new: Placement, topology: Topology, ranks: Sequence[int] | None) -> IntArray:
    """What the ranks of ``new`` hold ``[L, P, slots_per_rank]``, -1 where nothing."""
    wanted, found = (new.num_layers, new.num_experts), (old.num_layers, old.num_experts)
    if found != wanted:
        raise ArgumentError(f"old has (layers, experts) = {found}, new has {wanted}")
    if (new.num_ranks, new.num_slots) != (topology.num_ranks, topology.num_slots):
        raise ArgumentError(
            f"new has {new.num_ranks} ranks and {new.num_slots} slots, topology {topology.num_ranks} and "
            f"{topology.num_slots}"
        )
    slots = old.phy2log.reshape(old.num_layers, old.num_ranks, -1)
    if slots.shape[2] != topology.slots_per_rank:
        raise ArgumentError(
            f"old has {slots.shape[2]} slots a rank, new has {topology.slots_per_rank}: slots keep their number"
        )
    if ranks is None and old.num_ranks != new.num_ranks:
        raise ArgumentError(
            f"old has {old.num_ranks} ranks, new has {new.num_ranks}: name the old rank of each with ranks="
        )
    given = np.arange(new.num_ranks) if ranks is None else np.asarray(ranks)
    known = given[given >= 0] if given.shape == (new.num_ranks,) and given.dtype.kind in "iu" else None
    if (
        known is None
        or len(set(known.tolist())) < len(known)
        or (given < -1).any()
        or (given >= old.num_ranks).any()
    ):
        raise ArgumentError(
            f"ranks must name a different one of {old.num_ranks} old ranks, or -1, for each of {new.num_ranks} ranks"
        )
    held = np.full((old.num_layers, new.num_ranks, slots.shape[2]), -1, np.int64)
    held[:, given >= 0] = slots[:, known]
    return held


def _first_slots(held: IntArray, num_experts: int) -> IntArray:
    """The first slot of each expert on each rank ``[L, P, E]``, -1 where the rank does not hold it."""
    layers, ranks, slots = held.shape
    table = np.full((layers, ranks, num_experts + 1), -1, np.int64)
    rows, columns = np.arange(layers)[:, None], np.arange(ranks)[None, :]
    for slot in range(slots - 1, -1, -1):
        table[rows, columns, held[:, :, slot]] = slot
    return table[:, :, :-1]  # what was empty fell into the last column


def _layer(row: int, before: IntArray, after: IntArray, first: IntArray, nodes: IntArray) -> LayerTransfer:
    """The transfer of one layer, from ``before [P, slots_per_rank]`` to ``after``; ``first [P, E]``."""
    rank, slot = np.nonzero(before != after)
    expert = after[rank, slot]
    here = first[rank, expert]
    copies = np.stack([rank, here, slot], axis=1)[here >= 0]
    held: BoolArray = np.asarray(np.any(first >= 0, axis=0))
    lost = np.stack([rank, slot, expert], axis=1)[~held[expert]]
    rank, slot, expert = (each[(here < 0) & held[expert]] for each in (rank, slot, expert))
    _, leader, group = np.unique(rank * first.shape[1] + expert, return_index=True, return_inverse=True)
    follows = leader[group] != np.arange(len(rank))
    twins = np.stack([rank, slot[leader[group]], slot], axis=1)[follows]
    fetches, num_rounds = _schedule(rank[leader], slot[leader], expert[leader], first, nodes)
    return LayerTransfer(row, fetches, copies, twins, lost, num_rounds)


def _schedule(
    targets: IntArray, slots: IntArray, experts: IntArray, first: IntArray, nodes: IntArray
) -> tuple[IntArray, int]:
    """Sources and rounds of fetches ``[F]``; see `LayerTransfer.fetches`."""
    holds: BoolArray = np.asarray(first >= 0, dtype=np.bool_, order="C")
    near = (holds[:, experts] & (nodes[:, None] == nodes[targets][None, :])).sum(axis=0)
    # Those with the least choice choose first.
    order = np.argsort(np.where(near > 0, near, holds.sum(axis=0)[experts]), kind="stable")
    targets, slots, experts = targets[order], slots[order], experts[order]
    sources, rounds, number = in_rounds(experts, targets, holds, nodes)
    table = np.stack([rounds, sources, first[sources, experts], targets, slots, experts], axis=1)
    return table[np.lexsort((sources, rounds))], number
