"""How programs are scored: the published protocols, and our own.

Every protocol plans from one window and is scored on the next. Balance is the mean over windows of
``sum_l mean / sum_l max`` (ratio of sums), at expert level over slots, at GPU level over ranks. Sources:

- ``openevolve``: the ``eplb`` example of the ADRS collection for OpenEvolve;
- ``skydiscover``: ``benchmarks/ADRS/eplb`` of SkyDiscover, whose evaluator also is ShinkaEvolve's example;
- ``leaderboard``: the ``eplb`` problem of the ADRS leaderboard in Frontier-CS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..metrics import balance, expert_loads, rank_loads
from ..placement import Placement

# One window in the `equipoise` protocol, in seconds of perfectly balanced expert work: 100 decoding steps of 25 ms.
WINDOW_SECONDS = 2.5
# Fetching every slot once. DeepSeek-V3 in FP8 at 32 ranks: 9 slots x 58 layers x 44 MB a rank over 50 GB/s.
FULL_MOVE_SECONDS = 9 * 58 * 44_050_944 / 50e9


@dataclass(frozen=True)
class Measurement:
    """What a scored run measured, averaged over its windows."""

    gpu_balance: float
    """``sum_l mean_p g / sum_l max_p g`` over ranks, held out"""
    expert_balance: float
    """the same over slots: it depends on the replica counts alone"""
    algorithm_seconds: float
    simulated_seconds: float
    """the algorithm and the published simulation loop; the algorithm alone where no loop is in the clock"""
    moves: float
    """experts that ranks fetch at each re-plan, as a share of all slots; the first plan is free"""
    full_move_seconds: float = FULL_MOVE_SECONDS
    """to fetch every slot once"""


@dataclass(frozen=True)
class Protocol:
    """A way to turn a measurement into a score."""

    name: str
    formula: str
    simulates: bool
    """whether the published simulation loop runs inside the clock"""
    passes_current: bool
    """whether a program that takes ``current=`` is told the placement it is about to replace"""
    score: Callable[[Measurement], dict[str, float]]


def _published(scale: float) -> Callable[[Measurement], dict[str, float]]:
    def score(measured: Measurement) -> dict[str, float]:
        speed = scale / measured.simulated_seconds
        return {"speed_score": speed, "combined_score": (measured.expert_balance + speed) / 2}

    return score


def _leaderboard(measured: Measurement) -> dict[str, float]:
    seconds = measured.algorithm_seconds
    balance_score = 90 * measured.gpu_balance
    speed_score = 5 * min(0.002 / seconds, 2.0)
    penalty = min(20 * seconds, 20.0) if seconds > 0.010 else 0.0
    return {
        "balancedness_score": balance_score,
        "speed_score": speed_score,
        "slow_penalty": penalty,
        "combined_score": balance_score + speed_score - penalty,
    }


def _equipoise(measured: Measurement) -> dict[str, float]:
    working = WINDOW_SECONDS / max(measured.gpu_balance, 1e-9)
    moving = measured.moves * measured.full_move_seconds
    planning = measured.algorithm_seconds
    return {
        "move_seconds": moving,
        "combined_score": WINDOW_SECONDS / (working + moving + planning),
    }


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "skydiscover",
            "(expert balance + 0.002 / mean time of plan and simulation) / 2",
            True,
            False,
            _published(0.002),
        ),
        Protocol(
            "openevolve",
            "(expert balance + 0.02 / mean time of plan and simulation) / 2",
            True,
            False,
            _published(0.02),
        ),
        Protocol(
            "leaderboard",
            "90 x GPU balance + 5 x min(0.002 / t, 2) - min(20 t, 20) if t > 10 ms; t = mean time of a plan",
            False,
            False,
            _leaderboard,
        ),
        Protocol(
            "equipoise",
            "share of the time in which balanced work is done: W / (W / GPU balance + moves + planning)",
            False,
            True,
            _equipoise,
        ),
    )
}


def simulate(workload: npt.NDArray[Any], placement: Placement) -> tuple[float, float]:
    """GPU-level and expert-level balance (ratio of sums) of a window ``[L, E]``; 0 for an empty window."""
    if not workload.any():
        return 0.0, 0.0
    return (
        balance(rank_loads(workload, placement)).ratio_of_sums,
        balance(expert_loads(workload, placement)).ratio_of_sums,
    )


def simulate_plainly(
    workload: Any, log2phy: Any, logcnt: Any, num_slots: int, num_ranks: int
) -> tuple[float, float]:
    """What the published evaluators run inside their clock: one scalar access after the other.

    For every layer and expert the load is read, divided by the replica count and added to the replicas'
    slots, in single precision. Works on torch tensors, as published, and on NumPy arrays. Its time is part of
    the published scores, so it must not be made faster.
    """
    num_layers, num_experts = workload.shape
    if hasattr(workload, "new_zeros"):
        loads = workload.new_zeros((num_layers, num_slots)).float()
    else:
        loads = np.zeros((num_layers, num_slots), dtype=np.float32)
    for layer in range(num_layers):
        for expert in range(num_experts):
            tokens = workload[layer][expert].item()
            if tokens <= 0:
                continue
            replicas = int(logcnt[layer][expert].item())
            if replicas <= 0:
                continue
            slots = log2phy[layer][expert][:replicas]
            loads[layer, slots] += tokens / replicas
    if not loads.sum().item() > 0:
        return 0.0, 0.0
    by_rank = loads.reshape(num_layers, num_ranks, -1).sum(-1)
    return _ratio_of_sums(by_rank), _ratio_of_sums(loads)


def _ratio_of_sums(loads: Any) -> float:
    largest = loads.max(1)
    largest = getattr(largest, "values", largest)  # torch answers with values and indices
    return float(loads.mean(1).sum().item() / largest.sum().item())


def mean(values: Sequence[float]) -> float:
    """The mean, 0 for none."""
    return float(sum(values) / len(values)) if values else 0.0
