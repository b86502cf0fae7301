"""``equipoise replay``: what policies and settings bring on windows that their plans have not seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ..errors import ArgumentError
from . import INTERRUPTED, terminal
from .app import app
from .options import (
    COST,
    POLICIES,
    AcceleratorName,
    Batches,
    Dtype,
    Experts,
    FixedUs,
    Groups,
    InterLink,
    IntraLink,
    Json,
    LoadFormatName,
    ModelName,
    Nodes,
    RankSpeed,
    Routes,
    Seed,
    Split,
    SplitUs,
    TokenUs,
    Traffic,
    Unit,
    check_output,
    check_page,
    cost_figures,
    in_seconds,
    integers,
    names,
    numbers,
    parse_max_moves,
    topology_for,
)

if TYPE_CHECKING:
    from ..policy.protocol import Policy
    from ..replay import Replay, ReplayResult
    from ..routes import PairCounts
    from ..routes import Routes as WindowRoutes
    from ..topology import Topology
    from ..trace import LoadTrace

TIME = "Time"
OUTPUT = "Output"


@app.command(no_args_is_help=True)
def replay(
    trace: Annotated[
        Path,
        typer.Argument(
            metavar="LOAD", help="Recorded loads: a file, or a recording's folder, of any engine."
        ),
    ],
    ranks: str = typer.Option(..., "--ranks", help="EP ranks; several are replayed side by side: 32,64."),
    redundant: str = typer.Option(
        "0", "--redundant", help="Slots per layer beyond one for each expert; several: 0,32."
    ),
    nodes: Nodes = 1,
    groups: Groups = 1,
    rank_speed: RankSpeed = None,
    routes: Routes = None,
    batches: Batches = None,
    unit: Unit = "tokens",
    policies: str | None = typer.Option(
        None,
        "--policies",
        help=f"Policies side by side, of {', '.join(POLICIES)} and those of other packages; all but "
        "chunked unless given.",
    ),
    max_moves: str | None = typer.Option(
        None, "--max-moves", help="Budget of a re-planning: 500 fetches, or 5% (0.05) of all slots."
    ),
    split: Split = "even",
    seed: Seed = 0,
    source: LoadFormatName = None,
    experts: Experts = None,
    window_steps: int | None = typer.Option(
        None,
        help="Sum this many windows of the file (steps, as a rule) into one.",
        min=1,
        rich_help_panel=TIME,
    ),
    window_tokens: int | None = typer.Option(
        None, help="Tokens per window, for token routes.", min=1, rich_help_panel=TIME
    ),
    interval: int = typer.Option(
        8, "--interval", help="Windows between two re-plannings.", rich_help_panel=TIME
    ),
    history: int = typer.Option(
        8, "--history", help="Windows that a plan is made from.", rich_help_panel=TIME
    ),
    forecasts: str = typer.Option(
        "windows",
        "--forecasts",
        help="What plans are made from: last, sum, ewma, windows, phase-mix.",
        rich_help_panel=TIME,
    ),
    reference: str | None = typer.Option(
        None,
        "--reference",
        help="Policy behind all-past and oracle; the default policy unless given.",
        rich_help_panel=TIME,
    ),
    gate: bool = typer.Option(
        False,
        "--gate",
        help="Also: re-plan only if the predicted gain exceeds the moves.",
        rich_help_panel=COST,
    ),
    horizon: int | None = typer.Option(
        None,
        "--horizon",
        help="Windows over which moves must pay for themselves; the interval unless given.",
        rich_help_panel=COST,
    ),
    traffic: Traffic = None,
    model: ModelName = None,
    dtype: Dtype = None,
    accelerator: AcceleratorName = "h100",
    intra_link: IntraLink = "nvlink4",
    inter_link: InterLink = "ib-400g",
    token_us: TokenUs = None,
    fixed_us: FixedUs = 0.0,
    tile: int = typer.Option(
        1, "--tile", help="Tokens that a slot's load of a step is rounded up to.", rich_help_panel=COST
    ),
    split_us: SplitUs = None,
    as_json: Json = False,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", help="Draw a picture: .png, .svg or .pdf.", rich_help_panel=OUTPUT),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write a report: one page, no network needed.", rich_help_panel=OUTPUT),
    ] = None,
) -> None:
    """Replay a trace: plan from the windows seen, score on the windows that follow.

    Every policy is compared with doing nothing, a plan from all the past, and an oracle that knows the future.
    After Ctrl-C what has been scored so far is printed and drawn, and the exit code is 130.

    Example: equipoise replay trace.safetensors --ranks 32 --redundant 32 --nodes 4 --groups 8
    --policies greedy,robust --interval 4 --gate --horizon 64 --html replay.html
    """
    from ..control.cost import cost_for
    from ..replay import Replay
    from .loading import batches_of, in_unit, more_windows, read_loads

    figures = cost_figures(dtype, accelerator, intra_link, inter_link, token_us, fixed_us)
    try:
        _check_outputs(trace, figure, html)
        loads, _ = read_loads(
            trace, source, window_steps=window_steps, window_tokens=window_tokens, experts=experts
        )
        if (hint := more_windows(loads, 4 * max(history, 1))) is not None:
            raise ArgumentError(f"a replay needs windows to plan from and later ones to score on, but {hint}")
        single = batches_of(trace, batches, loads, source, None)
        planned = in_unit(loads, single, unit)
        run = Replay(
            planned,
            _topologies(loads.num_experts, ranks, redundant, nodes, groups, rank_speed),
            _with_split(names(policies) or _default_policies(), split),
            interval=interval,
            history=history,
            forecasts=names(forecasts),
            reference=reference,
            max_moves=parse_max_moves(max_moves),
            seed=seed,
            gate=gate,
            horizon=horizon,
            traffic=traffic,
            split=split,
            split_s=in_seconds(split_us),
            routes=_window_routes(trace, routes, loads),
            batches=single,
            cost=cost_for(
                planned,
                model,
                **figures,
                tile=tile,
                rank_speed=numbers(rank_speed, "--rank-speed"),
            ),
        )
        result = _run(run)
        _show(result, as_json, figure, html)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if not result.complete:
        raise typer.Exit(INTERRUPTED)


def _window_routes(
    load: Path, routes: Path | None, trace: LoadTrace
) -> list[WindowRoutes] | PairCounts | None:
    """Token routes of each window, where they are known: windows are cut from them in order. Or pair counts."""
    from ..routes import PairCounts
    from .loading import routes_of

    found = routes_of(load, routes, trace)
    if found is None or isinstance(found, PairCounts):
        return found
    picks = (found.topk >= 0).sum(axis=(0, 2)).cumsum()
    ends = picks.searchsorted(trace.counts.sum(axis=(1, 2)).cumsum()) + 1
    return [found[first:end] for first, end in zip([0, *ends[:-1]], ends, strict=True)]


def _check_outputs(trace: Path, figure: Path | None, html: Path | None) -> None:
    """Refuse now what could not be written after minutes of work, or would replace the recording."""
    from ..formats.output import refuse_printing_into
    from ..report.figures import check_figure

    refuse_printing_into([trace])
    if figure is not None:
        check_figure(figure)
    for path in (figure, html):
        if path is not None:
            check_output(path, [trace])
    check_page(html)


def _topologies(
    num_experts: int, ranks: str, redundant: str, nodes: int, groups: int, rank_speed: str | None
) -> list[Topology]:
    return [
        topology_for(num_experts, number, extra, nodes, groups, rank_speed)
        for number in integers(ranks, "--ranks")
        for extra in integers(redundant, "--redundant")
    ]


def _default_policies() -> list[str]:
    from ..policy.registry import policies

    return [name for name in ("greedy", "ensemble", "robust") if name in policies]


def _with_split(names: list[str], split: str) -> list[str | Policy]:
    """The policies, and with ``--split batch`` beside robust the one that plans for it."""
    from ..policy.registry import find_policy, for_split

    if split == "even" or "robust" not in names:
        return [*names]
    return [*names, for_split(find_policy("robust")[1], split)]


def _run(run: Replay) -> ReplayResult:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = terminal.console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        try:
            return run.run(lambda done, total: bar.update(task, completed=done, total=total))
        except KeyboardInterrupt:
            if not run.intervals_done:
                raise
    return run.result()


def _show(result: ReplayResult, as_json: bool, figure: Path | None, html: Path | None) -> None:
    from ..report.figures import save_figure
    from ..report.tables import replay_tables
    from ..report.terminal import rich_table
    from ..report.words import findings

    if figure is not None:
        save_figure(result, figure)
    if html is not None:
        from ..report.html import save_html

        save_html(result, html)
    if as_json:
        typer.echo(json.dumps(result.as_dict(), allow_nan=False))
        return
    console = terminal.console()
    for table in replay_tables(result):
        console.print(rich_table(table, compact=True))
    for sentence in findings(result):
        console.print(escape(sentence), highlight=False)
    cost = result.settings.cost
    if result.settings.unit == "batches":
        console.print("These loads count batches, of which there are no times.")
    elif cost is None:
        console.print("No preset has this trace's layers and experts: --model gives times and bytes.")
    else:
        text = f"Times are estimates for {cost['name']}; --json says what from."
        if result.settings.traffic is None:
            text += " --traffic, in tokens a second, says after how many minutes moves pay."
        console.print(text, style="dim", highlight=False)
