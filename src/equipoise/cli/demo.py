"""``equipoise demo``: the main job without any file, on a recorded load and on a synthetic one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..policy.registry import DEFAULT
from . import options, terminal
from .app import app
from .kernels import plan_announced

if TYPE_CHECKING:
    from ..replay.result import ReplayResult
    from ..report.table import Table

RANKS, SLOTS = 32, 9
WINDOWS = 5
SMALL = (8, 10)
"""ranks and slots a rank for the recorded load"""
INTERVAL, HISTORY = 2, 8


@app.command()
def demo(
    policy: options.PolicyName = DEFAULT,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Replay the recorded routing of a small model, then plan for a synthetic load shaped like DeepSeek-V3's.

    The small model (8 layers of 64 experts, on 8 ranks with 10 slots each) was trained for this and served text whose
    kind changes; it is re-planned while that goes on. The synthetic load has 58 layers of 256 experts, on 32 ranks
    with 9 slots each; the plan is made from four windows, and a fifth shows how it holds on loads that it has not
    seen.
    """
    from ..metrics import balance, rank_loads
    from ..placement import contiguous_placement
    from ..policy.registry import find_policy
    from ..report.plan import describe, plan_dict, plan_table
    from ..report.terminal import rank_bars, rich_table
    from ..synthetic import synthetic_trace
    from ..topology import Topology

    name, _ = find_policy(policy)
    trace = synthetic_trace(num_windows=WINDOWS, seed=seed)
    seen, later = trace[:-1], trace[-1:]
    topology = Topology(RANKS, SLOTS)
    made = plan_announced(seen, topology, name, seed=seed)
    start = contiguous_placement(trace.num_layers, trace.num_experts, RANKS, topology.num_slots)
    held_out = {
        what: balance(rank_loads(later.counts, placement))
        for what, placement in (("before", start), ("after", made.placement))
    }
    lived = _replayed(name, seed)
    if as_json:
        about: dict[str, Any] = {"recorded": lived.as_dict()}
        about |= {"source": trace.source, "seed": seed, "synthetic": True}
        about["held_out"] = {what: found.as_dict() for what, found in held_out.items()}
        print(json.dumps(about | plan_dict(made)))
        return
    console = terminal.console(highlight=False)
    console.print("RECORDED load, of a small model that was trained for this", style="bold")
    console.print(_about(lived))
    console.print(rich_table(_lived_table(lived), pad_edge=False, title_style=""))
    console.print("SYNTHETIC load, drawn by a generator and not recorded from any model", style="bold")
    console.print(describe(made, seen))
    report = made.report
    worst = int(report.imbalance_before.argmax())
    console.print(f"\nLoad of every rank in layer {worst}, the worst one before; 1.00 is the mean")
    for line in rank_bars(
        report.rank_loads_before[worst],
        report.rank_loads_after[worst],
        (f"contiguous: {report.imbalance_before[worst]:.2f}", f"{name}: {report.imbalance_after[worst]:.4f}"),
        block="█" if console.encoding.startswith("utf") else "#",
        width=console.width,
    ):
        console.print(line)
    console.print()
    console.print(rich_table(plan_table(made, before="contiguous"), pad_edge=False, title_style=""))
    console.print(
        "held-out, on the window after those: mean imbalance "
        f"{held_out['before'].mean_imbalance:.4f} before, {held_out['after'].mean_imbalance:.4f} after"
    )
    console.print("Your own loads: equipoise plan LOAD --ranks 32 --redundant 32 -o placement.json")


def _replayed(policy: str, seed: int) -> ReplayResult:
    """The recorded stream, re-planned by greedy and by the policy while it goes on."""
    from ..demo.recorded import recorded_trace
    from ..replay import replay
    from ..topology import Topology

    policies = list(dict.fromkeys(("greedy", policy)))
    trace = recorded_trace()
    return replay(trace, Topology(*SMALL), policies, interval=INTERVAL, history=HISTORY, seed=seed)


def _about(lived: ReplayResult) -> str:
    settings = lived.settings
    return (
        f"{settings.num_windows} windows of text whose kind changes, {len(settings.layers)} MoE layers x "
        f"{settings.num_experts} experts\n{SMALL[0]} ranks x {SMALL[1]} slots, planned again every "
        f"{INTERVAL} windows from the last {HISTORY}\n"
    )


def _lived_table(lived: ReplayResult) -> Table:
    from ..report.table import Table, columns, row

    shown = [series for series in lived.series if series.label not in ("all-past", "oracle")]
    rows = tuple(
        row(
            series.label,
            f"{series.summary.mean_imbalance:.4f}",
            f"{series.summary.worst_layer:.4f}",
            f"{series.summary.moves_share:.1%}" if series.summary.proposals else None,
        )
        for series in shown
    )
    return Table(
        "held-out: scored on the windows after those that it was planned from",
        columns("", ("mean", "imbalance"), ("worst", "layer"), ("slots moved", "each time")),
        (rows,),
    )
