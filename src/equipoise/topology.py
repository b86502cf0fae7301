"""The machine that a placement is made for: ranks, slots, nodes and expert groups."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import Any

from .errors import ArgumentError

# Kernels pack a load and an index into one 64-bit integer; these limits keep every sum exact.
MAX_SLOTS = 1 << 20
MAX_RANKS = 1 << 12
MAX_SPEED = 1e9


@dataclass(frozen=True)
class Topology:
    """Ranks, their slots, and how ranks and experts are grouped.

    Parameters
    ----------
    num_ranks : EP ranks (GPUs), ``P``
    slots_per_rank : physical expert slots on each rank, ``R / P``
    num_nodes : servers, ``N``; ranks are contiguous per node
    num_groups : expert groups of group-limited routing, ``G``; experts are contiguous per group
    node_of_rank : ``[P]``, the node of each rank, ascending from 0, where nodes have different numbers of ranks (31
        ranks on 4 nodes, after one was lost); ``num_nodes`` then follows from it. Groups are kept on nodes only
        where all nodes have as many ranks
    rank_speed : ``[P]``, relative speed of each rank; all alike unless given. What is balanced is then the time of
        ranks, loads divided by speeds. Speeds that are all the same count as none

    Raises
    ------
    ArgumentError
        if a number is not a positive integer, ``num_ranks`` is not divisible by ``num_nodes``, or a rank has no node
        or no speed

    Examples
    --------
    >>> Topology(num_ranks=32, slots_per_rank=9, num_nodes=4, num_groups=8).num_slots
    288
    """

    num_ranks: int
    slots_per_rank: int
    num_nodes: int = 1
    num_groups: int = 1
    node_of_rank: tuple[int, ...] | None = None
    rank_speed: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("num_ranks", "slots_per_rank", "num_nodes", "num_groups"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ArgumentError(f"{name} must be a positive integer, got {value!r}")
            object.__setattr__(self, name, int(value))
        self._take_nodes()
        self._take_speeds()
        if self.num_ranks % self.num_nodes and self.even:
            raise ArgumentError(
                f"num_ranks={self.num_ranks} is not divisible by num_nodes={self.num_nodes}: "
                "every node needs the same number of ranks; use num_nodes=1 to plan without nodes"
            )
        if self.num_ranks > MAX_RANKS or self.num_slots > MAX_SLOTS:
            raise ArgumentError(
                f"{self.num_ranks} ranks with {self.num_slots} slots are beyond what the kernels can count "
                f"exactly ({MAX_RANKS} ranks, {MAX_SLOTS} slots)"
            )

    def _take_nodes(self) -> None:
        """Check ``node_of_rank`` and derive ``num_nodes``; nodes that are even are not told apart from the rest."""
        if self.node_of_rank is None:
            return
        given = self._of_ranks("node_of_rank", self.node_of_rank)
        nodes = [int(node) for node in given if isinstance(node, Integral) and not isinstance(node, bool)]
        if len(nodes) != len(given) or len(nodes) != self.num_ranks:
            raise ArgumentError(
                f"node_of_rank must name a node for each of {self.num_ranks} ranks, got {given}"
            )
        steps = {b - a for a, b in pairwise([0, *nodes])}
        if nodes[0] != 0 or not steps <= {0, 1}:
            raise ArgumentError(
                f"node_of_rank must ascend from 0 without a gap, since ranks are contiguous per node, got {given}"
            )
        count = nodes[-1] + 1
        if self.num_nodes not in (1, count):
            raise ArgumentError(
                f"node_of_rank names {count} nodes, but num_nodes={self.num_nodes}: leave num_nodes at 1"
            )
        sizes = {nodes.count(node) for node in range(count)}
        object.__setattr__(self, "num_nodes", count)
        object.__setattr__(self, "node_of_rank", None if len(sizes) == 1 else tuple(nodes))

    def _of_ranks(self, name: str, given: Any) -> tuple[Any, ...]:
        try:
            return tuple(given)
        except TypeError:
            raise ArgumentError(
                f"{name} must have an entry for each of {self.num_ranks} ranks, got {given!r}"
            ) from None

    def _take_speeds(self) -> None:
        if self.rank_speed is None:
            return
        given = self._of_ranks("rank_speed", self.rank_speed)
        speeds = tuple(float(x) for x in given if isinstance(x, (int, float)) and 0 < x < MAX_SPEED)
        if not len(speeds) == len(given) == self.num_ranks:
            raise ArgumentError(
                f"rank_speed must be a positive number for each of {self.num_ranks} ranks, got {given}"
            )
        object.__setattr__(self, "rank_speed", None if len(set(speeds)) == 1 else speeds)

    @classmethod
    def from_slots(cls, num_slots: int, num_ranks: int, num_nodes: int = 1, num_groups: int = 1) -> Topology:
        """The topology with ``num_slots`` slots in all; an error if ranks do not divide them."""
        for name, value in (("num_slots", num_slots), ("num_ranks", num_ranks)):
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ArgumentError(f"{name} must be a positive integer, got {value!r}")
        if num_slots % num_ranks:
            above = num_slots + -num_slots % num_ranks  # fewer might not hold all experts
            raise ArgumentError(f"{num_slots} slots are not divisible by {num_ranks} ranks; use {above}")
        return cls(num_ranks, num_slots // num_ranks, num_nodes, num_groups)

    @property
    def num_slots(self) -> int:
        """Slots of a layer, ``R``."""
        return self.num_ranks * self.slots_per_rank

    @property
    def even(self) -> bool:
        """Whether all nodes have the same number of ranks."""
        return self.node_of_rank is None

    @property
    def nodes(self) -> tuple[int, ...]:
        """The node of each rank ``[P]``."""
        if self.node_of_rank is not None:
            return self.node_of_rank
        return tuple(rank // self.ranks_per_node for rank in range(self.num_ranks))

    @property
    def speeds(self) -> tuple[float, ...]:
        """The speed of each rank ``[P]`` as a multiple of their mean."""
        if self.rank_speed is None:
            return (1.0,) * self.num_ranks
        mean = sum(self.rank_speed) / self.num_ranks
        return tuple(speed / mean for speed in self.rank_speed)

    @property
    def ranks_per_node(self) -> int:
        """Ranks of a node, ``P / N``, where nodes are even."""
        return self.num_ranks // self.num_nodes

    @property
    def slots_per_node(self) -> int:
        """Slots of a node, ``R / N``, where nodes are even."""
        return self.num_slots // self.num_nodes

    @property
    def hierarchical(self) -> bool:
        """Whether groups can be kept on nodes: more than one node, all alike, and ``N`` divides ``G``."""
        return self.num_nodes > 1 and self.even and self.num_groups % self.num_nodes == 0

    def check_experts(self, num_experts: int) -> None:
        """Raise `ArgumentError` unless ``num_experts`` experts fit the slots and the groups."""
        if num_experts > self.num_slots:
            raise ArgumentError(
                f"{num_experts} experts do not fit into {self.num_slots} slots "
                f"({self.num_ranks} ranks x {self.slots_per_rank}): every expert needs at least one slot; "
                f"use slots_per_rank={-(-num_experts // self.num_ranks)} or more"
            )
        if num_experts % self.num_groups:
            raise ArgumentError(
                f"{num_experts} experts are not divisible by num_groups={self.num_groups}; "
                "use num_groups=1 if routing is not group-limited"
            )
