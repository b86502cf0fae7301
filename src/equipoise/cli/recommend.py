"""``equipoise recommend``: from recorded loads to ranks, spare slots and when to re-plan."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..errors import ArgumentError
from . import options, terminal
from .app import app
from .kernels import announce_compiling

if TYPE_CHECKING:
    from ..advice import Advice
    from ..control import CostModel
    from ..trace import LoadTrace


@app.command(no_args_is_help=True)
def recommend(
    loads: Annotated[
        list[Path],
        typer.Argument(metavar="LOAD...", help="Recorded loads; several are read one after the other."),
    ],
    gpus: Annotated[
        str, typer.Option("--gpus", help="Numbers of GPUs to choose from, each the EP ranks of a group.")
    ] = "16,32,64",
    later: Annotated[
        list[Path] | None,
        typer.Option("--later", help="Recordings to score on; the last quarter of LOAD unless given."),
    ] = None,
    memory: Annotated[
        float | None, typer.Option("--memory", help="GB of a GPU; that of the accelerator unless given.")
    ] = None,
    kept: Annotated[
        float, typer.Option("--kept", help="Part of it for everything but experts: attention, caches.")
    ] = 0.4,
    worth: Annotated[
        float,
        typer.Option(
            "--memory-worth", help="At 1, a hundredth of the memory is worth a hundredth of the time.", min=0
        ),
    ] = 1.0,
    gpus_per_node: Annotated[int, typer.Option("--gpus-per-node", help="GPUs of a server.", min=1)] = 8,
    groups: options.Groups = 1,
    seed: options.Seed = 0,
    source: options.LoadFormatName = None,
    window_steps: options.WindowSteps = None,
    window_tokens: options.WindowTokens = None,
    experts: options.Experts = None,
    traffic: options.Traffic = None,
    model: options.ModelName = None,
    dtype: options.Dtype = None,
    accelerator: options.AcceleratorName = "h100",
    intra_link: options.IntraLink = "nvlink4",
    inter_link: options.InterLink = "ib-400g",
    token_us: options.TokenUs = None,
    fixed_us: options.FixedUs = 0.0,
    split_us: options.SplitUs = None,
    as_json: options.Json = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a report: one page, no network needed.")
    ] = None,
) -> None:
    """Say what to serve with: EP ranks, redundant experts, windows to plan from, how to split tokens among replicas,
    and when to re-plan, with reasons.

    Everything is planned from the first windows and scored on later ones. Prefill and decode are told apart where the
    recording has tags of both. Times and bytes are those of the cost model of `equipoise replay`.

    Example: equipoise recommend trace.safetensors --gpus 16,32,64 --memory 80 --html advice.html
    """
    from ..advice import Question, joined, parted
    from ..advice.curve import Limits
    from ..advice.recommend import recommend as recommended
    from ..formats.output import refuse_printing_into
    from ..formats.source import refuse_twice
    from .loading import read_loads

    inputs = [*loads, *(later or [])]
    refuse_twice(inputs)
    refuse_printing_into(inputs)
    options.check_page(html)
    if html is not None:
        options.check_output(html, inputs)
    if traffic is not None and not 0 < traffic < float("inf"):
        raise ArgumentError(f"--traffic must be a positive number of tokens a second, got {traffic:g}")

    def read(paths: Sequence[Path]) -> LoadTrace:
        found = (
            read_loads(path, source, window_steps=window_steps, window_tokens=window_tokens, experts=experts)
            for path in paths
        )
        return joined([trace for trace, _ in found])

    trace = read(loads)
    parts = parted(trace, read(later) if later else None)
    figures = options.cost_figures(dtype, accelerator, intra_link, inter_link, token_us, fixed_us)
    cost = _cost(trace, model, figures)
    limits = Limits(_memory(memory, accelerator), kept, worth)
    question = Question(
        gpus=tuple(options.integers(gpus, "--gpus")),
        limits=limits,
        gpus_per_node=gpus_per_node,
        num_groups=groups,
        seed=seed,
        split_s=options.in_seconds(split_us),
    )
    with announce_compiling():
        advices = [recommended(part, question, cost) for part in parts]
    _show(advices, traffic, as_json, html)


def _cost(trace: LoadTrace, model: str | None, figures: dict[str, Any]) -> CostModel:
    from ..advice.curve import check_unit
    from ..control.cost import cost_for

    check_unit(trace)
    found = cost_for(trace, model, **figures)
    if found is None:
        raise ArgumentError(
            f"no preset has {trace.num_layers} layers of {trace.num_experts} experts, and without a model there are "
            f"no bytes and times: name one with --model, of {', '.join(options.MODELS)}"
        )
    return found


def _memory(given: float | None, accelerator: str) -> float:
    from ..control.presets import ACCELERATORS, find

    return find(ACCELERATORS, accelerator, "accelerator").memory_bytes if given is None else given * 1e9


def _show(advices: list[Advice], traffic: float | None, as_json: bool, html: Path | None) -> None:
    from ..report.advice import advice_tables, reasons
    from ..report.terminal import rich_table

    if html is not None:
        from ..report.advice_page import save_page

        save_page(advices, html, traffic)
    if as_json:
        typer.echo(json.dumps([advice.as_dict() for advice in advices], allow_nan=False))
        return
    console = terminal.console()
    for advice in advices:
        for table in advice_tables(advice):
            console.print(rich_table(table, compact=True))
        for sentence in reasons(advice, traffic):
            console.print(escape(sentence), highlight=False)
    console.print(
        f"Times are estimates for {advices[0].cost.name}; --json says what from.",
        style="dim",
        highlight=False,
    )
