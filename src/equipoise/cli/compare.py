"""``equipoise compare``: placements that exist, side by side on recorded loads."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ..errors import ArgumentError, FormatError
from . import options, terminal
from .app import app

if TYPE_CHECKING:
    from ..placement import Placement
    from ..trace import LoadTrace


@app.command()
def compare(
    placements: Annotated[
        list[Path],
        typer.Argument(metavar="PLACEMENT...", help="Placement files of any engine, two or more."),
    ],
    load: Annotated[
        Path, typer.Option("--load", help="Recorded loads to score on: a file, or a recording's folder.")
    ],
    ranks: Annotated[
        int | None, typer.Option("--ranks", help="EP ranks (GPUs), where a file does not say.", min=1)
    ] = None,
    routes: options.Routes = None,
    token_bytes: options.TokenBytes = None,
    batches: options.Batches = None,
    nodes: options.Nodes = 1,
    source: options.LoadFormatName = None,
    window_steps: options.WindowSteps = None,
    window_tokens: options.WindowTokens = None,
    experts: options.Experts = None,
    layers: options.Layers = None,
    model_layers: options.ModelLayers = None,
    as_json: options.Json = False,
) -> None:
    """Score placements side by side on recorded loads, with the moves from each to each.

    Every window counts once. Tokens are split among replicas as a placement
    was made for: evenly, or by load. Placements may be of different engines,
    ranks and slots. Loads that a placement was planned from flatter it: score
    on later ones.

    Example: equipoise compare served.json next.json --load today.pt --ranks 32
    """
    from ..formats.output import refuse_printing_into
    from ..formats.source import opened, refuse_twice
    from ..plans.compare import compare as compared
    from ..report.compare import activated_table, communication_table, moves_table, scored_table
    from ..report.terminal import rich_table
    from .loading import batches_of, read_loads, routes_of

    if len(placements) < 2:
        raise ArgumentError(f"compare needs two placements or more, got {placements[0]} alone")
    for path in placements:
        if placements.count(path) > 1:
            raise ArgumentError(f"{path} is named twice; compare it with another placement")
    inputs = [load, *placements] if routes is None else [load, routes, *placements]
    refuse_twice(inputs)
    refuse_printing_into(inputs)
    trace, _ = read_loads(
        load,
        source,
        window_steps=window_steps,
        window_tokens=window_tokens,
        experts=experts,
        layers=layers,
        model_layers=model_layers,
    )
    with contextlib.ExitStack() as opening:
        files = {path: opening.enter_context(opened(path)) for path in placements}
        trace, note = (trace, None) if layers else _numbered(files, ranks, trace)
        made = _read(files, ranks, trace)
    known = routes_of(load, routes, trace)
    single = batches_of(load, batches, trace, source, options.layer_numbers(layers))
    found = compared(made, trace, routes=known, num_nodes=nodes, batches=single)
    if as_json:
        about = {
            "source": trace.source or str(load),
            "windows": len(trace),
            "layers": list(trace.layers),
            "note": note,
        }
        typer.echo(json.dumps(about | found.as_dict(), allow_nan=False))
        return
    console = terminal.console()
    console.print(f"Scored on {escape(trace.source or str(load))}", highlight=False)
    if note is not None:
        console.print(f"note: {escape(note)}", soft_wrap=True, highlight=False)
    console.print(rich_table(scored_table(found, len(trace)), compact=True))
    if known is not None:
        console.print(rich_table(communication_table(found, nodes, token_bytes), compact=True))
    if found.scored[0].activated is not None:
        console.print(rich_table(activated_table(found), compact=True))
    console.print(rich_table(moves_table(found), compact=True))
    best = found.best
    console.print(
        escape(f"{best.name} holds best: mean imbalance {best.balance.mean_imbalance:.4f}."), highlight=False
    )


def _numbered(files: dict[Path, Path], ranks: int | None, trace: LoadTrace) -> tuple[LoadTrace, str | None]:
    """Loads that only count their layers, by the numbers of the first file that has the model's; and a note on that.

    ``files`` are those that are read, by the names that they were given by.
    """
    from ..formats.base import ranges
    from .loading import numbered_by

    for path, file in files.items():
        found = numbered_by(path, file, trace, ranks)
        if found is not trace:
            return found, (
                f"the loads count {trace.num_layers} MoE layers from 0; they are taken for the layers "
                f"{ranges(found.layers)} of {path}; if they are others, name them with --layers"
            )
    return trace, None


def _read(files: dict[Path, Path], ranks: int | None, trace: LoadTrace) -> dict[str, Placement]:
    """The placements by what tells them apart: the files' names, or where these are alike their paths."""
    from ..formats import load_placement

    alike = len({path.name for path in files}) < len(files)
    found: dict[str, Placement] = {}
    for path, file in files.items():
        placement = load_placement(
            file, num_ranks=ranks, layers=trace.layers, num_model_layers=trace.num_model_layers
        )
        if placement.num_experts != trace.num_experts:
            raise FormatError(
                path, f"places {placement.num_experts} experts, but the loads have {trace.num_experts}"
            )
        found[str(path) if alike else path.name] = placement
    return found
