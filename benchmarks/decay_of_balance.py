"""How balance decays with the age of a plan: the synthetic preset beside the published table.

    python benchmarks/decay_of_balance.py

A trace of 6,144 steps is walked as the publisher walked theirs: contiguous placement until the first plan,
a new plan every N steps from the loads of the last N, one redundant slot a rank, every step scored. The
figure is the peak-to-average rank load (`max_p g / mean_p g`), averaged over steps and layers. The second
figure of each pair leaves out the steps before the first plan.

Source of the published figures: egretwAlker/hackathon_epfl, experiments/results/ds_r1_cadence,
DeepSeek-R1, data set LmSys. Its walk moves one layer a step after each plan; here all layers move at once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from equipoise.metrics import imbalance, rank_loads
from equipoise.placement import Placement, contiguous_placement
from equipoise.synthetic import synthetic_trace
from equipoise.topology import Topology

Plan = Callable[[npt.NDArray[np.float64], Topology], npt.NDArray[np.int64]]

STEPS = 6144
INTERVALS = (None, 256, 1024, 4096)
PUBLISHED = {
    32: (1.63, 1.17, 1.26, 1.47),
    64: (2.12, 1.29, 1.43, 1.83),
    256: (4.90, 1.69, 2.18, 3.80),
}


def by_greedy(loads: npt.NDArray[np.float64], topology: Topology) -> npt.NDArray[np.int64]:
    """DeepSeek's algorithm on the sum of the steps."""
    from equipoise import Problem, policies

    return policies["greedy"].place(Problem.of(loads, topology))


def measure(counts: npt.NDArray[np.int64], placement: Placement) -> npt.NDArray[np.float64]:
    """Peak-to-average rank load of every step, averaged over layers ``[T]``."""
    steps = [imbalance(rank_loads(part, placement)).mean(axis=1) for part in np.array_split(counts, 8)]
    return np.concatenate(steps)


def walk(
    counts: npt.NDArray[np.int64], num_ranks: int, interval: int | None, plan: Plan = by_greedy
) -> tuple[float, float]:
    """The published figure, over all steps, and the same over the steps after the first plan."""
    num_steps, num_layers, num_experts = counts.shape
    start = contiguous_placement(num_layers, num_experts, num_ranks)
    if interval is None:
        whole = float(measure(counts, start).mean())
        return whole, whole
    topology = Topology.from_slots(num_experts + num_ranks, num_ranks)
    ratios = [measure(counts[:interval], start)]
    for step in range(interval, num_steps, interval):
        loads = counts[step - interval : step].sum(axis=0, dtype=np.float64)[None]
        placement = Placement(plan(loads, topology), num_ranks, num_experts)
        ratios.append(measure(counts[step : step + interval], placement))
    return float(np.concatenate(ratios).mean()), float(np.concatenate(ratios[1:]).mean())


def table(
    num_layers: int, seed: int, ranks: Sequence[int] = tuple(PUBLISHED), plan: Plan = by_greedy
) -> dict[int, list[tuple[float, float]]]:
    """Both figures for every number of ranks and interval."""
    counts = synthetic_trace(num_layers, 256, STEPS, seed=seed, preset="deepseek-r1-chat").counts
    return {p: [walk(counts, p, interval, plan) for interval in INTERVALS] for p in ranks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = table(options.layers, options.seed)
    if options.json:
        print(json.dumps(results))
        return
    print(
        f"synthetic preset deepseek-r1-chat, {STEPS} steps x {options.layers} layers, seed {options.seed}\n"
    )
    print("| ranks | rebalanced | published | synthetic, all steps | synthetic, after the first plan |")
    print("|---:|---|---:|---:|---:|")
    for ranks, row in results.items():
        for interval, published, (whole, after) in zip(INTERVALS, PUBLISHED[ranks], row, strict=True):
            when = f"every {interval:,} steps" if interval else "never"
            print(
                f"| {ranks} | {when} | {published:.2f} | {whole:.2f} ({whole / published - 1:+.0%}) "
                f"| {after:.2f} ({after / published - 1:+.0%}) |"
            )


if __name__ == "__main__":
    main()
