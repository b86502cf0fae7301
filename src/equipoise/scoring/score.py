"""Scoring a program, or a built-in policy by name, on a trace under a protocol."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, FileAccessError
from ..placement import Placement
from ..policy.registry import policies
from ..synthetic import synthetic_trace
from ..topology import Topology
from ..trace import LoadTrace
from .checks import check_maps
from .process import Limits, Program, Refused
from .protocols import PROTOCOLS, Measurement, Protocol, mean, simulate, simulate_plainly

PUBLISHED_TOPOLOGY = Topology(num_ranks=32, slots_per_rank=9, num_nodes=4, num_groups=8)
"""What the published protocols ask for: 288 slots, 8 groups, 4 nodes, 32 ranks."""
PUBLISHED_WINDOW = 100

_BUILT_IN = """
import equipoise

def rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus, current=None):
    return equipoise.rebalance_experts(
        weight, num_replicas, {groups}, {nodes}, num_gpus, policy={name!r}, seed={seed}, current=current
    )
"""


@dataclass(frozen=True)
class Score:
    """The outcome of one program under one protocol."""

    program: str
    protocol: str
    combined_score: float
    """0 for a refused program"""
    error: str | None
    """why the program was refused, None if it was not"""
    metrics: dict[str, float]
    windows: int
    """windows that were scored"""
    arrays: str
    """what the program was given: torch tensors or numpy arrays"""
    isolation: tuple[str, ...]
    """the layers of isolation that were in force"""
    source: str
    """of the trace"""

    def as_dict(self) -> dict[str, Any]:
        """Flat, for JSON and for the frameworks: numbers by name, and ``error`` only for a refused program."""
        result: dict[str, Any] = {"combined_score": self.combined_score, **self.metrics}
        result.update(windows=self.windows, protocol=self.protocol, program=self.program)
        result.update(arrays=self.arrays, isolation=" ".join(self.isolation), trace=self.source)
        if self.error is not None:
            result["error"] = self.error
        return result


def score_program(
    program: str | Path,
    trace: LoadTrace,
    protocol: str = "equipoise",
    *,
    topology: Topology = PUBLISHED_TOPOLOGY,
    window: int = PUBLISHED_WINDOW,
    limits: Limits | None = None,
    arrays: str = "auto",
    ignore_groups: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Score a program with ``rebalance_experts``, or a policy of `equipoise.policies` by its name.

    Parameters
    ----------
    program : path of a Python file, or the name of a policy
    trace : its windows are summed to ``window`` steps each; every plan is made from one and scored on the next
    protocol : a name in `PROTOCOLS`
    topology : slots, ranks, nodes and groups that the program is asked for
    window : steps of a window
    limits : time and memory of the program
    arrays : what the program is given: "torch", "numpy", or "auto": torch if it imports torch
    ignore_groups : for a policy by name: plan without keeping groups on nodes
    seed : for a policy by name
    progress : called with windows scored and windows in all

    Returns
    -------
    `Score`; a program that breaks a rule or a limit scores 0, with the reason in ``error``

    Raises
    ------
    ArgumentError
        for an unknown protocol or policy, or a trace that is too short or does not fit the topology
    FileAccessError
        if the program cannot be read
    """
    if protocol not in PROTOCOLS:
        raise ArgumentError(f"unknown protocol {protocol!r}; known are {', '.join(PROTOCOLS)}")
    if arrays not in ("auto", "torch", "numpy"):
        raise ArgumentError(f"arrays must be auto, torch or numpy, got {arrays!r}")
    rules = PROTOCOLS[protocol]
    topology.check_experts(trace.num_experts)
    windows = scoring_windows(trace, window).counts
    trusted = not str(program).endswith(".py") and str(program) in policies
    if trusted:
        groups, nodes = ("1", "1") if ignore_groups else ("num_groups", "num_nodes")
        text = _BUILT_IN.format(name=str(program), seed=int(seed), groups=groups, nodes=nodes)
    else:
        text = _read(program)

    times: list[float] = []
    simulations: list[float] = []
    gpu: list[float] = []
    experts: list[float] = []
    moves: list[float] = []
    error: str | None = None
    running = Program(
        text,
        (trace.num_layers, trace.num_experts),
        windows.dtype,
        topology,
        limits or Limits(),
        trusted=trusted,
        arrays=arrays,
        calls=len(windows),
    )
    with running:
        try:
            running.start(warm_up_window(windows[0]), rules.passes_current)
            previous: Placement | None = None
            for index in range(len(windows) - 1):
                current = previous.phy2log if previous is not None and rules.passes_current else None
                maps, seconds = running.call(windows[index], current)
                check_maps(maps, trace.num_experts, topology.num_slots)
                placement = Placement(maps[0], topology.num_ranks, trace.num_experts)
                if rules.simulates:
                    simulations.append(_time_simulation(windows[index + 1], maps, topology, running.arrays))
                times.append(seconds)
                balances = simulate(windows[index + 1], placement)
                gpu.append(balances[0])
                experts.append(balances[1])
                if previous is not None:
                    moves.append(float(placement.moves_from(previous).sum()) / placement.phy2log.size)
                previous = placement
                if progress is not None:
                    progress(index + 1, len(windows) - 1)
        except Refused as reason:
            error = str(reason)
    if error is not None:
        return _result(program, rules, running, trace, error=error)
    measured = Measurement(
        gpu_balance=mean(gpu),
        expert_balance=mean(experts),
        algorithm_seconds=mean(times),
        simulated_seconds=mean(times) + mean(simulations),
        moves=mean(moves),
    )
    return _result(program, rules, running, trace, measured=measured, windows=len(times))


def drifting_trace(seed: int = 0, num_windows: int = 12) -> LoadTrace:
    """A synthetic trace for scoring: windows of 100 steps of 58 layers x 256 experts (preset "scoring")."""
    trace = synthetic_trace(num_windows=num_windows, seed=seed, preset="scoring")
    first = PUBLISHED_WINDOW * np.arange(num_windows)
    return replace(trace, steps=np.stack([first, first + PUBLISHED_WINDOW], axis=1))


def scoring_windows(trace: LoadTrace, window: int) -> LoadTrace:
    """The trace in windows of ``window`` steps, or as it is where its windows are at least that long.

    Raises `ArgumentError` if that leaves fewer than two windows, or if the trace's windows do not divide it.
    """
    assert trace.steps is not None
    widths = trace.steps[:, 1] - trace.steps[:, 0]
    width = int(widths[0])
    if window < 1:
        raise ArgumentError(f"window must be at least 1 step, got {window}")
    if width < window:
        if (widths != width).any() or window % width:
            raise ArgumentError(
                f"the trace's windows of {width} steps do not add up to windows of {window}; "
                f"choose a multiple of {width}"
            )
        if trace.num_windows < window // width:
            raise ArgumentError(_too_short(trace, window))
        trace = trace.regroup(window // width)
    if trace.num_windows < 2:
        raise ArgumentError(_too_short(trace, window))
    return trace


def _too_short(trace: LoadTrace, window: int) -> str:
    return (
        f"the trace ({trace.num_windows} windows) gives fewer than two windows of {window} steps, "
        "one to plan from and one to score on; use a longer trace or a shorter window"
    )


def warm_up_window(window: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A window with the experts of the given one in another order: an answer to it is of no use later."""
    order = np.random.default_rng(0).permutation(window.shape[1])
    return np.ascontiguousarray(window[:, order])


def _time_simulation(
    workload: npt.NDArray[Any], maps: list[npt.NDArray[np.int64]], topology: Topology, arrays: str
) -> float:
    loads, log2phy, logcnt = workload.copy(), maps[1], maps[2]
    given: tuple[Any, Any, Any] = (loads, log2phy, logcnt)
    if arrays == "torch" or _torch_is_there():
        import torch

        given = (torch.from_numpy(loads), torch.from_numpy(log2phy), torch.from_numpy(logcnt))
    begin = time.perf_counter()
    simulate_plainly(*given, topology.num_slots, topology.num_ranks)
    return time.perf_counter() - begin


def _torch_is_there() -> bool:
    from importlib.util import find_spec

    return find_spec("torch") is not None


def _read(program: str | Path) -> str:
    path = Path(program)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = ", ".join(policies)
        raise FileAccessError(
            path, f"no such file, and no policy of that name; policies are {known}"
        ) from None
    except UnicodeDecodeError:
        raise FileAccessError(path, "is not a Python program: its text is not UTF-8") from None
    except OSError as error:
        raise FileAccessError(path, f"cannot be read: {error.strerror or error}") from None


def _result(
    program: str | Path,
    rules: Protocol,
    running: Program,
    trace: LoadTrace,
    *,
    error: str | None = None,
    measured: Measurement | None = None,
    windows: int = 0,
) -> Score:
    metrics: dict[str, float] = {}
    combined = 0.0
    if measured is not None:
        metrics = {
            "balancedness_score_gpu": measured.gpu_balance,
            "balancedness_score_expert": measured.expert_balance,
            "times_algorithm": measured.algorithm_seconds,
            "moves": measured.moves,
        }
        if rules.simulates:
            metrics["times_inference"] = measured.simulated_seconds
        scores = rules.score(measured)
        combined = scores.pop("combined_score")
        metrics.update(scores)
    return Score(
        program=str(program),
        protocol=rules.name,
        combined_score=combined,
        error=error,
        metrics=metrics,
        windows=windows,
        arrays=running.arrays,
        isolation=running.isolation,
        source=trace.source,
    )
