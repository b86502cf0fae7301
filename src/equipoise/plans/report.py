"""What a plan does to loads: the report that justifies it, and its score on later windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..metrics import Balance, balance, expert_loads, imbalance, rank_loads, slot_matrix
from ..placement import Placement
from ..planning.bounds import lower_bound
from ..topology import Topology
from ..trace import LoadTrace


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

    def as_dict(self) -> dict[str, Any]:
        """The numbers by name, for JSON."""
        return {
            "fitted": self.fitted,
            "scored": self.scored,
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "split": None if self.split is None else self.split.as_dict(),
        }


@dataclass(frozen=True, eq=False)
class PlanReport:
    """What a plan does to the windows that it was planned from: everything here is in-sample.

    Loads are summed over the windows. The words are those of `equipoise.metrics`.
    """

    policy: str
    """name of the policy"""
    before: Balance
    """of the current placement; without one, of the contiguous placement with trivial replicas"""
    after: Balance
    """of the plan"""
    expert_level: Balance
    """of the plan's slots instead of its ranks; depends on the replica counts alone"""
    imbalance_before: npt.NDArray[np.float64]
    """``[L]``"""
    imbalance_after: npt.NDArray[np.float64]
    """``[L]``"""
    bound: npt.NDArray[np.float64]
    """``[L]``: no placement with an even split has a smaller imbalance"""
    rank_loads_before: npt.NDArray[np.float64]
    """tokens ``[L, P]``"""
    rank_loads_after: npt.NDArray[np.float64]
    """tokens ``[L, P]``"""
    moves: npt.NDArray[np.int64]
    """fetches ``[L]``: (rank, expert) pairs that the rank did not hold before"""
    moved_share: float
    """fetches as a share of all slots"""
    twins: npt.NDArray[np.int64]
    """``[L]``: replicas that share a rank with another replica of their expert"""
    seconds: float
    """time spent in the policy"""

    cross_node_share: float
    """the part of all tokens that is served away from the node that serves most of their expert's group; 0 with one
    node or one group"""
    split: Balance | None
    """of the plan under its token shares (`Plan.shares`), where asked for"""
    held_out: HeldOut | None
    """the same policy on later windows, where asked for; everything else here is in-sample"""

    @property
    def gap(self) -> npt.NDArray[np.float64]:
        """``[L]``: how far the imbalance is above the bound, ``after / bound - 1``."""
        return self.imbalance_after / self.bound - 1.0

    def as_dict(self) -> dict[str, Any]:
        """The numbers by name, for JSON; arrays as lists."""
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
            "held_out": None if self.held_out is None else self.held_out.as_dict(),
            "seconds": self.seconds,
        }


def cross_node_share(total: npt.NDArray[np.float64], placement: Placement, topology: Topology) -> float:
    """The part of all tokens served away from the node that serves most of their expert's group.

    Parameters
    ----------
    total : loads ``[L, E]``
    """
    if topology.num_nodes == 1 or topology.num_groups == 1 or not total.any():
        return 0.0
    by_rank = slot_matrix(placement) * total[:, :, None]
    by_group = by_rank.reshape(len(total), topology.num_groups, -1, topology.num_ranks).sum(axis=2)
    members = np.equal.outer(np.array(topology.nodes), np.arange(topology.num_nodes))
    by_node = by_group @ members.astype(np.float64)
    return float(1.0 - by_node.max(axis=2).sum() / total.sum())


def report_of(
    name: str,
    trace: LoadTrace,
    topology: Topology,
    placement: Placement,
    previous: Placement,
    moves: npt.NDArray[np.int64],
    seconds: float,
    shares: npt.NDArray[np.float64] | None,
    held_out: HeldOut | None,
) -> PlanReport:
    """The report of a plan.

    Parameters
    ----------
    name : of the policy
    previous : what the plan is compared with, on any number of ranks
    moves : fetches ``[L]``
    seconds : time spent in the policy
    shares : ``[L, R]``, where asked for
    """
    total = trace.total().astype(np.float64)
    before, after = rank_loads(total, previous), rank_loads(total, placement)
    return PlanReport(
        policy=name,
        before=balance(before),
        after=balance(after),
        expert_level=balance(expert_loads(total, placement)),
        imbalance_before=imbalance(before),
        imbalance_after=imbalance(after),
        bound=lower_bound(total, topology),
        rank_loads_before=before,
        rank_loads_after=after,
        moves=moves,
        moved_share=float(moves.sum() / placement.phy2log.size),
        twins=placement.twins,
        seconds=seconds,
        cross_node_share=cross_node_share(total, placement, topology),
        split=None if shares is None else balance(rank_loads(total, placement, shares)),
        held_out=held_out,
    )
