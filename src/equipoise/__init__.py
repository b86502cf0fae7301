"""Expert-parallel load balancing for mixture-of-experts serving.

>>> import equipoise as eq
>>> trace = eq.synthetic_trace(num_layers=2, num_experts=16, num_windows=4, seed=0)
>>> plan = eq.plan(trace, eq.Topology(num_ranks=4, slots_per_rank=5))
>>> plan.placement.phy2log.shape
(2, 20)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    ArgumentError,
    EquipoiseError,
    FileAccessError,
    FormatError,
    MissingDependencyError,
    PlacementError,
    PolicyError,
)
from .metrics import Balance, balance, expert_loads, imbalance, rank_loads
from .placement import Placement, contiguous_placement
from .topology import Topology
from .trace import LoadTrace

if TYPE_CHECKING:
    from .formats import load_placement, load_trace, save_placement, save_trace
    from .planning.split import split_shares
    from .policies import policies
    from .policies.base import Policy
    from .policies.chunked import Chunked
    from .policies.dropin import rebalance_experts
    from .policies.ensemble import Ensemble
    from .policies.frontier import Frontier, frontier
    from .policies.greedy import Greedy
    from .policies.planner import Plan, PlanReport, plan
    from .policies.robust import Robust
    from .synthetic import synthetic_trace

__version__ = "0.1.0"

# What compiles kernels or reads files is imported on first use: `import equipoise` itself stays quick.
_LAZY = {
    "Chunked": "policies.chunked",
    "Ensemble": "policies.ensemble",
    "Greedy": "policies.greedy",
    "Plan": "policies.planner",
    "PlanReport": "policies.planner",
    "Policy": "policies.base",
    "Frontier": "policies.frontier",
    "frontier": "policies.frontier",
    "load_placement": "formats",
    "load_trace": "formats",
    "plan": "policies.planner",
    "Robust": "policies.robust",
    "policies": "policies",
    "rebalance_experts": "policies.dropin",
    "save_placement": "formats",
    "save_trace": "formats",
    "split_shares": "planning.split",
    "synthetic_trace": "synthetic",
}

__all__ = [
    "ArgumentError",
    "Balance",
    "Chunked",
    "Ensemble",
    "EquipoiseError",
    "FileAccessError",
    "FormatError",
    "Frontier",
    "Greedy",
    "LoadTrace",
    "MissingDependencyError",
    "Placement",
    "PlacementError",
    "Plan",
    "PlanReport",
    "Policy",
    "PolicyError",
    "Robust",
    "Topology",
    "balance",
    "contiguous_placement",
    "expert_loads",
    "frontier",
    "imbalance",
    "load_placement",
    "load_trace",
    "plan",
    "policies",
    "rank_loads",
    "rebalance_experts",
    "save_placement",
    "save_trace",
    "split_shares",
    "synthetic_trace",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
