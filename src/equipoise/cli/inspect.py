"""``equipoise inspect``: what a load file holds, how skewed it is, and what is odd about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options, terminal
from .app import app

if TYPE_CHECKING:
    from rich.console import Console

    from ..formats.hygiene import Finding
    from ..report.loads import LoadSummary
    from ..routes import PairCounts, Routes
    from ..trace import LoadTrace


@app.command()
def inspect(
    load: Annotated[
        Path,
        typer.Argument(metavar="LOAD", help="Load file, or folder of a recording with one file per rank."),
    ],
    source: options.LoadFormatName = None,
    window_steps: options.WindowSteps = None,
    window_tokens: options.WindowTokens = None,
    experts: options.Experts = None,
    layers: options.Layers = None,
    model_layers: options.ModelLayers = None,
    top_k: options.TopK = None,
    ranks: Annotated[
        str, typer.Option(help="Numbers of EP ranks to judge contiguous placement at.")
    ] = "8,16,32,64",
    routes: options.Routes = None,
    token_bytes: options.TokenBytes = None,
    batches: options.Batches = None,
    nodes: options.Nodes = 1,
    worst: Annotated[int, typer.Option(help="Layers to list, worst first.", min=0)] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show what recorded loads look like: size, skew, balance, drift, and what is odd about them.

    Example: equipoise inspect expert_distribution_recorder_1730.pt
    """
    from ..formats.hygiene import diagnose
    from ..formats.output import refuse_printing_into
    from ..report.activated import contiguous_activated, contiguous_ways
    from ..report.communication import contiguous_communication
    from ..report.loads import summarise
    from ..report.terminal import rich_table
    from .loading import batches_of, read_loads, routes_of

    numbers = _ranks(ranks)
    refuse_printing_into([load])
    trace, findings = read_loads(
        load, source, window_tokens=window_tokens, experts=experts, layers=layers, model_layers=model_layers
    )
    findings += diagnose(trace, top_k)
    if window_steps is not None:
        trace = trace.regroup(window_steps)
    summary = summarise(trace, numbers, top_k)
    known = routes_of(load, routes, trace)
    single = batches_of(load, batches, trace, source, options.layer_numbers(layers))
    ways = contiguous_ways(trace, single, numbers)
    if as_json:
        content = _as_dict(load, trace, summary, findings)
        content["communication"] = None if known is None else _communication(known, numbers, nodes)
        content["activated_experts"] = {str(number): way.as_dict() for number, way in ways} or None
        typer.echo(json.dumps(content, allow_nan=False))
        return
    console = terminal.console()
    _print(console, trace, summary, worst)
    if known is not None:
        console.print(rich_table(contiguous_communication(known, numbers, nodes, token_bytes)))
    if ways:
        console.print(rich_table(contiguous_activated(ways)))
    _print_findings(console, findings)


def _ranks(text: str) -> tuple[int, ...]:
    from ..errors import ArgumentError
    from ..topology import MAX_RANKS

    try:
        numbers = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        numbers = ()
    if not numbers or numbers[0] < 1 or numbers[-1] > MAX_RANKS:
        raise ArgumentError(f"--ranks must be numbers like 8,16,32, each 1 to {MAX_RANKS}, got {text!r}")
    return numbers


def _as_dict(path: Path, trace: LoadTrace, summary: LoadSummary, findings: list[Finding]) -> dict[str, Any]:
    from ..report.loads import phase_counts

    assert trace.steps is not None
    return {
        "path": str(path),
        "source": trace.source,
        "num_model_layers": trace.num_model_layers,
        "layer_numbers": list(trace.layers),
        "steps": [int(trace.steps[0, 0]), int(trace.steps[-1, 1])],
        "phases": phase_counts(trace),
        **summary.as_dict(),
        "findings": [
            {"kind": finding.kind, "message": finding.message, "applied": finding.applied}
            for finding in findings
        ],
    }


def _communication(routes: Routes | PairCounts, ranks: tuple[int, ...], nodes: int) -> dict[str, Any]:
    """Where tokens go under contiguous placement, by number of ranks."""
    from ..report.communication import contiguous_ways

    return {str(number): found.as_dict() for number, found in contiguous_ways(routes, ranks, nodes)}


def _print(console: Console, trace: LoadTrace, summary: LoadSummary, worst: int) -> None:
    from ..report.load_tables import contiguous_table, overview_table, worst_table
    from ..report.terminal import rich_table

    console.print(rich_table(overview_table(trace, summary), box=None))
    console.print(rich_table(contiguous_table(summary)))
    if worst:
        console.print(rich_table(worst_table(summary, worst)))


def _print_findings(console: Console, findings: list[Finding]) -> None:
    from rich.markup import escape

    if not findings:
        console.print("[green]nothing odd found[/]")
    for finding in findings:
        mark = "[green]done[/]" if finding.applied else "[yellow]note[/]"
        console.print(f"{mark} {escape(finding.message)}")
