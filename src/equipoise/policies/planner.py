"""`plan`: the one way from loads to a checked placement and the report that justifies it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, PlacementError, PolicyError
from ..metrics import Balance, balance, expert_loads, imbalance, rank_loads
from ..placement import Placement, contiguous_placement
from ..planning.bounds import lower_bound
from ..topology import Topology
from ..trace import LoadTrace, check_loads
from . import DEFAULT, find_policy
from .base import Policy, honours_max_moves


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
    twins: npt.NDArray[np.int64]
    """``[L]``: replicas that share a rank with another replica of their expert"""
    seconds: float
    """time spent in the policy"""

    @property
    def gap(self) -> npt.NDArray[np.float64]:
        """``[L]``: how far the imbalance is above the bound, ``after / bound - 1``."""
        return self.imbalance_after / self.bound - 1.0

    @property
    def moved_share(self) -> float:
        """Fetches as a share of all slots."""
        return float(self.moves.sum() / (self.moves.size * self._num_slots))

    _num_slots: int = 1

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
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Plan:
    """A placement with the report that justifies it."""

    placement: Placement
    topology: Topology
    report: PlanReport


def plan(
    trace: LoadTrace | npt.ArrayLike,
    topology: Topology,
    policy: str | Policy = DEFAULT,
    *,
    current: Placement | None = None,
    max_moves: int | float | None = None,
    seed: int = 0,
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
    report = _report(name, trace, topology, placement, current, seconds)
    return Plan(placement, topology, report)


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


def _report(
    name: str,
    trace: LoadTrace,
    topology: Topology,
    placement: Placement,
    current: Placement | None,
    seconds: float,
) -> PlanReport:
    total = trace.total().astype(np.float64)
    previous = current or contiguous_placement(
        trace.num_layers, trace.num_experts, topology.num_ranks, topology.num_slots
    )
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
        moves=placement.moves_from(previous),
        twins=placement.twins,
        seconds=seconds,
        _num_slots=placement.num_slots,
    )
