"""A plan's report: in words, in numbers, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import printable
from ..plans.plan import Plan
from ..plans.report import HeldOut, PlanReport
from ..plans.served import Splits
from ..trace import LoadTrace
from .activated import Known, activated_rows
from .communication import communication_cells
from .table import HEAD, Row, Table, columns, row
from .units import counted, percent


def describe(plan: Plan, trace: LoadTrace) -> str:
    """A line about the loads and one about the topology."""
    topology = plan.topology
    shape = f"{counted(trace.num_layers, 'MoE layer')} x {counted(trace.num_experts, 'expert')}"
    loads = f"{printable(trace.source) or 'loads'}: {counted(trace.num_windows, 'window')}, {shape}"
    if trace.batches is not None:
        loads += f", {trace.batches.sum():,} batches in which experts were hit"
    ranks = f"{counted(topology.num_ranks, 'rank')} x {counted(topology.slots_per_rank, 'slot')}"
    nodes = f"on {counted(topology.num_nodes, 'node')}"
    if topology.hierarchical:
        where = f"{nodes}, {counted(topology.num_groups, 'expert group')} kept on nodes"
    elif topology.num_nodes > 1:
        where = f"{nodes}, replicas on any node"
    else:
        where = "taken as one node"
    if topology.rank_speed is not None:
        where += f", their speeds {min(topology.rank_speed):g} to {max(topology.rank_speed):g}"
    return f"{loads}\n{ranks} {where}"


def plan_dict(plan: Plan) -> dict[str, Any]:
    """Topology and report, for JSON."""
    topology = plan.topology
    names = (
        "num_ranks",
        "slots_per_rank",
        "num_nodes",
        "num_groups",
        "num_slots",
        "hierarchical",
        "node_of_rank",
        "rank_speed",
    )
    return {
        "topology": {name: getattr(topology, name) for name in names},
        "layers": list(plan.placement.layers),
        "report": plan.report.as_dict(),
    }


def plan_table(plan: Plan, before: str, token_bytes: float | None = None) -> Table:
    """What a plan does to the loads that it was planned from; ``before`` says what the ranks held."""
    report = plan.report
    layers = plan.placement.layers
    worst = [
        f"{x.max():.4f} (layer {layers[x.argmax()]})"
        for x in (report.imbalance_before, report.imbalance_after)
    ]
    both = (report.before, report.after)
    measured = [
        row("mean imbalance", *(f"{x.mean_imbalance:.4f}" for x in both)),
        row("worst layer", *worst),
        row("balancedness, mean of ratios (SGLang)", *(f"{x.mean_of_ratios:.4f}" for x in both)),
        row("balancedness, ratio of sums (vLLM)", *(f"{x.ratio_of_sums:.4f}" for x in both)),
    ]
    sections = [measured, [row(name, "", value) for name, value in _about(report)]]
    if report.communication is not None:
        sections.append(_communication(report, token_bytes))
    if report.activated is not None:
        sections.append(_activated(report))
    if report.held_out is not None:
        sections.append(_held_out(report.held_out))
    return Table(
        "in-sample: scored on the loads that it was planned from",
        columns("measure", before, report.policy),
        tuple(map(tuple, sections)),
    )


def _about(report: PlanReport) -> Iterator[tuple[str, str]]:
    """What a plan is like, in itself."""
    yield "lower bound of the mean imbalance", f"{report.bound.mean():.4f}"
    yield "gap to the bound, mean", percent(report.gap.mean(), 3)
    yield "gap to the bound, worst layer", percent(report.gap.max(), 3)
    if report.split is not None:
        yield "mean imbalance under token shares", f"{report.split.mean_imbalance:.4f}"
    if report.splits is not None:
        yield from _of_splits(report.splits)
    yield "twins (replicas that share a rank)", f"{report.twins.sum()}"
    yield "moves (share of all slots)", f"{report.moves.sum()} ({report.moved_share:.1%})"
    if report.cross_node_share:
        yield "tokens served off their group's node", f"{report.cross_node_share:.1%}"
    yield "planning time", f"{report.seconds * 1e3:.1f} ms"


def _communication(report: PlanReport, token_bytes: float | None) -> list[Row]:
    """Where the recorded tokens go, before and after."""
    nodes = report.topology.num_nodes
    before = dict(communication_cells(report.communication_before, nodes, token_bytes))
    after = communication_cells(report.communication, nodes, token_bytes)
    return [row(name, before.get(name, ""), value) for name, value in after]


def _activated(report: PlanReport) -> list[Row]:
    """Activated experts on the busiest rank, before and after."""
    found = report.activated
    assert found is not None
    head = f"activated experts on the busiest rank, {found.batches:,} batches"
    return [row(head, role=HEAD), *_of_activated(report.activated_before, found)]


def _of_activated(before: Known, after: Known) -> list[Row]:
    known = dict(activated_rows(before))
    return [row(name, known.get(name, ""), value) for name, value in activated_rows(after)]


def _held_out(later: HeldOut) -> list[Row]:
    fitted, scored = later.fitted, later.scored
    both = (later.before, later.after)
    rows = [
        row(
            f"held-out: planned from the first {counted(fitted, 'window')}, scored on the last {scored}",
            role=HEAD,
        ),
        row("mean imbalance, held-out", *(f"{x.mean_imbalance:.4f}" for x in both)),
        row("worst layer, held-out", *(f"{x.worst_layer:.4f}" for x in both)),
    ]
    if later.split is not None:
        rows.append(row("mean imbalance under shares, held-out", "", f"{later.split.mean_imbalance:.4f}"))
    if later.splits is not None:
        rows += [row(f"{name}, held-out", "", value) for name, value in _of_splits(later.splits)]
    if later.activated is not None:
        rows.append(row(f"activated experts, held-out, {later.activated.batches:,} batches", role=HEAD))
        rows += _of_activated(later.activated_before, later.activated)
    return rows


def _of_splits(splits: Splits) -> Iterator[tuple[str, str]]:
    """The splits of a plan for batches, side by side: means over windows, each of which counts as a batch."""
    yield "each window split evenly", f"{splits.even:.4f}"
    yield f"each split by its load, {splits.sweeps} sweeps", f"{splits.swept:.4f}"
    yield "each split by its load, optimum", f"{splits.optimum:.4f}"
