"""``equipoise inspect``: what a load file holds, how skewed it is, and what is odd about it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import printable
from . import options, terminal
from .app import app

if TYPE_CHECKING:
    from rich.console import Console

    from ..formats.hygiene import Finding
    from ..report.loads import LoadSummary, Similarity
    from ..trace import LoadTrace

BARS = "▁▂▃▄▅▆▇█"


@app.command()
def inspect(
    load: Annotated[
        Path,
        typer.Argument(metavar="LOAD", help="Load file, or folder of a recording with one file per rank."),
    ],
    source: Annotated[
        str | None, typer.Option("--from", help="Format of LOAD; found from its content by default.")
    ] = None,
    window_steps: Annotated[
        int | None, typer.Option(help="Sum this many windows of the file into one.", min=1)
    ] = None,
    window_tokens: Annotated[
        int | None, typer.Option(help="Tokens per window, for token routes.", min=1)
    ] = None,
    experts: Annotated[
        int | None, typer.Option(help="Experts per layer, for token routes that do not say.", min=1)
    ] = None,
    layers: options.Layers = None,
    model_layers: options.ModelLayers = None,
    top_k: Annotated[
        int | None, typer.Option(help="Experts per token, where the file does not say.", min=1)
    ] = None,
    ranks: Annotated[
        str, typer.Option(help="Numbers of EP ranks to judge contiguous placement at.")
    ] = "8,16,32,64",
    worst: Annotated[int, typer.Option(help="Layers to list, worst first.", min=0)] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show what recorded loads look like: size, skew, balance, drift, and what is odd about them.

    Example: equipoise inspect expert_distribution_recorder_1730.pt
    """
    from ..formats import read_trace
    from ..formats.hygiene import diagnose
    from ..formats.output import refuse_printing_into
    from ..report.loads import summarise
    from .loading import progress_bar

    numbers = _ranks(ranks)
    refuse_printing_into([load])
    with progress_bar(load) as progress:
        trace, findings = read_trace(
            load,
            source,
            window_tokens=window_tokens,
            num_experts=experts,
            layers=options.layer_numbers(layers),
            num_model_layers=model_layers,
            progress=progress,
        )
    findings += diagnose(trace, top_k)
    if window_steps is not None:
        trace = trace.regroup(window_steps)
    summary = summarise(trace, numbers, top_k)
    if as_json:
        typer.echo(json.dumps(_as_dict(load, trace, summary, findings), allow_nan=False))
    else:
        _print(terminal.console(), trace, summary, findings, worst)


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
    assert trace.steps is not None
    return {
        "path": str(path),
        "source": trace.source,
        "num_model_layers": trace.num_model_layers,
        "layer_numbers": list(trace.layers),
        "steps": [int(trace.steps[0, 0]), int(trace.steps[-1, 1])],
        "phases": _phases(trace),
        **summary.as_dict(),
        "findings": [
            {"kind": finding.kind, "message": finding.message, "applied": finding.applied}
            for finding in findings
        ],
    }


def _phases(trace: LoadTrace) -> dict[str, int] | None:
    if trace.phases is None:
        return None
    return {tag: trace.phases.count(tag) for tag in sorted(set(trace.phases))}


def _print(
    console: Console, trace: LoadTrace, summary: LoadSummary, findings: list[Finding], worst: int
) -> None:
    console.print(_overview(trace, summary))
    console.print(_balance(summary))
    if worst:
        console.print(_worst(summary, worst))
    _print_findings(console, findings)


def _overview(trace: LoadTrace, summary: LoadSummary) -> Any:
    from rich.table import Table
    from rich.text import Text

    assert trace.steps is not None
    table = Table(
        title=Text(printable(trace.source) or "loads"),
        title_justify="left",
        title_style="bold",
        show_header=False,
        box=None,
    )
    table.add_column(style="bold")
    table.add_column()
    of = f" of {trace.num_model_layers} in the model" if trace.num_model_layers else ""
    table.add_row("layers", f"{summary.layers}{of} ({_span(trace.layers)})")
    table.add_row("experts", f"{summary.experts}" + (f", top-{summary.top_k}" if summary.top_k else ""))
    steps = f" (steps {trace.steps[0, 0]:,} to {trace.steps[-1, 1] - 1:,})" if len(trace) > 1 else ""
    table.add_row("windows", f"{summary.windows:,}{steps}")
    if (phases := _phases(trace)) is not None:
        table.add_row("phases", ", ".join(f"{count:,} {tag}" for tag, count in phases.items()))
    what = "tokens" if summary.top_k else "expert picks"
    table.add_row(what, f"{summary.tokens:,.0f} a layer, {summary.tokens / summary.windows:,.0f} a window")
    ratios = [layer.hottest_ratio for layer in summary.per_layer]
    tenths = [layer.hottest_tenth for layer in summary.per_layer]
    table.add_row(
        "hottest expert",
        f"{sum(ratios) / len(ratios):.1f} x the mean expert (layers {min(ratios):.1f} to {max(ratios):.1f})",
    )
    table.add_row(
        "hottest tenth",
        f"{sum(tenths) / len(tenths):.0%} of the tokens (layers {min(tenths):.0%} to {max(tenths):.0%})",
    )
    table.add_row("window to window", _drift(summary.consecutive))
    table.add_row("first to second half", _drift(summary.halves))
    return table


def _span(layers: tuple[int, ...]) -> str:
    if len(layers) > 1 and layers[-1] - layers[0] == len(layers) - 1:
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(str(layer) for layer in layers[:8]) + (", ..." if len(layers) > 8 else "")


def _drift(found: Similarity | None) -> str:
    if found is None:
        return "one window only"
    text = f"{_share(found.distance)} of the tokens go elsewhere; sampling noise gives {_share(found.noise)}"
    if found.noise > 0 and found.distance < 1.15 * found.noise:
        return text + " (no drift to be seen)"
    return text


def _share(value: float) -> str:
    return f"{value:.1%}" if value >= 0.01 else f"{value:.2%}"


def _balance(summary: LoadSummary) -> Any:
    columns = {"mean layer": summary.mean_imbalance, "worst layer": summary.worst_layer}
    if summary.windows > 1:
        columns["mean layer, windows summed"] = summary.total_imbalance
    table = _table(
        "imbalance of contiguous placement: busiest rank over mean rank", "ranks", "slots", *columns
    )
    for i, ranks in enumerate(summary.ranks):
        slots = str(summary.slots[i]) if summary.slots[i] else "-"
        table.add_row(str(ranks), slots, *(_ratio(column[i]) for column in columns.values()))
    return table


def _table(title: str, *columns: str) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, caption_justify="left"
    )
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _ratio(value: float) -> str:
    if math.isnan(value):
        return "-"
    style = "red" if value >= 2 else "yellow" if value >= 1.25 else "green"
    return f"[{style}]{value:.2f}[/]"


def _worst(summary: LoadSummary, count: int) -> Any:
    column = max((i for i, slots in enumerate(summary.slots) if slots), default=None)
    names = ("layer", "hottest expert", "x mean", "hottest tenth")
    table = _table("the layers that will hurt", *names, *(f"{ranks} ranks" for ranks in summary.ranks))
    if column is not None:
        values = [layer.imbalance[column] for layer in summary.per_layer]
        low, high = min(values), max(values)
        table.caption = (
            f"every layer at {summary.ranks[column]} ranks, {low:.2f} to {high:.2f}:\n{_strip(values)}"
        )
    for layer in summary.worst_layers(count):
        table.add_row(
            str(layer.layer),
            str(layer.hottest_expert),
            f"{layer.hottest_ratio:.1f}",
            f"{layer.hottest_tenth:.0%}",
            *(_ratio(value) for value in layer.imbalance),
        )
    return table


def _strip(values: list[float]) -> str:
    """One bar per layer, from the smallest value to the largest."""
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in values)


def _print_findings(console: Console, findings: list[Finding]) -> None:
    from rich.markup import escape

    if not findings:
        console.print("[green]nothing odd found[/]")
    for finding in findings:
        mark = "[green]done[/]" if finding.applied else "[yellow]note[/]"
        console.print(f"{mark} {escape(finding.message)}")
