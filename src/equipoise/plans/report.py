"""What a plan does to loads: the report that justifies it, and its score on later windows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..metrics import Balance, balance, expert_loads, imbalance, rank_loads, scaled
from ..placement import Placement, derived
from ..planning.bounds import lower_bound
from ..planning.groups import groups_are_on_nodes
from ..problem import Held
from ..routes import PairCounts, Routes
from ..topology import Topology
from ..trace import LoadTrace
from .activated import Activated, ExpectedActivated, known_activated
from .communication import Communication, Together, where_tokens_go
from .served import Splits, side_by_side

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HeldOut:
    """What a policy reaches on windows that it has not seen."""

    fitted: int
    """windows planned from, the first ones of the trace"""
    scored: int
    """windows scored on, the last ones"""
    before: Balance
    """of the current placement; without one, of the contiguous placement"""
    after: Balance
    """of the plan, even split"""
    split: Balance | None
    """of the plan under shares fitted to the windows planned from, where asked for"""
    splits: Splits | None = None
    """of a plan for batches: every window split evenly, in a few sweeps, and as well as can be"""
    activated_before: Activated | ExpectedActivated | None = None
    """of the current placement: activated experts of later batches, as far as batches or the loads tell"""
    activated: Activated | ExpectedActivated | None = None
    """of the plan"""

    def as_dict(self) -> dict[str, Any]:
        """The numbers by name, for JSON."""
        return {
            "fitted": self.fitted,
            "scored": self.scored,
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "split": None if self.split is None else self.split.as_dict(),
            "splits": None if self.splits is None else self.splits.as_dict(),
            "activated_before": None if self.activated_before is None else self.activated_before.as_dict(),
            "activated": None if self.activated is None else self.activated.as_dict(),
        }


@dataclass(frozen=True, eq=False)
class PlanReport:
    """What a plan does to the windows that it was planned from: everything here is in-sample.

    Loads are summed over the windows. The words are those of `equipoise.metrics`; where ranks have speeds, times take
    the place of rank loads, and a placement on another number of ranks is measured as if they were equally fast.
    Numbers are worked out when they are first asked for, from loads scaled so that they are right at any magnitude.
    """

    policy: str
    """name of the policy"""
    seconds: float
    """time spent in the policy"""
    keeps_groups: bool
    """whether the policy keeps groups on nodes where the topology has them, or had leave to part them"""
    held_out: HeldOut | None
    """the same policy on later windows, where asked for; everything else here is in-sample"""
    trace: LoadTrace = field(repr=False)
    topology: Topology = field(repr=False)
    placement: Placement = field(repr=False)
    previous: Placement = field(repr=False)
    """what the plan is compared with: the current placement, on any number of ranks; without one, the contiguous
    placement with trivial replicas"""
    held: Placement | Held = field(repr=False)
    """what ranks hold now, on the ranks of the plan: what moves count from"""
    shares: FloatArray | None = field(repr=False)
    routes: Routes | PairCounts | None = field(default=None, repr=False)
    """of tokens, where known"""
    batches: LoadTrace | None = field(default=None, repr=False)
    """single batches, where known"""

    @derived
    def moves(self) -> npt.NDArray[np.int64]:
        """Fetches ``[L]``: (rank, expert) pairs that the rank did not hold before."""
        return self.placement.moves_from(self.held)

    @derived
    def _loads(self) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        return scaled(self.trace.total())

    @derived
    def _rank_loads(self) -> tuple[FloatArray, FloatArray]:
        """Before and after, scaled."""
        loads = self._loads[0]
        return rank_loads(loads, self.previous), rank_loads(loads, self.placement)

    @property
    def _speed_before(self) -> tuple[float, ...] | None:
        return speed_of(self.previous, self.topology)

    @derived
    def before(self) -> Balance:
        """Of `previous`."""
        return balance(self._rank_loads[0], self._loads[1], self._speed_before)

    @derived
    def after(self) -> Balance:
        """Of the plan."""
        return balance(self._rank_loads[1], self._loads[1], self.topology.rank_speed)

    @derived
    def expert_level(self) -> Balance:
        """Of the plan's slots instead of its ranks; depends on the replica counts alone."""
        return balance(expert_loads(self._loads[0], self.placement), self._loads[1])

    @derived
    def split(self) -> Balance | None:
        """Of the plan under its token shares (`Plan.shares`), where asked for."""
        if self.shares is None:
            return None
        return balance(rank_loads(self._loads[0], self.placement, self.shares), self._loads[1])

    @derived
    def splits(self) -> Splits | None:
        """Of a plan for batches: every window split evenly, in a few sweeps, and as well as can be."""
        if self.placement.split == "even":
            return None
        return side_by_side(self.trace.counts, self.placement)

    @derived
    def imbalance_before(self) -> FloatArray:
        """``[L]``."""
        return imbalance(self._rank_loads[0], self._speed_before)

    @derived
    def imbalance_after(self) -> FloatArray:
        """``[L]``."""
        return imbalance(self._rank_loads[1], self.topology.rank_speed)

    @derived
    def rank_loads_before(self) -> FloatArray:
        """Tokens ``[L, P]``."""
        return np.ldexp(self._rank_loads[0], self._loads[1][:, None])

    @derived
    def rank_loads_after(self) -> FloatArray:
        """Tokens ``[L, P]``."""
        return np.ldexp(self._rank_loads[1], self._loads[1][:, None])

    @derived
    def grouped(self) -> npt.NDArray[np.bool_]:
        """``[L]``: whether a layer's groups had to be on nodes, and are."""
        if not (self.keeps_groups and self.topology.hierarchical):
            return np.zeros(self.placement.num_layers, np.bool_)
        return groups_are_on_nodes(self.placement.phy2log, self.placement.num_experts, self.topology)

    @derived
    def bound(self) -> FloatArray:
        """``[L]``: no placement that the policy had leave to make, with an even split, has a smaller imbalance."""
        return lower_bound(self._loads[0], self.topology, self.grouped)

    @property
    def gap(self) -> FloatArray:
        """``[L]``: how far the imbalance is above the bound, ``after / bound - 1``."""
        return self.imbalance_after / self.bound - 1.0

    @property
    def moved_share(self) -> float:
        """Fetches as a share of all slots."""
        return float(self.moves.sum() / self.placement.phy2log.size)

    @derived
    def twins(self) -> npt.NDArray[np.int64]:
        """``[L]``: replicas that share a rank with another replica of their expert."""
        return self.placement.twins

    @derived
    def cross_node_share(self) -> float:
        """The part of all tokens that is served away from the node that serves most of their expert's group; 0 with
        one node or one group."""
        return cross_node_share(*self._loads, self.placement, self.topology)

    @derived
    def communication_before(self) -> Communication | Together | None:
        """Where tokens go under `previous`; ``None`` where routes are not known, or on another number of ranks."""
        return where_tokens_go(self.routes, self.previous, self.topology)

    @derived
    def communication(self) -> Communication | Together | None:
        """Where tokens go under the plan, as far as `routes` tell."""
        return where_tokens_go(self.routes, self.placement, self.topology)

    @derived
    def activated_before(self) -> Activated | ExpectedActivated | None:
        """Activated experts on the busiest rank under `previous`, as far as `batches` or the loads tell."""
        return known_activated(self.trace, self.batches, self.previous)

    @derived
    def activated(self) -> Activated | ExpectedActivated | None:
        """The same under the plan."""
        return known_activated(self.trace, self.batches, self.placement)

    def as_dict(self) -> dict[str, Any]:
        """The numbers by name, for JSON; arrays as lists."""
        communication = (self.communication_before, self.communication)
        activated = (self.activated_before, self.activated)
        return {
            "policy": self.policy,
            "scored": "in-sample",
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "expert_level": self.expert_level.as_dict(),
            "imbalance_before": self.imbalance_before.tolist(),
            "imbalance_after": self.imbalance_after.tolist(),
            "bound": self.bound.tolist(),
            "gap": self.gap.tolist(),
            "moves": self.moves.tolist(),
            "moved_share": self.moved_share,
            "twins": self.twins.tolist(),
            "cross_node_share": self.cross_node_share,
            "split": None if self.split is None else self.split.as_dict(),
            "splits": None if self.splits is None else self.splits.as_dict(),
            "held_out": None if self.held_out is None else self.held_out.as_dict(),
            "communication_before": None if communication[0] is None else communication[0].as_dict(),
            "communication": None if communication[1] is None else communication[1].as_dict(),
            "activated_before": None if activated[0] is None else activated[0].as_dict(),
            "activated": None if activated[1] is None else activated[1].as_dict(),
            "seconds": self.seconds,
        }


def speed_of(placement: Placement, topology: Topology) -> tuple[float, ...] | None:
    """The speeds of a placement's ranks; those of another number of ranks than the topology has are not known."""
    return topology.rank_speed if placement.num_ranks == topology.num_ranks else None


def cross_node_share(
    loads: FloatArray, exponents: npt.NDArray[np.int64], placement: Placement, topology: Topology
) -> float:
    """The part of all tokens served away from the node that serves most of their expert's group.

    Parameters
    ----------
    loads, exponents : ``[L, E]`` and ``[L]``, as `equipoise.metrics.scaled` returns them
    """
    if topology.num_nodes == 1 or topology.num_groups == 1 or not loads.any():
        return 0.0
    num_layers, groups, nodes = placement.num_layers, topology.num_groups, topology.num_nodes
    group = placement.phy2log // (placement.num_experts // groups)
    node = np.repeat(np.array(topology.nodes), placement.slots_per_rank)
    cells = (np.arange(num_layers)[:, None] * groups + group) * nodes + node
    tokens = np.bincount(
        cells.ravel(), expert_loads(loads, placement).ravel(), minlength=num_layers * groups * nodes
    )
    kept = tokens.reshape(num_layers, groups, nodes).max(axis=2).sum(axis=1)
    weight = np.ldexp(1.0, exponents - exponents.max())
    return max(0.0, float(1.0 - (kept * weight).sum() / (loads.sum(axis=1) * weight).sum()))
