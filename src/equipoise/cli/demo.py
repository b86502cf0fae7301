"""``equipoise demo``: the main job without any file, on a recorded load and on a synthetic one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from ..policy.registry import DEFAULT
from . import options, terminal
from .app import app
from .kernels import announce_compiling, plan_announced
from .live_demo import run_live

if TYPE_CHECKING:
    from rich.console import Console

    from ..replay.result import ReplayResult

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
    live: bool = typer.Option(
        False,
        "--live",
        help="Serve the small model on four ranks here, and watch its experts move. Needs PyTorch.",
    ),
) -> None:
    """Replay the recorded routing of a small model, then plan for a synthetic load shaped like DeepSeek-V3's.

    The small model (8 layers of 64 experts, on 8 ranks with 10 slots each) was trained for this and served text whose
    kind changes; it is re-planned while that goes on. The synthetic load has 58 layers of 256 experts, on 32 ranks
    with 9 slots each; the plan is made from four windows, and a fifth shows how it holds on loads that it has not
    seen.

    With --live nothing is replayed: the small model is served here, by four processes whose experts move, and every
    output is compared with that of the model in one process.
    """
    from ..policy.registry import find_policy

    name, _ = find_policy(policy)
    if live:
        run_live(name, seed, as_json)
        return
    lived, made = _replayed(name, seed), _Made(name, seed)
    if as_json:
        print(json.dumps({"recorded": lived.as_dict(), "synthetic": made.as_dict()}))
        return
    console = terminal.console(highlight=False)
    _show_recorded(console, lived)
    _show_synthetic(console, made)
    console.print("Your own loads: equipoise plan LOAD --ranks 32 --redundant 32 -o placement.json")


def _replayed(policy: str, seed: int) -> ReplayResult:
    """The recorded stream, re-planned by greedy and by the policy while it goes on."""
    from ..demo.recorded import recorded_trace
    from ..replay import replay
    from ..topology import Topology

    policies = list(dict.fromkeys(("greedy", policy)))
    with announce_compiling():
        return replay(
            recorded_trace(), Topology(*SMALL), policies, interval=INTERVAL, history=HISTORY, seed=seed
        )


def _show_recorded(console: Console, lived: ReplayResult) -> None:
    from ..report.tables import brief_table
    from ..report.terminal import rich_table

    settings = lived.settings
    console.print("RECORDED load, of a small model that was trained for this", style="bold")
    console.print(
        f"{settings.num_windows} windows of text whose kind changes, {len(settings.layers)} MoE layers x "
        f"{settings.num_experts} experts\n{SMALL[0]} ranks x {SMALL[1]} slots, planned again every "
        f"{INTERVAL} windows from the last {HISTORY}\n"
    )
    console.print(rich_table(brief_table(lived), pad_edge=False, title_style=""))


class _Made:
    """A plan for the synthetic load, and what it is on the window after."""

    def __init__(self, policy: str, seed: int) -> None:
        from ..metrics import balance, rank_loads
        from ..placement import contiguous_placement
        from ..synthetic import synthetic_trace
        from ..topology import Topology

        trace = synthetic_trace(num_windows=WINDOWS, seed=seed)
        topology = Topology(RANKS, SLOTS)
        self.policy, self.seed, self.seen = policy, seed, trace[:-1]
        self.plan = plan_announced(self.seen, topology, policy, seed=seed)
        start = contiguous_placement(trace.num_layers, trace.num_experts, RANKS, topology.num_slots)
        self.held_out = {
            what: balance(rank_loads(trace.counts[-1:], placement))
            for what, placement in (("before", start), ("after", self.plan.placement))
        }

    def as_dict(self) -> dict[str, Any]:
        from ..report.plan import plan_dict

        about: dict[str, Any] = {"source": self.seen.source, "seed": self.seed}
        about["held_out"] = {what: found.as_dict() for what, found in self.held_out.items()}
        return about | plan_dict(self.plan)


def _show_synthetic(console: Console, made: _Made) -> None:
    from ..report.plan import describe, plan_table
    from ..report.terminal import rank_bars, rich_table

    console.print("SYNTHETIC load, drawn by a generator and not recorded from any model", style="bold")
    console.print(describe(made.plan, made.seen))
    report = made.plan.report
    worst = int(report.imbalance_before.argmax())
    console.print(f"\nLoad of every rank in layer {worst}, the worst one before; 1.00 is the mean")
    before, after = report.imbalance_before[worst], report.imbalance_after[worst]
    for line in rank_bars(
        report.rank_loads_before[worst],
        report.rank_loads_after[worst],
        (f"contiguous: {before:.2f}", f"{made.policy}: {after:.4f}"),
        block="█" if console.encoding.startswith("utf") else "#",
        width=console.width,
    ):
        console.print(line)
    console.print()
    console.print(rich_table(plan_table(made.plan, before="contiguous"), pad_edge=False, title_style=""))
    means = {what: found.mean_imbalance for what, found in made.held_out.items()}
    console.print(
        "held-out, on the window after those: mean imbalance "
        f"{means['before']:.4f} before, {means['after']:.4f} after"
    )
