"""A point of a sweep, run: one replay, and what is kept of it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from ..control import CostModel
from ..errors import EquipoiseError, printable
from ..topology import Topology
from ..trace import LoadTrace
from .spec import Point

DONE, REFUSED, FAILED = "done", "refused", "failed"
"""How a point ended: scored; a setting that cannot be; an error that nobody expected, or a worker that was lost."""

MEASURES: dict[str, type] = {
    "slots_per_rank": int,
    "windows": int,
    "do_nothing": float,
    "mean_imbalance": float,
    "p95_imbalance": float,
    "worst_layer": float,
    "mean_of_ratios": float,
    "ratio_of_sums": float,
    "in_sample": float,
    "all_past": float,
    "oracle": float,
    "proposals": int,
    "replans": int,
    "moves": int,
    "moves_share": float,
    "bytes": int,
    "layer_time_s": float,
    "gained_s": float,
    "lost_s": float,
    "net_s": float,
    "break_even_windows": float,
}
"""What is kept of a replay: windows scored, the means of the references, and the policy's `Summary`."""

CLOCKS: dict[str, type] = {"seconds": float, "planning_s": float, "attempts": int}
"""What a clock or chance had a part in; kept apart."""


@dataclass(frozen=True)
class Task:
    """A point with what it is told apart by and what it costs."""

    key: str
    """of the point's settings, loads, cost model and version of Equipoise"""
    point: Point
    cost: CostModel | None


@dataclass(frozen=True)
class Outcome:
    """What became of a point."""

    key: str
    status: str
    reason: str
    """why it was refused or failed; empty for one that was scored"""
    measures: dict[str, Any]
    """`MEASURES` by name; empty unless it was scored"""
    clocks: dict[str, Any]
    """`CLOCKS` by name"""


def keep_to_one_thread() -> None:
    """Let this process plan with one thread: there are as many workers as cores."""
    for name in ("EQUIPOISE_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


def run_point(task: Task, trace: LoadTrace) -> Outcome:
    """Replay a point. Whatever goes wrong in it is its outcome: one bad point ends no sweep."""
    started = time.perf_counter()
    status, reason, planning_s = DONE, "", None
    measures: dict[str, Any] = {}
    try:
        measures, planning_s = _replay(task, trace)
    except EquipoiseError as error:
        status, reason = REFUSED, str(error)
    except Exception as error:
        status, reason = FAILED, printable(f"{type(error).__name__}: {error}")[:500]
    seconds = time.perf_counter() - started
    return Outcome(task.key, status, reason, measures, {"seconds": seconds, "planning_s": planning_s})


def _replay(task: Task, trace: LoadTrace) -> tuple[dict[str, Any], float]:
    from ..replay import replay
    from ..replay.result import CEILING, GATED, PAST, POLICY

    point = task.point
    topology = Topology.from_slots(
        trace.num_experts + point.redundant, point.ranks, point.nodes, point.groups
    )
    result = replay(
        trace,
        topology,
        [point.policy],
        interval=point.interval,
        history=point.history,
        forecasts=[point.forecast],
        reference=point.policy,
        max_moves=point.max_moves,
        seed=point.seed,
        gate=point.gate,
        horizon=point.horizon,
        cost=task.cost,
    )
    by_role = {series.role: series for series in result.series}
    judged = by_role[GATED if point.gate else POLICY]
    found = {
        "slots_per_rank": topology.slots_per_rank,
        "windows": len(judged.windows),
        "do_nothing": result.floor(topology).summary.mean_imbalance,
        "all_past": by_role[PAST].summary.mean_imbalance,
        "oracle": by_role[CEILING].summary.mean_imbalance,
    }
    summary = judged.summary
    return {name: found.get(name, getattr(summary, name, None)) for name in MEASURES}, summary.planning_s
