"""Expert-parallel load balancing for mixture-of-experts serving.

>>> import equipoise as eq
>>> trace = eq.synthetic_trace(num_layers=2, num_experts=16, num_windows=4, seed=0)
>>> plan = eq.plan(trace, eq.Topology(num_ranks=4, slots_per_rank=5))
>>> plan.placement.phy2log.shape
(2, 20)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import (
    ArgumentError,
    EquipoiseError,
    FileAccessError,
    FormatError,
    MissingDependencyError,
    PlacementError,
    PolicyError,
)
from .lazy import on_first_use

if TYPE_CHECKING:
    from .control.balancer import Balancer, Proposal
    from .dispatch.activated import split_activated
    from .dispatch.maps import DeviceMaps
    from .dispatch.near import assign_near
    from .dispatch.slots import assign, assign_by_number
    from .dispatch.split import split_batch
    from .formats import load_placement, load_trace, save_placement, save_trace
    from .formats.routes import load_routes, save_pairs
    from .formats.writer import TraceWriter
    from .metrics import Balance, balance, expert_loads, imbalance, rank_loads
    from .placement import Placement, contiguous_placement
    from .plans.communication import Communication, Together, communication, count_pairs, together
    from .plans.dropin import rebalance_experts
    from .plans.frontier import Frontier, frontier
    from .plans.plan import Plan, plan
    from .plans.report import PlanReport
    from .plans.shares import split_shares
    from .policy.chunked import Chunked
    from .policy.ensemble import Ensemble
    from .policy.greedy import Greedy
    from .policy.protocol import Ability, Policy
    from .policy.registry import policies
    from .policy.robust import Robust
    from .problem import Held, Problem
    from .routes import PairCounts, Routes
    from .runtime import ExpertWeights as ExpertWeights
    from .runtime import LiveBalancer as LiveBalancer
    from .runtime import Pace as Pace
    from .runtime import TorchTransport as TorchTransport
    from .synthetic import synthetic_trace
    from .topology import Topology
    from .trace import LoadTrace

__version__ = "0.2.0"

# Imported on first use: `import equipoise` itself stays quick, and the command hears Ctrl-C before NumPy is loaded.
_LAZY = {
    "Ability": "policy.protocol",
    "DeviceMaps": "dispatch.maps",
    "assign": "dispatch.slots",
    "assign_by_number": "dispatch.slots",
    "assign_near": "dispatch.near",
    "split_activated": "dispatch.activated",
    "split_batch": "dispatch.split",
    "Chunked": "policy.chunked",
    "Ensemble": "policy.ensemble",
    "Greedy": "policy.greedy",
    "Plan": "plans.plan",
    "PlanReport": "plans.report",
    "Policy": "policy.protocol",
    "Frontier": "plans.frontier",
    "frontier": "plans.frontier",
    "load_placement": "formats",
    "load_trace": "formats",
    "plan": "plans.plan",
    "Robust": "policy.robust",
    "policies": "policy.registry",
    "rebalance_experts": "plans.dropin",
    "save_placement": "formats",
    "save_trace": "formats",
    "split_shares": "plans.shares",
    "synthetic_trace": "synthetic",
    "Balance": "metrics",
    "Balancer": "control.balancer",
    "Proposal": "control.balancer",
    "balance": "metrics",
    "expert_loads": "metrics",
    "imbalance": "metrics",
    "rank_loads": "metrics",
    "Placement": "placement",
    "contiguous_placement": "placement",
    "Held": "problem",
    "Problem": "problem",
    "Topology": "topology",
    "LoadTrace": "trace",
    "TraceWriter": "formats.writer",
    "Communication": "plans.communication",
    "Together": "plans.communication",
    "communication": "plans.communication",
    "count_pairs": "plans.communication",
    "together": "plans.communication",
    "PairCounts": "routes",
    "Routes": "routes",
    "load_routes": "formats.routes",
    "save_pairs": "formats.routes",
    # Not in __all__, for they need torch, and `from equipoise import *` does not.
    "ExpertWeights": "runtime",
    "LiveBalancer": "runtime",
    "Pace": "runtime",
    "TorchTransport": "runtime",
}

__all__ = [
    "Ability",
    "ArgumentError",
    "Balance",
    "Balancer",
    "Chunked",
    "Communication",
    "DeviceMaps",
    "Ensemble",
    "EquipoiseError",
    "FileAccessError",
    "FormatError",
    "Frontier",
    "Greedy",
    "Held",
    "LoadTrace",
    "MissingDependencyError",
    "PairCounts",
    "Placement",
    "PlacementError",
    "Plan",
    "PlanReport",
    "Policy",
    "PolicyError",
    "Problem",
    "Proposal",
    "Robust",
    "Routes",
    "Together",
    "Topology",
    "TraceWriter",
    "assign",
    "assign_by_number",
    "assign_near",
    "balance",
    "communication",
    "contiguous_placement",
    "count_pairs",
    "expert_loads",
    "frontier",
    "imbalance",
    "load_placement",
    "load_routes",
    "load_trace",
    "plan",
    "policies",
    "rank_loads",
    "rebalance_experts",
    "save_pairs",
    "save_placement",
    "save_trace",
    "split_activated",
    "split_batch",
    "split_shares",
    "synthetic_trace",
    "together",
]


__getattr__, __dir__ = on_first_use(__name__, _LAZY, __all__)
