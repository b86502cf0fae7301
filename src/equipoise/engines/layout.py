"""A map of an engine, some of whose ranks may be gone, and some of whose layers may have no experts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..errors import PlacementError
from ..placement import BoolArray, IntArray, Placement, contiguous_placement
from ..problem import Held
from ..topology import Topology


@dataclass(frozen=True, eq=False)
class Layout:
    """The logical expert of every slot of all layers, and which ranks are there.

    Plans are made for the ranks that are there, numbered without gaps; `moved` puts them back. A rank that is gone
    keeps what its slots held: nothing has to be sent there.

    Parameters
    ----------
    phy2log : integers ``[L, R]``
    alive : booleans ``[P]``, whether each rank is there
    num_experts : logical experts ``E`` of a layer

    Examples
    --------
    >>> layout = Layout(np.array([[0, 1, 2, 0, 1, 2]]), np.array([True, False, True]), 3)
    >>> layout.held([0]).phy2log.tolist(), layout.legal
    ([[0, 1, 1, 2]], True)
    >>> layout.log2phy().tolist()
    [[[0, -1], [1, 4], [5, -1]]]
    """

    phy2log: IntArray
    alive: BoolArray
    num_experts: int

    @property
    def whole(self) -> bool:
        """Whether all ranks are there."""
        return bool(self.alive.all())

    @property
    def first(self) -> int:
        """The first rank that is there."""
        return int(np.argmax(self.alive))

    @property
    def slots(self) -> IntArray:
        """The slots of ranks that are there."""
        per_rank = self.phy2log.shape[1] // len(self.alive)
        return np.flatnonzero(np.repeat(self.alive, per_rank))

    @property
    def legal(self) -> bool:
        """Whether every layer has all of its experts on ranks that are there."""
        return bool(self._whole_layers().all())

    def _whole_layers(self) -> BoolArray:
        """Whether each layer ``[L]`` has all of its experts on ranks that are there, and nothing else."""
        on = self.phy2log[:, self.slots]
        in_range = ((on >= 0) & (on < self.num_experts)).all(axis=1)
        present = np.zeros((len(on), self.num_experts), np.bool_)
        np.put_along_axis(present, np.clip(on, 0, self.num_experts - 1), True, axis=1)
        return np.asarray(in_range & present.all(axis=1))

    def topology(self, num_nodes: int, num_groups: int) -> Topology:
        """The machine of the ranks that are there; groups and nodes only where they divide it."""
        ranks, per_rank = len(self.alive), self.phy2log.shape[1] // len(self.alive)
        nodes = num_nodes if num_nodes > 0 and not ranks % num_nodes else 1
        groups = num_groups if num_groups > 0 and not self.num_experts % num_groups else 1
        of_rank = np.arange(ranks) // (ranks // nodes)
        _, renumbered = np.unique(of_rank[self.alive], return_inverse=True)
        node_of_rank = tuple(int(node) for node in renumbered.ravel())
        return Topology(len(node_of_rank), per_rank, num_groups=groups, node_of_rank=node_of_rank)

    def held(self, rows: list[int]) -> Held:
        """What the ranks that are there hold of some layers."""
        return Held(self.phy2log[rows][:, self.slots], int(self.alive.sum()), self.num_experts)

    def moved(self, placement: Placement, rows: list[int]) -> Layout:
        """The same with these layers placed anew.

        Raises
        ------
        PlacementError
            if the placement is not one of these ranks, slots and experts
        """
        slots = self.slots
        found = (placement.num_layers, placement.num_slots, placement.num_experts)
        if found != (len(rows), len(slots), self.num_experts):
            raise PlacementError(
                f"a placement of (layers, slots, experts) = {found}, expected "
                f"{(len(rows), len(slots), self.num_experts)}"
            )
        phy2log = self.phy2log.copy()
        phy2log[np.ix_(np.array(rows), slots)] = placement.phy2log
        return replace(self, phy2log=phy2log)

    def filled(self, rows: list[int]) -> Layout:
        """The same with any legal layout in those of these layers that have none.

        For layers without experts: nothing has to move there, but the engine's maps have a row for them.
        """
        slots = self.slots
        if len(slots) < self.num_experts:
            return self
        broken = [row for row in rows if not self._whole_layers()[row]]
        phy2log = self.phy2log.copy()
        some = contiguous_placement(1, self.num_experts, int(self.alive.sum()), len(slots))
        phy2log[np.ix_(np.array(broken, np.int64), slots)] = some.phy2log[0]
        return replace(self, phy2log=phy2log)

    def log2phy(self) -> IntArray:
        """Slots of each expert on ranks that are there, padded with -1: ``[L, E, X]``."""
        slots = self.slots
        on = Placement(self.phy2log[:, slots], int(self.alive.sum()), self.num_experts).log2phy
        return np.asarray(np.where(on < 0, -1, slots[on]))

    def logcnt(self) -> IntArray:
        """Replicas of each expert on ranks that are there: ``[L, E]``."""
        return np.asarray((self.log2phy() >= 0).sum(axis=2))
