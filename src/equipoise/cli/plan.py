"""``equipoise plan``: from a recorded load to a placement file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ..policy.registry import DEFAULT
from . import options
from .app import app
from .kernels import plan_announced

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
    policy: options.PolicyName = DEFAULT,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Placement file to write; without it, only the report."),
    ] = None,
    format: Annotated[str, typer.Option("--format", help="Engine that is to read the placement.")] = "sglang",
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
    why: Annotated[
        bool, typer.Option("--explain", help="Say in words what holds the worst layer back.")
    ] = False,
    seed: options.Seed = 0,
    source: options.LoadFormatName = None,
    as_json: options.Json = False,
) -> None:
    """Plan a placement from recorded loads and write it for an engine.

    Example: equipoise plan dump.json --ranks 32 --redundant 32 -o placement.json
    """
    from ..formats import load_placement, read_trace
    from ..policy.registry import find_policy
    from ..report.plan import describe, plan_dict, plan_table
    from ..report.terminal import rich_table
    from .loading import progress_bar

    moves = options.parse_max_moves(max_moves)
    name, _ = find_policy(policy)
    if output is not None:
        options.check_output(output, format)
    with progress_bar(load) as progress:
        trace, findings = read_trace(load, source, progress=progress)
    topology = options.topology_for(trace.num_experts, ranks, redundant, nodes, groups)
    held = None
    if current is not None:
        held = load_placement(
            current, num_ranks=ranks, layers=trace.layers, num_model_layers=trace.num_model_layers
        )
    made = plan_announced(
        trace,
        topology,
        name,
        current=held,
        max_moves=moves,
        seed=seed,
        shares=shares,
        held_out=trace.num_windows >= ENOUGH_WINDOWS,
    )
    reason = made.explain() if why else None
    if output is not None:
        from ..formats import save_placement

        save_placement(made.placement, output, format)
    if as_json:
        about = {
            "source": trace.source or str(load),
            "findings": [finding.message for finding in findings],
            "seed": seed,
            "output": None if output is None else {"path": str(output), "format": format},
        }
        if reason is not None:
            about["explanation"] = reason
        print(json.dumps(about | plan_dict(made)))
        return
    console = Console()
    console.print(escape(describe(made, trace)))
    for finding in findings:
        console.print(f"note: {escape(finding.message)}")
    table = plan_table(made, before="contiguous" if held is None else "current")
    console.print(rich_table(table, pad_edge=False, title_style=""))
    if reason is not None:
        console.print(escape(reason))
    if output is None:
        console.print("Nothing was written; name a file with -o to keep this placement.")
    else:
        console.print(
            f"Wrote [bold]{escape(str(output))}[/]. {escape(_use(output, format, redundant))}", soft_wrap=True
        )


def _use(output: Path, format: str, redundant: int) -> str:
    """What to do with the file, in a sentence; nothing for formats that engines do not read."""
    ways = {
        "sglang": f"Start SGLang with --init-expert-location {output} --ep-num-redundant-experts {redundant}",
        "trtllm": f"Name it in TensorRT-LLM's options: moe_config: {{load_balancer: {output}}}",
        "vllm-ascend": f"Name it in vllm-ascend's settings as expert_map_path: {output}",
        "vllm": f'Pass it to vLLM in --eplb-config as "initial_mapping_path": "{output}" (proposed upstream)',
    }
    return ways.get(format, "")
