"""``equipoise score``: a policy written as a program, or a built-in one, under a benchmark protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import terminal
from .app import app

if TYPE_CHECKING:
    from ..scoring import Score
    from ..trace import LoadTrace

REFUSED = 1


@app.command()
def score(
    program: str = typer.Argument(
        ..., metavar="PROGRAM", help="A Python file with rebalance_experts, or the name of a built-in policy."
    ),
    trace: Annotated[Path | None, typer.Option("--trace", help="Recorded loads to score on.")] = None,
    synthetic: Annotated[
        int | None,
        typer.Option("--synthetic", metavar="SEED", help="Score on a synthetic drifting trace instead."),
    ] = None,
    protocol: str = typer.Option(
        "equipoise", "--protocol", help="skydiscover, openevolve, leaderboard or equipoise."
    ),
    ranks: int = typer.Option(32, "--ranks", help="Ranks."),
    slots: int = typer.Option(288, "--slots", help="Slots of a layer, redundant ones included."),
    nodes: int = typer.Option(4, "--nodes", help="Nodes."),
    groups: int = typer.Option(8, "--groups", help="Expert groups."),
    window: int = typer.Option(100, "--window", help="Steps of a window."),
    ignore_groups: bool = typer.Option(
        False, "--ignore-groups", help="Built-in policies: do not keep groups on nodes."
    ),
    seed: int = typer.Option(0, "--seed", help="Built-in policies: seed."),
    arrays: str = typer.Option(
        "auto",
        "--arrays",
        help="What the program is given: torch, numpy, or auto (torch if it imports torch).",
    ),
    call_seconds: float = typer.Option(30.0, "--time-limit", help="Seconds that one call may take."),
    start_seconds: float = typer.Option(120.0, "--start-limit", help="Seconds for loading and warming up."),
    memory_mb: int = typer.Option(4096, "--memory-limit", help="Megabytes that the program may allocate."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Score a policy that is written as a program.

    The program runs in a process of its own, sees one window at a time, and is timed from outside. Every map
    is checked whole; a program that cheats scores 0, its reason is printed, and the exit code is 1.
    """
    from ..scoring import Limits, drifting_trace, score_program
    from ..topology import Topology

    if (trace is None) == (synthetic is None):
        raise typer.BadParameter("give either --trace FILE or --synthetic SEED")
    outcome = score_program(
        program,
        _load(trace) if trace is not None else drifting_trace(synthetic or 0),
        protocol,
        topology=Topology.from_slots(slots, ranks, nodes, groups),
        window=window,
        limits=Limits(start_seconds, call_seconds, memory_mb),
        arrays=arrays,
        ignore_groups=ignore_groups,
        seed=seed,
    )
    if as_json:
        typer.echo(json.dumps(outcome.as_dict(), indent=2))
    else:
        _print(outcome)
    if outcome.error is not None:
        raise typer.Exit(REFUSED)


def _load(path: Path) -> LoadTrace:
    from ..formats import load_trace

    return load_trace(path)


LABELS = {
    "balancedness_score_gpu": "GPU balance, held out (ratio of sums)",
    "balancedness_score_expert": "expert balance, held out (ratio of sums)",
    "times_algorithm": "mean time of a plan",
    "times_inference": "mean time of plan and simulation",
    "moves": "experts fetched at a re-plan, share of slots",
    "move_seconds": "time to fetch them",
    "balancedness_score": "points for balance",
    "speed_score": "speed score",
    "slow_penalty": "penalty for slowness",
}


def _print(outcome: Score) -> None:
    from rich.markup import escape
    from rich.table import Table

    from ..scoring import PROTOCOLS

    console = terminal.console()
    if outcome.error is not None:
        console.print(f"[bold red]refused:[/] {escape(outcome.error)}", soft_wrap=True)
        console.print(f"{escape(outcome.program)} scores 0 under {outcome.protocol}.", soft_wrap=True)
        return
    table = Table(title=f"{escape(outcome.program)} under {outcome.protocol}", title_justify="left")
    table.add_column("measured")
    table.add_column("", justify="right")
    for name, value in outcome.metrics.items():
        seconds = name.startswith("times_") or name == "move_seconds"
        table.add_row(LABELS[name], f"{value * 1e3:.2f} ms" if seconds else f"{value:.4f}")
    table.add_section()
    table.add_row("[bold]combined score[/]", f"[bold]{outcome.combined_score:.4f}[/]")
    console.print(table)
    console.print(f"score: {PROTOCOLS[outcome.protocol].formula}", soft_wrap=True, highlight=False)
    isolation = ", ".join(outcome.isolation) or "none (a built-in policy is trusted)"
    console.print(
        f"{outcome.windows} windows of {escape(outcome.source or 'the trace')}; {outcome.arrays} arrays; "
        f"isolation: {isolation}",
        soft_wrap=True,
        highlight=False,
    )
