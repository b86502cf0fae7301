"""``equipoise sweep``: a grid of replays, on this machine or on a cluster."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ..errors import ArgumentError
from . import INTERRUPTED, terminal
from .app import app
from .options import Json, among

if TYPE_CHECKING:
    from ..sweep import Sweep
    from ..sweep.workers import Workers

AUTO, RAY, LOCAL = PLACES = ("auto", "ray", "local")


@app.command(no_args_is_help=True)
def sweep(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="Loads and grids of settings, as TOML.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the results; one that is there is gone on with.")
    ],
    workers: Annotated[
        int | None,
        typer.Option("--workers", help="Replays at a time; one for each core unless given.", min=1),
    ] = None,
    where: Annotated[
        str,
        typer.Option(
            "--on",
            help="ray, local, or auto: Ray where it is installed, else processes of this machine.",
            autocompletion=among(PLACES),
        ),
    ] = AUTO,
    as_json: Json = False,
) -> None:
    """Replay every point of a grid: loads x topologies x settings, held-out as `equipoise replay` does.

    Every finished point is kept at once. After Ctrl-C, a kill or a full disk the same command goes on, and a grid
    that has grown runs what is new. A worker that dies costs its point one of three attempts. With RAY_ADDRESS set,
    the cluster there is used. Writes results.parquet, clocks.parquet and report.html.

    Example: equipoise sweep grid.toml -o results
    """
    from ..report.sweep import save_page
    from ..sweep import Sweep, load_spec
    from ..sweep.results import check_parquet, rows, save_results

    if where not in PLACES:
        raise ArgumentError(f"--on must be one of {', '.join(PLACES)}, got {where!r}")
    check_parquet()
    found = Sweep(load_spec(spec), output)
    try:
        complete = _run(found, workers, where)
        save_results(found)
        table = rows(found)
        save_page(table, len(found.tasks), output / "report.html")
    finally:
        found.close()
    _show(table, len(found.tasks), output, as_json)
    if not complete:
        raise typer.Exit(INTERRUPTED)


def _run(found: Sweep, lanes: int | None, where: str) -> bool:
    """Run what is still to run; false after Ctrl-C."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if not found.waiting:
        return True
    columns = (TextColumn("sweeping"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = terminal.console(stderr=True)
    workers = None
    try:
        workers = _workers(found, lanes, where)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=None)
            found.run(workers, lambda done, total: bar.update(task, completed=done, total=total))
    except KeyboardInterrupt:
        return False
    finally:
        if workers is not None:
            workers.close()
    return True


def _workers(found: Sweep, lanes: int | None, where: str) -> Workers:
    """As many as were asked for, though no more than there is to do."""
    from ..sweep.cluster import ADDRESS, RayWorkers, has_ray
    from ..sweep.workers import LocalWorkers

    on_ray = where == RAY or (where == AUTO and has_ray())
    if lanes is None and not (on_ray and os.environ.get(ADDRESS)):
        lanes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if lanes is not None:
        lanes = min(lanes, len(found.waiting))
    if on_ray:
        return RayWorkers(lanes, found.traces)
    return LocalWorkers(lanes or 1, found.traces)


def _show(table: list[dict[str, object]], total: int, output: Path, as_json: bool) -> None:
    from ..report.sweep import best_table, settings_table, standing_of, trouble_table
    from ..report.terminal import rich_table
    from ..sweep.point import DONE

    if as_json:
        typer.echo(json.dumps({"points": total, "rows": table}, allow_nan=False))
        return
    console = terminal.console()
    scored = [each for each in table if each["status"] == DONE]
    tables = [best_table(scored), settings_table(scored)] if scored else []
    tables += [trouble_table(table)] if len(scored) < len(table) else []
    for each in tables:
        if each.rows:
            console.print(rich_table(each, compact=True))
    console.print(escape(standing_of(table, total)), highlight=False)
    if len(table) < total:
        console.print("The same command goes on with the rest.", highlight=False)
    console.print(escape(f"Results: {output}/results.parquet, page: {output}/report.html"), highlight=False)
