"""``equipoise score``: a policy written as a program, or a built-in one, under a benchmark protocol."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ArgumentError
from . import terminal
from .app import app
from .options import MODELS, among

if TYPE_CHECKING:
    from ..scoring import Score
    from ..trace import LoadTrace

REFUSED = 1
SETTING = "Setting"


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
    ranks: Annotated[
        int | None, typer.Option("--ranks", help="EP ranks (GPUs); 32 unless given.", rich_help_panel=SETTING)
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            "--slots",
            help="Slots of a layer, redundant ones included; one for each expert and one more a rank unless given.",
            rich_help_panel=SETTING,
        ),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option("--nodes", help="Nodes; 8 ranks each unless given.", rich_help_panel=SETTING),
    ] = None,
    groups: Annotated[
        int | None,
        typer.Option("--groups", help="Expert groups; the model's unless given.", rich_help_panel=SETTING),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Preset of the model, for groups and the cost of moves; by layers and experts unless given: "
            f"{', '.join(MODELS)}.",
            autocompletion=among(MODELS),
            rich_help_panel=SETTING,
        ),
    ] = None,
    window: int = typer.Option(100, "--window", help="Steps of a window.", rich_help_panel=SETTING),
    salt: Annotated[
        str | None,
        typer.Option("--salt", help="Repeat a run: the salt that it printed. A new one unless given."),
    ] = None,
    ignore_groups: bool = typer.Option(
        False, "--ignore-groups", help="Built-in policies: do not keep groups on nodes."
    ),
    seed: int = typer.Option(0, "--seed", help="Built-in policies: seed."),
    arrays: str = typer.Option(
        "auto",
        "--arrays",
        autocompletion=among(("auto", "torch", "numpy")),
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
    from ..scoring import Limits, drifting_trace, score_program, setting_for
    from ..scoring.process import clean_up_on_sigterm
    from ..scoring.salt import checked

    if (trace is None) == (synthetic is None):
        raise typer.BadParameter("give either --trace FILE or --synthetic SEED")
    for option, limit in (
        ("--time-limit", call_seconds),
        ("--start-limit", start_seconds),
        ("--memory-limit", memory_mb),
    ):
        if not 0 < limit < math.inf:
            raise ArgumentError(f"{option} must be positive, got {limit:g}")
    clean_up_on_sigterm()
    salt = checked(salt)
    loads = _load(trace) if trace is not None else drifting_trace(synthetic or 0, salt=salt)
    setting = setting_for(loads, ranks=ranks, slots=slots, nodes=nodes, groups=groups, model=model)
    _warn([*setting.notes, *_trace_notes(loads, window)])
    outcome = score_program(
        program,
        loads,
        protocol,
        topology=setting.topology,
        model=model,
        window=window,
        limits=Limits(start_seconds, call_seconds, memory_mb),
        arrays=arrays,
        ignore_groups=ignore_groups,
        seed=seed,
        salt=salt,
    )
    if as_json:
        typer.echo(json.dumps(outcome.as_dict(), indent=2))
    else:
        _print(outcome)
    if outcome.error is not None:
        raise typer.Exit(REFUSED)


def _trace_notes(loads: LoadTrace, window: int) -> list[str]:
    assert loads.steps is not None
    width = int(loads.steps[0, 1] - loads.steps[0, 0])
    notes = []
    if width > window:
        notes.append(
            f"the trace's windows have {width} steps, more than --window {window}: scored as they are"
        )
    if loads.source.startswith("synthetic") and "salt" not in loads.source:
        notes.append(
            "the trace can be made again from its seed, by a program, too: --synthetic has one that cannot"
        )
    return notes


def _warn(notes: list[str]) -> None:
    from rich.markup import escape

    console = terminal.console(stderr=True, soft_wrap=True, highlight=False)
    for note in notes:
        console.print(f"[yellow]note:[/] {escape(note)}")


def _load(path: Path) -> LoadTrace:
    from ..formats import load_trace

    return load_trace(path)


def _print(outcome: Score) -> None:
    from rich.box import HEAVY_HEAD
    from rich.markup import escape

    from ..report.score import score_table
    from ..report.terminal import rich_table
    from ..report.units import counted
    from ..scoring import PROTOCOLS
    from ..scoring.messages import bounded

    console = terminal.console(soft_wrap=True, highlight=False)
    program = escape(bounded(outcome.program))
    if outcome.error is not None:
        console.print(f"[bold red]refused:[/] {escape(outcome.error)}")
        console.print(f"{program} scores 0 under {outcome.protocol}.")
    else:
        table = rich_table(score_table(outcome), box=HEAVY_HEAD, title_style="italic")
        console.print(table, soft_wrap=False)
        console.print(f"score: {PROTOCOLS[outcome.protocol].formula}")
        isolation = ", ".join(outcome.isolation) or "none (a built-in policy is trusted)"
        console.print(
            f"{counted(outcome.windows, 'window')} of {escape(bounded(outcome.source or 'the trace'))}; "
            f"{outcome.arrays} arrays; isolation: {isolation}"
        )
    topology = outcome.topology
    groups = counted(topology.num_groups, "expert group") if topology.num_groups > 1 else "no expert groups"
    machine = f"{counted(topology.num_ranks, 'rank')} of {counted(topology.num_nodes, 'node')}"
    console.print(
        f"asked for: {counted(topology.num_slots, 'slot')} on {machine}, {groups}; "
        f"moves cost as those of {outcome.model}"
    )
    console.print(f"to repeat this run: --salt {outcome.salt}")
