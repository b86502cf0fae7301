"""``equipoise convert``: loads to loads, placements to placements, between the files of engines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import printable
from . import options
from .app import app
from .options import LOADS, PLACEMENTS, among

if TYPE_CHECKING:
    from ..routes import PairCounts
    from ..trace import LoadTrace


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Load file or folder, or placement file.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write; replaced if it is there.")],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            help=f"Format of OUT: for loads equipoise, array; for placements {', '.join(PLACEMENTS)}; "
            "found from its suffix if that tells.",
            autocompletion=among(("array", *PLACEMENTS)),
        ),
    ] = None,
    origin: Annotated[
        str | None,
        typer.Option(
            "--from",
            help=f"Format of IN: for loads {', '.join(LOADS)}; for placements {', '.join(PLACEMENTS)}; "
            "found from its content unless given.",
            autocompletion=among(sorted({*LOADS, *PLACEMENTS})),
        ),
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
    layers: options.Layers = None,
    model_layers: options.ModelLayers = None,
) -> None:
    """Convert recorded loads or a placement to the file of another engine.

    Loads are written as equipoise (.safetensors) or array (.npz); placements as sglang (.json, .pt), trtllm
    (.yaml), vllm-ascend (.json), vllm (.jsonl) or equipoise (.safetensors). A file that counts MoE layers from
    0 can be given the model's own numbers with --layers: engines that count dense layers too need them.

    Examples: equipoise convert dump.pt loads.safetensors --window-steps 100;
    equipoise convert placement.json moe_load_balancer.yaml --to trtllm --ranks 32 --layers 3-60
    """
    from ..errors import ArgumentError
    from ..formats import is_placement, load_writer, placement_writer, save_trace
    from ..formats.output import refuse_printing_into
    from ..formats.source import opened
    from .loading import read_loads

    load_options = {
        "--window-steps": window_steps,
        "--window-tokens": window_tokens,
        "--experts": experts,
    }
    refuse_printing_into([source])
    numbers = options.layer_numbers(layers)
    with opened(source) as file:
        placement = is_placement(file, origin)
        kind, unfit = ("placement", load_options) if placement else ("load", {"--ranks": ranks})
        given = [name for name, value in unfit.items() if value is not None]
        if given:
            raise ArgumentError(f"{given[0]} makes no sense here: {source} is a {kind} file")
        writer = placement_writer(target, to) if placement else load_writer(target, to)
        options.check_output(target, [source])
        if placement:
            said = _convert_placement(file, target, writer.name, origin, ranks, numbers, model_layers)
        else:
            trace, _ = read_loads(
                file,
                origin,
                window_steps=window_steps,
                window_tokens=window_tokens,
                experts=experts,
                layers=layers,
                model_layers=model_layers,
            )
            save_trace(trace, target, to, pairs=_pairs(file, trace))
            said = repr(trace)
    typer.echo(printable(f"{target}: {said}"))


def _convert_placement(
    file: Path,
    target: Path,
    to: str,
    origin: str | None,
    ranks: int | None,
    numbers: tuple[int, ...] | None,
    model_layers: int | None,
) -> str:
    """Write a placement in another form; what it is, and what is a guess about it, in words."""
    from ..errors import ArgumentError
    from ..formats import PLACEMENT_FORMATS, load_placement, save_placement
    from ..formats.models import doubt_about_rows, numbered_for

    found = load_placement(file, origin, num_ranks=ranks, layers=numbers, num_model_layers=model_layers)
    remark = None
    if numbers is None:
        counts = PLACEMENT_FORMATS[to].counts
        doubt = doubt_about_rows(found) if counts == "moe" else None
        if doubt is not None:
            raise ArgumentError(
                f"{to} counts MoE layers alone, but {doubt}: name the MoE layers with --layers"
            )
        found, remark = numbered_for(found, counts)
    save_placement(found, target, to)
    return repr(found) if remark is None else f"{found!r}. {remark}"


def _pairs(file: Path, trace: LoadTrace) -> PairCounts | None:
    """The pair counts that stand beside loads."""
    from ..routes import PairCounts
    from .loading import routes_of

    found = routes_of(file, None, trace)
    return replace(found, layers=trace.layers) if isinstance(found, PairCounts) else None
