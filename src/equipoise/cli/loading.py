"""What commands that read load files share: their options, and a progress bar for large files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ArgumentError, FormatError
from ..formats.base import Progress
from ..routes import PairCounts, Routes
from ..trace import UNITS, LoadTrace
from . import terminal
from .options import layer_numbers

if TYPE_CHECKING:
    from ..formats.hygiene import Finding

LARGE = 1 << 24
MANY = 8
"""windows that a hint suggests: a policy plans from 4 to 16"""


def read_loads(
    path: Path,
    source: str | None,
    *,
    window_steps: int | None = None,
    window_tokens: int | None = None,
    experts: int | None = None,
    layers: str | None = None,
    model_layers: int | None = None,
) -> tuple[LoadTrace, list[Finding]]:
    """Recorded loads as the options say, with what was found and mended, and a bar while a large file is read."""
    from ..formats import read_trace

    with progress_bar(path) as progress:
        trace, findings = read_trace(
            path,
            source,
            window_tokens=window_tokens,
            num_experts=experts,
            layers=layer_numbers(layers),
            num_model_layers=model_layers,
            progress=progress,
        )
    return trace if window_steps is None else trace.regroup(window_steps), findings


def cut(trace: LoadTrace, window_steps: int | None, top_k: int | None) -> LoadTrace:
    """The loads in windows of ``window_steps`` windows of the file, with experts per token where it does not say."""
    if window_steps is not None:
        trace = trace.regroup(window_steps)
    return trace if trace.top_k or top_k is None else replace(trace, top_k=top_k)


def routes_of(load: Path, routes: Path | None, trace: LoadTrace) -> Routes | PairCounts | None:
    """Token routes or pair counts of a trace's layers: those named, or those that LOAD has in itself."""
    from ..formats.routes import load_routes, own_routes

    if routes is None:
        found = own_routes(load, num_experts=trace.num_experts, layers=trace.layers)
    else:
        found = load_routes(routes, num_experts=trace.num_experts, layers=trace.layers)
    if found is None:
        return None
    if (found.num_layers, found.num_experts) != (trace.num_layers, trace.num_experts):
        raise FormatError(
            routes or load,
            f"has routes of {found.num_layers} layers x {found.num_experts} experts, the loads have "
            f"{trace.num_layers} x {trace.num_experts}",
        )
    return found


def batches_of(
    load: Path, batches: str | None, trace: LoadTrace, source: str | None, layers: tuple[int, ...] | None
) -> LoadTrace | None:
    """Every single batch of a recording as a window of its own, where ``--batches`` asks for them.

    ``trace``: the same recording in windows of any size, for the sizes that a file of token routes does not have.
    """
    from ..formats import load_trace

    if batches is None:
        return None
    if str(load) == "-":
        raise ArgumentError(
            "--batches reads the loads a second time, which standard input cannot: name a file"
        )
    tokens = _batch_tokens(batches)
    experts = None if tokens is None else trace.num_experts
    try:
        found = load_trace(load, source, window_tokens=tokens, num_experts=experts, layers=layers)
        found.check_batches()
    except ArgumentError as error:
        raise ArgumentError(f"--batches {batches}: {error}") from None
    return found


def _batch_tokens(batches: str) -> int | None:
    """Tokens of a batch; None where batches are steps."""
    if batches == "steps":
        return None
    if not batches.isdecimal() or int(batches) < 1:
        raise ArgumentError(f"--batches must be a number of tokens or 'steps', got {batches!r}")
    return int(batches)


def in_unit(trace: LoadTrace, batches: LoadTrace | None, unit: str) -> LoadTrace:
    """The loads in the unit of ``--unit``: windows as they are, or of the batches in which experts were hit."""
    import numpy as np

    from ..plans.activated import batches_of_windows

    if unit not in UNITS:
        raise ArgumentError(f"--unit must be {' or '.join(UNITS)}, got {unit!r}")
    if unit == "tokens" or trace.unit == "batches":
        return trace
    if batches is None:
        raise ArgumentError(
            "--unit batches plans from the experts that single batches hit: name these with --batches"
        )
    windows = batches_of_windows(batches, trace)
    many = np.full(len(trace), windows.shape[1])
    return replace(trace, counts=(windows > 0).sum(axis=1), unit="batches", batches=many)


def numbered_by(path: Path, file: Path, trace: LoadTrace, ranks: int | None) -> LoadTrace:
    """Loads that count their layers from 0, with the numbers of a placement file that has the model's.

    Rows of the file are then those of the layers that the loads have, not those that only share their numbers.

    Parameters
    ----------
    path, file : the placement's name, and where it is read
    ranks : EP ranks, where the file does not say

    Raises
    ------
    ArgumentError
        if the file does not tell which of its layers they are
    """
    from ..formats import read_rows
    from ..formats.base import ranges
    from ..formats.models import is_counted, numbered_like

    if not is_counted(trace.layers, trace.num_model_layers):
        return trace
    rows = read_rows(file, num_ranks=ranks)
    if rows.layers in (None, trace.layers) or is_counted(rows.layers, rows.num_model_layers):
        return trace
    found = numbered_like(trace, rows)
    if found is None:
        raise ArgumentError(
            f"{path} has the model's layers {ranges(rows.layers)}, the loads count {trace.num_layers} "
            "MoE layers from 0: say with --layers which ones they are"
        )
    return found


def more_windows(trace: LoadTrace, many: int = MANY) -> str | None:
    """How to get several windows from a recording of single tokens that was read as one; None if it was not."""
    if trace.num_windows > 1 or not trace.source.startswith("token routes") or not trace.top_k:
        return None
    tokens = round(float(trace.counts[0].sum(axis=1).max()) / trace.top_k)
    if tokens < many:
        return None
    return (
        f"all {tokens:,} tokens are one window; --window-tokens {tokens // many} makes {many} of them, and a plan "
        "from several holds better on later traffic"
    )


@contextlib.contextmanager
def progress_bar(path: Path) -> Iterator[Progress | None]:
    """A callback that draws a bar on standard error; None if that is no terminal or the file is small."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = terminal.console(stderr=True)
    if not console.is_terminal or not path.exists() or (path.is_file() and path.stat().st_size < LARGE):
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"reading {path.name}", total=None)
        yield lambda done, size: bar.update(task, completed=done, total=size)
