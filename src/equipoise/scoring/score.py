"""Scoring a program, or a built-in policy by name, on a trace under a protocol."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
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
from .messages import bounded
from .process import Limits, Program, Refused
from .protocols import PROTOCOLS, Measurement, Protocol, mean, simulate, simulate_plainly
from .salt import checked as checked_salt
from .salt import generator, salted
from .setting import Setting, setting_for

PUBLISHED_WINDOW = 100
LARGEST_PROGRAM = 1 << 22
"""bytes of a program's text; evolved programs have some ten thousand"""

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
    salt: str
    """what was drawn afresh in this run was drawn from it"""
    topology: Topology
    """what the program was asked for"""
    model: str
    """whose experts its moves were counted with"""

    def as_dict(self) -> dict[str, Any]:
        """Flat, for JSON and for the frameworks: numbers by name, and ``error`` only for a refused program."""
        result: dict[str, Any] = {"combined_score": self.combined_score, **self.metrics}
        result.update(windows=self.windows, protocol=self.protocol, program=self.program)
        result.update(arrays=self.arrays, isolation=" ".join(self.isolation), trace=self.source)
        result.update(ranks=self.topology.num_ranks, slots=self.topology.num_slots)
        result.update(nodes=self.topology.num_nodes, groups=self.topology.num_groups)
        result.update(model=self.model, salt=self.salt)
        if self.error is not None:
            result["error"] = self.error
        return result


def score_program(
    program: str | Path,
    trace: LoadTrace,
    protocol: str = "equipoise",
    *,
    topology: Topology | None = None,
    model: str | None = None,
    window: int = PUBLISHED_WINDOW,
    limits: Limits | None = None,
    arrays: str = "auto",
    ignore_groups: bool = False,
    seed: int = 0,
    salt: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Score a program with ``rebalance_experts``, or a policy of `equipoise.policies` by its name.

    Parameters
    ----------
    program : path of a Python file, or the name of a policy
    trace : its windows are summed to ``window`` steps each; every plan is made from one and scored on the next
    protocol : a name in `PROTOCOLS`
    topology : slots, ranks, nodes and groups that the program is asked for; the published ones, fitted to the
        trace (`setting_for`), unless given
    model : name of a preset, whose experts are moved under "equipoise"; of the trace's shape unless given
    window : steps of a window
    limits : time and memory of the program
    arrays : what the program is given: "torch", "numpy", or "auto": torch if it imports torch
    ignore_groups : for a policy by name: plan without keeping groups on nodes
    seed : for a policy by name
    salt : of an earlier run, to repeat it; a new one unless given. The window of the warm-up is drawn from it
    progress : called with windows scored and windows in all

    Returns
    -------
    `Score`; a program that breaks a rule or a limit scores 0, with the reason in ``error``

    Raises
    ------
    ArgumentError
        for an unknown protocol, policy or model, or a trace that is too short or does not fit the topology
    FileAccessError
        if the program cannot be read
    MissingDependencyError
        if the program needs torch and this machine does not have it
    EquipoiseError
        if no process can be set up for the program
    """
    if protocol not in PROTOCOLS:
        raise ArgumentError(f"unknown protocol {protocol!r}; known are {', '.join(PROTOCOLS)}")
    if arrays not in ("auto", "torch", "numpy"):
        raise ArgumentError(f"arrays must be auto, torch or numpy, got {arrays!r}")
    rules = PROTOCOLS[protocol]
    setting = _setting(trace, topology, model)
    topology = setting.topology
    salt = checked_salt(salt)
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
            running.start(warm_up_window(windows[0], salt), rules.passes_current)
            previous: Placement | None = None
            for index in range(len(windows) - 1):
                current = previous.phy2log if previous is not None and rules.passes_current else None
                maps, seconds = running.call(windows[index], current)
                check_maps(maps, trace.num_layers, trace.num_experts, topology.num_slots)
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
            error = bounded(str(reason))
    result = partial(_result, program, rules, running, trace, setting, salt)
    if error is not None:
        return result(error=error)
    measured = Measurement(
        gpu_balance=mean(gpu),
        expert_balance=mean(experts),
        algorithm_seconds=mean(times),
        simulated_seconds=mean(times) + mean(simulations),
        moves=mean(moves),
        full_move_seconds=setting.full_move_seconds,
    )
    return result(measured=measured, windows=len(times))


def _setting(trace: LoadTrace, topology: Topology | None, model: str | None) -> Setting:
    if topology is None:
        return setting_for(trace, model=model)
    topology.check_experts(trace.num_experts)
    return setting_for(
        trace,
        ranks=topology.num_ranks,
        slots=topology.num_slots,
        nodes=topology.num_nodes,
        groups=topology.num_groups,
        model=model,
    )


def drifting_trace(seed: int = 0, num_windows: int = 12, *, salt: str | None = None) -> LoadTrace:
    """A synthetic trace for scoring: windows of 100 steps of 58 layers x 256 experts (preset "scoring").

    Parameters
    ----------
    seed, salt : the same two give the same trace. With a new salt, which is drawn unless given, no program can
        make it again from the seed; ``source`` names both
    num_windows : windows ``T``
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ArgumentError(f"seed must be an integer of at least 0, got {seed!r}")
    salt = checked_salt(salt)
    trace = synthetic_trace(num_windows=num_windows, seed=salted(salt, "trace", int(seed)), preset="scoring")
    first = PUBLISHED_WINDOW * np.arange(num_windows)
    return replace(
        trace,
        steps=np.stack([first, first + PUBLISHED_WINDOW], axis=1),
        source=f"synthetic (preset scoring, seed {int(seed)}, salt {salt}), not recorded from a model",
    )


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


def warm_up_window(window: npt.NDArray[Any], salt: str) -> npt.NDArray[Any]:
    """Loads ``[L, E]`` that look like the given ones and say nothing about them: an answer is of no use later.

    Each layer has its own sum, spread over the experts in proportion to loads that are drawn from all layers
    and stretched by chance.
    """
    rng = generator(salt, "warm-up")
    shares = rng.choice(window.ravel(), size=window.shape) * np.exp(0.5 * rng.standard_normal(window.shape))
    shares[shares.sum(axis=1) == 0] = 1.0
    shares /= shares.sum(axis=1, keepdims=True)
    totals = window.sum(axis=1)
    if window.dtype.kind == "i":
        return np.ascontiguousarray(rng.multinomial(totals, shares).astype(window.dtype))
    return np.ascontiguousarray(totals[:, None] * shares)


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
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FileAccessError(path, "is not a plain file: give the path of a Python program")
        if status.st_size > LARGEST_PROGRAM:
            raise FileAccessError(
                path,
                f"has {status.st_size:,} bytes: too large for a program, the limit is {LARGEST_PROGRAM:,}",
            )
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = ", ".join(policies)
        raise FileAccessError(
            path, f"no such file, and no policy of that name; policies are {known}"
        ) from None
    except UnicodeDecodeError:
        raise FileAccessError(path, "is not a Python program: its text is not UTF-8") from None
    except FileAccessError:
        raise
    except OSError as error:
        raise FileAccessError(path, f"cannot be read: {error.strerror or error}") from None


def _result(
    program: str | Path,
    rules: Protocol,
    running: Program,
    trace: LoadTrace,
    setting: Setting,
    salt: str,
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
        salt=salt,
        topology=setting.topology,
        model=setting.model.name,
    )
