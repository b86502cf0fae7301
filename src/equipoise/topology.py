"""The machine that a placement is made for: ranks, slots, nodes and expert groups."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

from .errors import ArgumentError

# Kernels pack a load and an index into one 64-bit integer; these limits keep every sum exact.
MAX_SLOTS = 1 << 20
MAX_RANKS = 1 << 12


@dataclass(frozen=True)
class Topology:
    """Ranks, their slots, and how ranks and experts are grouped.

    Parameters
    ----------
    num_ranks : EP ranks (GPUs), ``P``
    slots_per_rank : physical expert slots on each rank, ``R / P``
    num_nodes : servers, ``N``; ranks are contiguous per node
    num_groups : expert groups of group-limited routing, ``G``; experts are contiguous per group

    Raises
    ------
    ArgumentError
        if a number is not a positive integer or ``num_ranks`` is not divisible by ``num_nodes``

    Examples
    --------
    >>> Topology(num_ranks=32, slots_per_rank=9, num_nodes=4, num_groups=8).num_slots
    288
    """

    num_ranks: int
    slots_per_rank: int
    num_nodes: int = 1
    num_groups: int = 1

    def __post_init__(self) -> None:
        for name in ("num_ranks", "slots_per_rank", "num_nodes", "num_groups"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ArgumentError(f"{name} must be a positive integer, got {value!r}")
            object.__setattr__(self, name, int(value))
        if self.num_ranks % self.num_nodes:
            raise ArgumentError(
                f"num_ranks={self.num_ranks} is not divisible by num_nodes={self.num_nodes}: "
                "every node needs the same number of ranks; use num_nodes=1 to plan without nodes"
            )
        if self.num_ranks > MAX_RANKS or self.num_slots > MAX_SLOTS:
            raise ArgumentError(
                f"{self.num_ranks} ranks with {self.num_slots} slots are beyond what the kernels can count "
                f"exactly ({MAX_RANKS} ranks, {MAX_SLOTS} slots)"
            )

    @classmethod
    def from_slots(cls, num_slots: int, num_ranks: int, num_nodes: int = 1, num_groups: int = 1) -> Topology:
        """The topology with ``num_slots`` slots in all; an error if ranks do not divide them."""
        for name, value in (("num_slots", num_slots), ("num_ranks", num_ranks)):
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ArgumentError(f"{name} must be a positive integer, got {value!r}")
        if num_slots % num_ranks:
            below, above = num_slots - num_slots % num_ranks, num_slots + -num_slots % num_ranks
            raise ArgumentError(
                f"{num_slots} slots are not divisible by {num_ranks} ranks; use {above}"
                + (f" or {below}" if below else "")
            )
        return cls(num_ranks, num_slots // num_ranks, num_nodes, num_groups)

    @property
    def num_slots(self) -> int:
        """Slots of a layer, ``R``."""
        return self.num_ranks * self.slots_per_rank

    @property
    def ranks_per_node(self) -> int:
        """Ranks of a node, ``P / N``."""
        return self.num_ranks // self.num_nodes

    @property
    def slots_per_node(self) -> int:
        """Slots of a node, ``R / N``."""
        return self.num_slots // self.num_nodes

    @property
    def hierarchical(self) -> bool:
        """Whether groups can be kept on nodes: more than one node, and ``N`` divides ``G``."""
        return self.num_nodes > 1 and self.num_groups % self.num_nodes == 0

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
