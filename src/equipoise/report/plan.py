"""A plan's report in the terminal: the table, and bars of rank loads."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ..errors import printable
from ..policies.planner import Plan
from ..trace import LoadTrace

BAR_WIDTH = 27


def describe(plan: Plan, trace: LoadTrace) -> str:
    """A line about the loads and one about the topology."""
    topology = plan.topology
    windows = f"{trace.num_windows} window" + ("s" if trace.num_windows > 1 else "")
    shape = f"{trace.num_layers} MoE layers x {trace.num_experts} experts"
    loads = f"{printable(trace.source) or 'loads'}: {windows}, {shape}"
    ranks = f"{topology.num_ranks} ranks x {topology.slots_per_rank} slots"
    if topology.hierarchical:
        where = f"on {topology.num_nodes} nodes, {topology.num_groups} expert groups kept on nodes"
    elif topology.num_nodes > 1:
        where = f"on {topology.num_nodes} nodes, replicas on any node"
    else:
        where = "taken as one node"
    return f"{loads}\n{ranks} {where}"


def plan_dict(plan: Plan) -> dict[str, Any]:
    """Topology and report, for JSON."""
    topology = plan.topology
    names = ("num_ranks", "slots_per_rank", "num_nodes", "num_groups", "num_slots", "hierarchical")
    return {
        "topology": {name: getattr(topology, name) for name in names},
        "layers": list(plan.placement.layers),
        "report": plan.report.as_dict(),
    }


def plan_table(plan: Plan, before: str) -> Table:
    """What a plan does to the loads that it was planned from; ``before`` says what the ranks held."""
    report = plan.report
    table = Table(
        title="in-sample: scored on the loads that it was planned from",
        title_justify="left",
        title_style="",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("measure")
    table.add_column(before, justify="right")
    table.add_column(report.policy, justify="right")
    layers = plan.placement.layers
    worst = [
        f"{x.max():.4f} (layer {layers[x.argmax()]})"
        for x in (report.imbalance_before, report.imbalance_after)
    ]
    rows = [
        ("mean imbalance", f"{report.before.mean_imbalance:.4f}", f"{report.after.mean_imbalance:.4f}"),
        ("worst layer", *worst),
        (
            "balancedness, mean of ratios (SGLang)",
            f"{report.before.mean_of_ratios:.4f}",
            f"{report.after.mean_of_ratios:.4f}",
        ),
        (
            "balancedness, ratio of sums (vLLM)",
            f"{report.before.ratio_of_sums:.4f}",
            f"{report.after.ratio_of_sums:.4f}",
        ),
    ]
    for row in rows:
        table.add_row(*row)
    table.add_section()
    table.add_row("lower bound of the mean imbalance", "", f"{report.bound.mean():.4f}")
    table.add_row("gap to the bound, mean", "", f"{report.gap.mean():.3%}")
    table.add_row("gap to the bound, worst layer", "", f"{report.gap.max():.3%}")
    if report.split is not None:
        table.add_row("mean imbalance under token shares", "", f"{report.split.mean_imbalance:.4f}")
    table.add_row("twins (replicas that share a rank)", "", f"{report.twins.sum()}")
    table.add_row("moves (share of all slots)", "", f"{report.moves.sum()} ({report.moved_share:.1%})")
    if report.cross_node_share:
        table.add_row("tokens served off their group's node", "", f"{report.cross_node_share:.1%}")
    table.add_row("planning time", "", f"{report.seconds * 1e3:.1f} ms")
    later = report.held_out
    if later is not None:
        table.add_section()
        table.add_row(
            f"held-out: planned from the first {later.fitted} windows, scored on the last {later.scored}"
        )
        held = (later.before, later.after)
        table.add_row("mean imbalance, held-out", *(f"{x.mean_imbalance:.4f}" for x in held))
        table.add_row("worst layer, held-out", *(f"{x.worst_layer:.4f}" for x in held))
        if later.split is not None:
            table.add_row("mean imbalance under shares, held-out", "", f"{later.split.mean_imbalance:.4f}")
    return table


def rank_bars(
    before: npt.NDArray[np.float64],
    after: npt.NDArray[np.float64],
    titles: tuple[str, str],
    *,
    block: str = "█",
) -> list[Text]:
    """Lines with two bars for every rank, both on one scale, and each load as a multiple of the mean.

    Parameters
    ----------
    before, after : rank loads ``[P]`` of one layer
    titles : what stands above the bars
    block : the character that bars are made of
    """
    pairs = [loads / (loads.mean() or 1.0) for loads in (before, after)]
    largest = max(1.0, *(float(loads.max()) for loads in pairs))
    column = BAR_WIDTH + 8
    lines = [Text("rank  " + titles[0][:column].ljust(column) + titles[1][:column], style="bold")]
    for rank in range(len(before)):
        line = Text(f"{rank:>4}  ")
        for loads in pairs:
            load = float(loads[rank])
            style = "red" if load > 1.25 else "yellow" if load > 1.05 else "green"
            bar = block * max(round(load / largest * BAR_WIDTH), 1 if load > 0 else 0)
            line.append(bar, style=style)
            line.append(f" {load:.2f}".ljust(column - len(bar)))
        line.rstrip()
        lines.append(line)
    return lines
