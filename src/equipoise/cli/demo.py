"""``equipoise demo``: the main job on a synthetic load, without any file."""

from __future__ import annotations

import json

from ..policy.registry import DEFAULT
from . import options, terminal
from .app import app
from .kernels import plan_announced

RANKS, SLOTS = 32, 9
WINDOWS = 5


@app.command()
def demo(
    policy: options.PolicyName = DEFAULT,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Plan for a synthetic load shaped like DeepSeek-V3's and draw what the plan does to the ranks.

    58 layers of 256 experts on 32 ranks with 9 slots each. The plan is made from four windows; a fifth shows how
    it holds on loads that it has not seen.
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
    if as_json:
        about = {"source": trace.source, "seed": seed, "synthetic": True}
        about["held_out"] = {what: found.as_dict() for what, found in held_out.items()}
        print(json.dumps(about | plan_dict(made)))
        return
    console = terminal.console(highlight=False)
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
