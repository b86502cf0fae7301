"""How long water-filling takes for a layer, in microseconds.

    python benchmarks/bench_shares.py

Shares for placements of the policy greedy, on recorded DeepSeek-R1 loads where they lie beside the repository,
else on synthetic ones. One thread, so that the time of a layer is the time of a layer.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import median

os.environ["EQUIPOISE_NUM_THREADS"] = "1"

import numpy as np

import equipoise as eq
from equipoise.planning.shares import water_fill
from real_loads import deepseek

ROOT = Path(__file__).resolve().parents[1]
TRACES = ROOT.parent / "shared" / "traces"
NAMES = ("prefill_in1024", "decode_in2000out100")
SHAPES = ((16, 18), (32, 9), (64, 5))
MOST_MICROSECONDS = 100.0


def loads() -> dict[str, np.ndarray]:
    """Tokens ``[1, L, E]`` by name."""
    if TRACES.is_dir():
        return {name: deepseek(TRACES, name) for name in NAMES}
    return {"synthetic": eq.synthetic_trace(num_windows=1).counts.astype(np.float64)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9, help="runs over all layers; the median counts")
    parser.add_argument("--check", action="store_true", help="exit 1 unless every mean is within the target")
    options = parser.parse_args()
    print("| loads | ranks x slots | µs a layer, mean | µs, slowest layer | imbalance even | with shares |")
    print("|---|---|---|---|---|---|")
    slow = False
    for name, counts in loads().items():
        for ranks, slots in SHAPES:
            phy2log = eq.Greedy().place(eq.Problem.of(counts, eq.Topology(ranks, slots)))
            placement = eq.Placement(phy2log, ranks, counts.shape[2])
            shares = water_fill(counts[0], phy2log, ranks)
            whole = microseconds(counts[0], phy2log, ranks, options.repeats) / len(phy2log)
            each = [
                microseconds(counts[0, k : k + 1], phy2log[k : k + 1], ranks, options.repeats)
                for k in range(len(phy2log))
            ]
            even = eq.imbalance(eq.rank_loads(counts[0], placement)).mean()
            split = eq.imbalance(eq.rank_loads(counts[0], placement, shares)).mean()
            slow = slow or whole > MOST_MICROSECONDS
            print(
                f"| {name} | {ranks} x {slots} | {whole:.0f} | {max(each):.0f} | {even:.4f} | {split:.4f} |"
            )
    print(f"\ntarget: {MOST_MICROSECONDS:.0f} µs a layer on average: {'missed' if slow else 'met'}")
    if slow and options.check:
        sys.exit(1)


def microseconds(counts: np.ndarray, phy2log: np.ndarray, ranks: int, repeats: int) -> float:
    """The median over runs."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        water_fill(counts, phy2log, ranks)
        times.append((time.perf_counter() - started) * 1e6)
    return median(times)


if __name__ == "__main__":
    main()
