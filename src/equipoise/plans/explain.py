"""What holds the worst layer of a plan back, in words."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..metrics import imbalance, rank_loads, scaled
from ..placement import BoolArray, Placement
from ..planning.bounds import bound_arguments
from ..problem import Problem
from ..routes import Routes
from ..topology import Topology
from .communication import count_pairs
from .plan import ask, checked_placement
from .served import served_loads, side_by_side

if TYPE_CHECKING:
    from .plan import Plan

AT_THE_BOUND = 0.002
MOST_NAMED = 4


def explain(plan: Plan) -> str:
    """The worst layer: its busiest rank and experts, the bound it runs into, and what one more slot would bring.

    Numbers are in-sample, over the sum of the windows that the plan was made from; rank loads are multiples of the
    layer's mean rank load. A plan for batches is not explained by even loads: there all numbers are means over the
    windows, each split by its own load.
    """
    report, placement = plan.report, plan.placement
    total, _ = scaled(plan.trace.total())
    if not total.any():
        return "No layer has any load; there is nothing to balance."
    if placement.split == "batch":
        return _for_batches(plan)
    layer = int(np.where(total.any(axis=1), report.imbalance_after, 0.0).argmax())
    total = total[layer : layer + 1]
    loads = rank_loads(total, placement.layer(layer))[0]
    mean = float(loads.mean())
    rank = int((loads / plan.topology.speeds).argmax())
    slots = placement.phy2log[layer].reshape(placement.num_ranks, -1)[rank]
    counts = placement.logcnt[layer]
    share = {int(e): float(total[0, e] / counts[e] / mean) for e in slots}
    heavy = sorted(share, key=lambda e: -share[e])[:MOST_NAMED]
    named = ", ".join(
        f"expert {e} ({share[e]:.3f} of a mean rank load, {counts[e]} replica{'s' if counts[e] > 1 else ''})"
        for e in heavy
    )
    after = float(report.imbalance_after[layer])
    lines = [
        f"Layer {placement.layers[layer]} is the worst: "
        f"imbalance {after:.4f}, lower bound {report.bound[layer]:.4f}.",
        f"Its busiest rank is {rank}, with {len(slots)} slots; the heaviest there: {named}.",
        _cause(total, plan.topology, report.grouped[[layer]], after, float(report.bound[layer])),
        _about_one_more_slot(plan, layer, after),
        _if_split(plan, layer),
    ]
    return "\n".join(lines)


def _for_batches(plan: Plan) -> str:
    """The layer that is worst where every window is split by its load: which rank is busiest, each window decides."""
    counts = plan.trace.counts
    found = imbalance(served_loads(counts, plan.placement)).mean(axis=0)
    layer = int(np.where(counts.any(axis=(0, 2)), found, 0.0).argmax())
    lines = [
        f"Layer {plan.placement.layers[layer]} is the worst of a plan for batches that are split by their load.",
        _if_split(plan, layer),
        _about_one_more_slot(plan, layer, float(found[layer])),
    ]
    return "\n".join(lines)


def _cause(total: np.ndarray, topology: Topology, grouped: BoolArray, after: float, bound: float) -> str:
    found = bound_arguments(total, topology, grouped)
    arguments = {name: float(values[0]) for name, values in found.items()}
    reason = max(arguments, key=lambda name: arguments[name])
    if after > bound * (1 + AT_THE_BOUND):
        return (
            f"It is {after / bound - 1:.2%} above the bound: what is left is how the replicas fit together, "
            "which more slots a rank make easier."
        )
    near = f"It is within {max(after / bound - 1, 0):.2%} of"
    if reason == "replica":
        hot = int(total[0].argmax())
        return (
            f"{near} its bound: expert {hot} carries {total[0, hot] / total.sum():.1%} of the layer's tokens, "
            "and even its smallest possible replica fills a rank. More replicas are the only way down."
        )
    if reason == "node":
        return (
            f"{near} its bound: groups stay on nodes, and the busiest node has more than its part whichever "
            "groups share it. Letting spare replicas leave their node (groups anchored or ignored) is the way down."
        )
    return f"{near} perfect balance; there is nothing left to gain in-sample."


def _if_split(plan: Plan, layer: int) -> str:
    """What a dispatcher that splits every batch by its load makes of the layer's windows, each taken as a batch."""
    found = side_by_side(plan.trace.counts[:, layer : layer + 1], plan.placement.layer(layer))
    windows = plan.trace.num_windows
    over = f"its {windows} windows" if windows > 1 else "its window"
    return (
        f"Over {over}, an even split has imbalance {found.even:.4f} on average; split by their own load they have "
        f"{found.swept:.4f} after {found.sweeps} sweeps and {found.optimum:.4f} at best."
    )


def _about_one_more_slot(plan: Plan, layer: int, after: float) -> str:
    more = _with_one_more_slot(plan, layer)
    if more >= after - 5e-5:
        return "One more slot a rank would not help this layer."
    return f"One more slot a rank ({plan.topology.num_ranks} more replicas) would bring this layer to {more:.4f}."


def _with_one_more_slot(plan: Plan, layer: int) -> float:
    """The imbalance of one layer, planned anew with one more slot on every rank."""
    topology = replace(plan.topology, slots_per_rank=plan.topology.slots_per_rank + 1)
    windows = plan.trace.counts[:, layer : layer + 1].astype(np.float64)
    routes = plan.report.routes
    part = None if routes is None else routes.rows([layer])
    pairs = count_pairs(part) if isinstance(part, Routes) else part
    problem = Problem.trusting(windows, topology, pair_counts=None if pairs is None else pairs.counts)
    phy2log = ask(plan.report.policy, plan.policy, problem)
    return _served(windows, checked_placement(plan.report.policy, plan.policy, phy2log, problem), topology)


def _served(windows: np.ndarray, placement: Placement, topology: Topology) -> float:
    """Imbalance of one layer ``[T, 1, E]``: of windows split by their load their mean, split evenly of their sum."""
    batches = windows if placement.split == "batch" else windows.sum(axis=0)[None]
    return float(imbalance(served_loads(batches, placement), topology.rank_speed).mean())
