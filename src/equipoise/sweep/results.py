"""The results of a sweep as Parquet: a row for each point, in the order of the grid."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import MissingDependencyError
from ..formats.output import write_file
from .driver import Sweep
from .point import CLOCKS, MEASURES, Outcome, Task
from .spec import Point

RESULTS, CLOCKS_FILE = "results.parquet", "clocks.parquet"
SETTINGS: dict[str, type] = {
    **{part.name: int for part in fields(Point)},
    **dict.fromkeys(("load", "policy", "forecast", "max_moves"), str),
    "gate": bool,
}


def check_parquet() -> None:
    """Raise `MissingDependencyError` where results could not be written, before there are any."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise MissingDependencyError(
            "sweeps write Parquet, and pyarrow is not installed: pip install 'equipoise[sweep]'"
        ) from None


def rows(sweep: Sweep) -> list[dict[str, Any]]:
    """Settings, status and measures of every point that has run, in the order of the grid."""
    pairs = zip(sweep.tasks, sweep.outcomes, strict=True)
    return [_row(task, outcome) for task, outcome in pairs if outcome is not None]


def save_results(sweep: Sweep) -> tuple[Path, Path]:
    """Write what has run so far: results, which depend on the spec alone, and what clocks had a part in.

    Returns
    -------
    the two files. The bytes of the first are the same whoever ran the points, and however often it was stopped
    """
    ran = [pair for pair in zip(sweep.tasks, sweep.outcomes, strict=True) if pair[1] is not None]
    results, clocks = sweep.folder / RESULTS, sweep.folder / CLOCKS_FILE
    kinds = {"key": str, **SETTINGS, "status": str, "reason": str, **MEASURES}
    _write(results, rows(sweep), kinds)
    times = [{"key": task.key, **(outcome.clocks if outcome else {})} for task, outcome in ran]
    _write(clocks, times, {"key": str, **CLOCKS})
    return results, clocks


def _row(task: Task, outcome: Outcome) -> dict[str, Any]:
    settings = task.point.as_dict()
    budget = settings["max_moves"]
    settings["max_moves"] = "none" if budget is None else str(budget)
    return {
        "key": task.key,
        **settings,
        "status": outcome.status,
        "reason": outcome.reason,
        **outcome.measures,
    }


def _write(path: Path, table: Sequence[dict[str, Any]], kinds: dict[str, type]) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    types = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}
    columns = {name: pa.array([row.get(name) for row in table], types[kind]) for name, kind in kinds.items()}
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), buffer)
    write_file(path, buffer.getvalue())
