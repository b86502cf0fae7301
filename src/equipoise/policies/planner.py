"""`plan`: the one way from loads to a checked placement and the report that justifies it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, PlacementError, PolicyError
from ..metrics import Balance, balance, expert_loads, imbalance, rank_loads, slot_matrix
from ..placement import Placement, contiguous_placement
from ..planning.bounds import lower_bound
from ..planning.split import split_shares
from ..topology import Topology
from ..trace import LoadTrace, check_loads
from . import DEFAULT, find_policy
from .base import Policy, honours_max_moves


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


@dataclass(frozen=True, eq=False)
class Plan:
    """A placement with the report that justifies it."""

    placement: Placement
    topology: Topology
    report: PlanReport
    shares: npt.NDArray[np.float64] | None
    """``[L, R]``, the part of its expert's tokens that each slot should take, where asked for"""
    trace: LoadTrace
    policy: Policy

    def explain(self) -> str:
        """What holds the worst layer back, and what one more slot would bring; see `policies.explain`."""
        from .explain import explain

        return explain(self)


def plan(
    trace: LoadTrace | npt.ArrayLike,
    topology: Topology,
    policy: str | Policy = DEFAULT,
    *,
    current: Placement | None = None,
    max_moves: int | float | None = None,
    seed: int = 0,
    shares: bool = False,
    held_out: bool = False,
) -> Plan:
    """Plan a placement from recorded loads.

    Parameters
    ----------
    trace : a `LoadTrace`, or counts ``[L, E]`` or ``[W, L, E]``
    topology : ranks, slots, nodes and groups
    policy : a name in `equipoise.policies`, or a policy
    current : the placement that the ranks hold now
    max_moves : budget of fetches over all layers together: a float is a share of all slots (0.05), an integer
        a number of fetches. Needs ``current`` and a policy that honours it
    seed : same input and seed, same plan
    shares : also split tokens among replicas (`equipoise.split_shares`) and report both splits; nothing applies
        the shares but whoever reads `Plan.shares`
    held_out : also plan from the first windows alone and score that on the last quarter of them, which the report
        then carries; needs two windows

    Raises
    ------
    ArgumentError
        naming the argument, what was found and what to do
    PolicyError
        if the policy returned something that is not a legal placement

    Examples
    --------
    >>> plan([[600, 560, 120, 120, 20, 10, 10, 10]], Topology(8, 2)).placement.num_slots
    16
    """
    if not isinstance(trace, LoadTrace):
        trace = LoadTrace(check_loads(trace, "trace", (2, 3)))
    name, chosen = find_policy(policy)
    check_request(trace.num_layers, trace.num_experts, topology, current, max_moves, seed)
    if max_moves is not None and not honours_max_moves(chosen):
        raise ArgumentError(f"policy {name!r} does not limit moves; max_moves needs one that does")
    loads = trace.counts.astype(np.float64)
    started = time.perf_counter()
    phy2log = chosen.place(loads, topology, current=current, max_moves=max_moves, seed=int(seed))
    seconds = time.perf_counter() - started
    placement = checked_placement(name, phy2log, trace, topology)
    later = None
    if held_out:
        later = score_held_out(trace, topology, name, chosen, current, max_moves, int(seed), shares)
    split = split_shares(trace, placement) if shares else None
    report = _report(name, trace, topology, placement, current, seconds, split, later)
    return Plan(placement, topology, report, split, trace, chosen)


def check_request(
    num_layers: int,
    num_experts: int,
    topology: Topology,
    current: Placement | None,
    max_moves: int | float | None,
    seed: int,
) -> None:
    """Raise `ArgumentError` unless the arguments of a plan fit together."""
    if not isinstance(topology, Topology):
        raise ArgumentError(f"topology must be an equipoise.Topology, got {type(topology).__name__}")
    topology.check_experts(num_experts)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 1 << 62:
        raise ArgumentError(f"seed must be an integer from 0 to 2^62 - 1, got {seed!r}")
    if current is not None:
        wanted = (num_layers, topology.num_slots, topology.num_ranks, num_experts)
        found = (current.num_layers, current.num_slots, current.num_ranks, current.num_experts)
        if found != wanted:
            raise ArgumentError(
                "current does not fit: it has (layers, slots, ranks, experts) = "
                f"{found}, the plan needs {wanted}"
            )
    if max_moves is None:
        return
    if isinstance(max_moves, bool) or not isinstance(max_moves, (int, float, np.integer, np.floating)):
        raise ArgumentError(f"max_moves must be an integer or a float, got {max_moves!r}")
    if not max_moves >= 0 or (isinstance(max_moves, float) and max_moves > 1):
        raise ArgumentError(
            f"max_moves must be a count of at least 0 or a share from 0.0 to 1.0, got {max_moves!r}"
        )
    if current is None:
        raise ArgumentError("max_moves needs current=: without it every slot is a move")


def checked_placement(name: str, phy2log: Any, trace: LoadTrace, topology: Topology) -> Placement:
    """What a policy returned, as a placement of the trace's layers; `PolicyError` if it is not legal."""
    wanted = (trace.num_layers, topology.num_slots)
    try:
        array = np.asarray(phy2log)
    except ValueError:  # ragged lists
        raise PolicyError(f"policy {name!r} returned ragged lists, expected an integer array") from None
    if array.shape != wanted:
        raise PolicyError(
            f"policy {name!r} returned shape {list(array.shape)}, expected [L, R] = {list(wanted)}"
        )
    try:
        return Placement(
            array,
            topology.num_ranks,
            trace.num_experts,
            layers=trace.layers,
            num_model_layers=trace.num_model_layers,
        )
    except PlacementError as error:
        raise PolicyError(f"policy {name!r} returned an illegal placement: {error}") from error


def score_held_out(
    trace: LoadTrace,
    topology: Topology,
    name: str,
    policy: Policy,
    current: Placement | None,
    max_moves: int | float | None,
    seed: int,
    shares: bool,
) -> HeldOut:
    """Plan from the first windows, score on the last quarter of them (at least one)."""
    if trace.num_windows < 2:
        raise ArgumentError(
            "held_out needs at least two windows: with one, nothing later is there to score on"
        )
    first = trace.num_windows - max(1, trace.num_windows // 4)
    seen, later = trace[:first], trace[first:]
    phy2log = policy.place(
        seen.counts.astype(np.float64), topology, current=current, max_moves=max_moves, seed=seed
    )
    placement = checked_placement(name, phy2log, trace, topology)
    split = None
    if shares:
        split = balance(rank_loads(later.counts, placement, split_shares(seen, placement)))
    return HeldOut(
        fitted=first,
        scored=trace.num_windows - first,
        before=balance(rank_loads(later.counts, current or _contiguous(trace, topology))),
        after=balance(rank_loads(later.counts, placement)),
        split=split,
    )


def _contiguous(trace: LoadTrace, topology: Topology) -> Placement:
    return contiguous_placement(trace.num_layers, trace.num_experts, topology.num_ranks, topology.num_slots)


def cross_node_share(total: npt.NDArray[np.float64], placement: Placement, topology: Topology) -> float:
    """The part of all tokens served away from the node that serves most of their expert's group.

    Parameters
    ----------
    total : loads ``[L, E]``
    """
    if topology.num_nodes == 1 or topology.num_groups == 1 or not total.any():
        return 0.0
    by_rank = slot_matrix(placement) * total[:, :, None]
    shape = (len(total), topology.num_groups, -1, topology.num_nodes, topology.ranks_per_node)
    by_node = by_rank.reshape(shape).sum(axis=(2, 4))
    return float(1.0 - by_node.max(axis=2).sum() / total.sum())


def _report(
    name: str,
    trace: LoadTrace,
    topology: Topology,
    placement: Placement,
    current: Placement | None,
    seconds: float,
    shares: npt.NDArray[np.float64] | None,
    held_out: HeldOut | None,
) -> PlanReport:
    total = trace.total().astype(np.float64)
    previous = current or _contiguous(trace, topology)
    before, after = rank_loads(total, previous), rank_loads(total, placement)
    moves = placement.moves_from(previous)
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
