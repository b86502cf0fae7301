"""``equipoise convert``: loads to loads, placements to placements, between the files of engines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from .app import app


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Load file or folder, or placement file.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write; replaced if it is there.")],
    to: Annotated[
        str | None, typer.Option("--to", help="Format of OUT; found from its suffix if that tells.")
    ] = None,
    origin: Annotated[
        str | None, typer.Option("--from", help="Format of IN; found from its content by default.")
    ] = None,
    window_steps: Annotated[
        int | None, typer.Option(help="Loads: sum this many windows into one.", min=1)
    ] = None,
    window_tokens: Annotated[
        int | None, typer.Option(help="Loads: tokens per window, for token routes.", min=1)
    ] = None,
    experts: Annotated[
        int | None, typer.Option(help="Loads: experts per layer, for token routes that do not say.", min=1)
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(help="Placements: EP ranks, where IN does not say.", min=1)
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="The model's numbers of the MoE layers, as in 3-60 or 1,3,5, where IN does not say."
        ),
    ] = None,
    model_layers: Annotated[
        int | None,
        typer.Option(help="Layers of the whole model, dense ones too, where IN does not say.", min=1),
    ] = None,
) -> None:
    """Convert recorded loads or a placement to the file of another engine.

    Loads are written as equipoise (.safetensors) or array (.npz); placements as sglang (.json, .pt), trtllm
    (.yaml), vllm-ascend (.json), vllm (.jsonl) or equipoise (.safetensors). A file that counts MoE layers from
    0 can be given the model's own numbers with --layers: engines that count dense layers too need them.

    Examples: equipoise convert dump.pt loads.safetensors --window-steps 100;
    equipoise convert placement.json moe_load_balancer.yaml --to trtllm --ranks 32 --layers 3-60
    """
    from ..errors import ArgumentError
    from ..formats import is_placement, load_placement, load_trace, save_placement, save_trace
    from .loading import progress_bar

    load_options = {
        "--window-steps": window_steps,
        "--window-tokens": window_tokens,
        "--experts": experts,
    }
    placement = is_placement(source, origin)
    kind, unfit = ("placement", load_options) if placement else ("load", {"--ranks": ranks})
    given = [name for name, value in unfit.items() if value is not None]
    if given:
        raise ArgumentError(f"{given[0]} makes no sense here: {source} is a {kind} file")
    numbers = None if layers is None else _layer_numbers(layers)
    if placement:
        found = load_placement(source, origin, num_ranks=ranks, layers=numbers, num_model_layers=model_layers)
        save_placement(found, target, to)
        typer.echo(f"{target}: {found!r}")
        return
    with progress_bar(source) as progress:
        trace = load_trace(
            source,
            origin,
            window_steps=window_steps,
            window_tokens=window_tokens,
            num_experts=experts,
            progress=progress,
        )
    if numbers is not None:
        trace = replace(trace, layers=tuple(numbers), num_model_layers=None)
    if model_layers is not None:
        trace = replace(trace, num_model_layers=model_layers)
    save_trace(trace, target, to)
    typer.echo(f"{target}: {trace!r}")


def _layer_numbers(text: str) -> list[int]:
    """``3-60`` or ``1,3,5-7`` as numbers."""
    from ..errors import ArgumentError

    numbers: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            if int(last or first) - int(first) > 100_000:
                raise ValueError
            numbers += range(int(first), int(last or first) + 1)
    except ValueError:
        numbers = []
    if not numbers:
        raise ArgumentError(f"--layers must be numbers like 3-60 or 1,3,5, got {text!r}")
    return numbers
