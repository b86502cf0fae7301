"""``equipoise plan``: from a recorded load to a placement file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ..errors import ArgumentError
from ..placement import Placement
from ..policy.registry import DEFAULT
from ..problem import Held
from . import options, terminal
from .app import app
from .kernels import plan_announced

if TYPE_CHECKING:
    from ..policy.protocol import Policy
    from ..trace import LoadTrace

ENOUGH_WINDOWS = 4  # with fewer, a held-out score would stand on too little to plan from


@app.command()
def plan(
    load: Annotated[
        Path, typer.Argument(metavar="LOAD", help="Recorded loads: a file, or a recording's folder.")
    ],
    ranks: options.Ranks,
    nodes: options.Nodes = 1,
    groups: options.Groups = 1,
    redundant: options.Redundant = 0,
    rank_speed: options.RankSpeed = None,
    policy: options.PolicyName = DEFAULT,
    split: options.Split = "even",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Placement file to write; without it, only the report."),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help=f"Engine that is to read the placement: {', '.join(options.PLACEMENTS)}.",
            autocompletion=options.among(options.PLACEMENTS),
        ),
    ] = "sglang",
    current: Annotated[
        Path | None, typer.Option("--current", help="Placement file that is served now; moves count from it.")
    ] = None,
    max_moves: Annotated[
        str | None,
        typer.Option(
            "--max-moves", help="Budget of fetches: a number (100) or a share of all slots (5%, 0.05)."
        ),
    ] = None,
    shares: Annotated[
        bool, typer.Option("--shares", help="Also split tokens among replicas, and report both splits.")
    ] = False,
    shares_out: Annotated[
        Path | None,
        typer.Option("--shares-out", help="Write those shares to a file, .safetensors; implies --shares."),
    ] = None,
    why: Annotated[
        bool, typer.Option("--explain", help="Say in words what holds the worst layer back.")
    ] = False,
    routes: options.Routes = None,
    token_bytes: options.TokenBytes = None,
    batches: options.Batches = None,
    unit: options.Unit = "tokens",
    affinity: Annotated[
        float | None,
        typer.Option(
            "--affinity",
            help="Bring experts hit by the same tokens together while a layer's objective stays under this multiple "
            "of what it is: 1.02 to 1.3. Needs token routes.",
        ),
    ] = None,
    seed: options.Seed = 0,
    source: options.LoadFormatName = None,
    layers: options.Layers = None,
    model_layers: options.ModelLayers = None,
    force: Annotated[
        bool, typer.Option("--force", help="Let OUTPUT replace the file given as --current.")
    ] = False,
    window_steps: options.WindowSteps = None,
    window_tokens: options.WindowTokens = None,
    experts: options.Experts = None,
    top_k: options.TopK = None,
    as_json: options.Json = False,
) -> None:
    """Plan a placement from recorded loads and write it for an engine.

    LOAD may be - for standard input, and compressed with gzip or Zstandard.

    Example: equipoise plan dump.json --ranks 32 --redundant 32 -o placement.json
    """
    from ..formats import check_split, placement_writer
    from ..formats.models import doubt_about_idle, numbered_for
    from ..formats.output import refuse_printing_into
    from ..formats.source import refuse_twice
    from ..policy.registry import find_policy, for_split
    from ..report.plan import describe, plan_dict, plan_table
    from ..report.terminal import rich_table
    from .loading import batches_of, cut, in_unit, more_windows, read_loads, routes_of

    moves = options.parse_max_moves(max_moves)
    name, found = find_policy(policy)
    found = for_split(found, split)
    numbers = options.layer_numbers(layers)
    inputs = [path for path in (load, current, routes) if path is not None]
    refuse_twice(inputs)
    refuse_printing_into(inputs)
    counts = "both"
    if output is not None:
        writer = placement_writer(output, format)
        counts = writer.counts
        check_split(writer, split)
        options.check_output(output, [load] if routes is None else [load, routes], current, force)
    if shares_out is not None:
        _check_shares(shares_out, output, inputs)
    trace, findings = read_loads(
        load, source, window_tokens=window_tokens, experts=experts, layers=layers, model_layers=model_layers
    )
    trace = cut(trace, window_steps, top_k)
    single = batches_of(load, batches, trace, source, numbers)
    trace = in_unit(trace, single, unit)
    doubt = doubt_about_idle(trace) if counts == "moe" and numbers is None else None
    if doubt is not None:
        raise ArgumentError(
            f"--format {format} counts MoE layers alone, but of {load} {doubt}: name the MoE layers with --layers"
        )
    topology = options.topology_for(trace.num_experts, ranks, redundant, nodes, groups, rank_speed)
    held = None
    if current is not None:
        trace, held = _held(current, ranks, trace, numbers is not None)
    remark = None
    if numbers is None:
        trace, remark = numbered_for(trace, counts)
        if isinstance(held, Placement):
            held = replace(held, layers=trace.layers, num_model_layers=trace.num_model_layers)
    known = routes_of(load, routes, trace)
    made = plan_announced(
        trace,
        topology,
        _asked(name, found, split, affinity),
        current=held,
        max_moves=moves,
        seed=seed,
        shares=shares or shares_out is not None,
        held_out=trace.num_windows >= ENOUGH_WINDOWS,
        routes=known,
        batches=single,
    )
    reason = made.explain() if why else None
    if output is not None:
        from ..formats import save_placement

        save_placement(made.placement, output, format)
    if shares_out is not None and made.shares is not None:
        from ..formats.shares import save_shares

        save_shares(made.placement, made.shares, shares_out)
    if as_json:
        about = {
            "source": trace.source or str(load),
            "findings": [finding.message for finding in findings] + ([remark] if remark else []),
            "seed": seed,
            "output": None if output is None else {"path": str(output), "format": format},
            "shares_output": None if shares_out is None else str(shares_out),
        }
        if reason is not None:
            about["explanation"] = reason
        print(json.dumps(about | plan_dict(made)))
        return
    console = terminal.console()
    console.print(escape(describe(made, trace)))
    if findings:
        messages = "; ".join(finding.message for finding in findings)
        console.print(f"note: {escape(messages)}", soft_wrap=True)
    if (hint := more_windows(trace)) is not None:
        console.print(f"hint: {escape(hint)}")
    table = plan_table(
        made, before="current" if isinstance(held, Placement) else "contiguous", token_bytes=token_bytes
    )
    console.print(rich_table(table, pad_edge=False, title_style=""))
    if reason is not None:
        console.print(escape(reason))
    if shares_out is not None:
        console.print(
            f"Wrote [bold]{escape(str(shares_out))}[/]: shares \\[layers, slots] and phy2log.", soft_wrap=True
        )
    if output is None and shares_out is None:
        console.print("Nothing was written; name a file with -o to keep this placement.")
    elif output is not None:
        use = ". ".join(filter(None, [_use(output, format, redundant), remark]))
        console.print(f"Wrote [bold]{escape(str(output))}[/]. {escape(use)}", soft_wrap=True)


def _asked(name: str, found: Policy, split: str, affinity: float | None) -> str | Policy:
    """The policy of ``--policy`` with what other options ask of it: ``found`` plans for ``split`` already."""
    from ..policy.robust import Robust

    if affinity is None:
        return name if split == "even" else found
    if name != Robust().name or split != "even":
        raise ArgumentError(
            f"--affinity is of the policy robust with an even split, not of {name}, --split {split}"
        )
    return Robust(affinity=affinity)


def _held(path: Path, ranks: int, trace: LoadTrace, numbered: bool) -> tuple[LoadTrace, Placement | Held]:
    """The placement that is served, of the layers of the loads; loads that only count them get its numbers.

    ``numbered`` says that the user gave the numbers of the layers.
    """
    from ..formats import load_placement, read_rows
    from ..formats.source import opened
    from .loading import numbered_by

    with opened(path) as file:
        if not numbered:
            trace = numbered_by(path, file, trace, ranks)
        layers, in_model = trace.layers, trace.num_model_layers
        rows = read_rows(file, num_ranks=ranks, layers=layers, num_model_layers=in_model)
        held = Held(rows.phy2log, rows.num_ranks or ranks, trace.num_experts)
        if held.complete and held.num_ranks == ranks:
            return trace, load_placement(file, num_ranks=ranks, layers=layers, num_model_layers=in_model)
    return trace, held


def _check_shares(path: Path, output: Path | None, inputs: list[Path]) -> None:
    """Fail before planning, not after it, where the shares could not be written."""
    from ..formats.shares import check_shares_file

    check_shares_file(path)
    options.check_output(path, inputs)
    if output is not None and output.resolve() == path.resolve():
        raise ArgumentError(f"--output and --shares-out both name {path}: give each a file of its own")


def _use(output: Path, format: str, redundant: int) -> str:
    """What to do with the file, in a sentence; nothing for formats that engines do not read."""
    ways = {
        "sglang": f"Start SGLang with --init-expert-location {output} --ep-num-redundant-experts {redundant}",
        "trtllm": f"Name it in TensorRT-LLM's options: moe_config: {{load_balancer: {output}}}",
        "vllm-ascend": f"Name it in vllm-ascend's settings as expert_map_path: {output}",
        "vllm": f'Pass it to vLLM in --eplb-config as "initial_mapping_path": "{output}" (proposed upstream)',
    }
    return ways.get(format, "")
