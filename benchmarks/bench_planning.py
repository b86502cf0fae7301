"""How fast policies plan and how well, beside a plain-Python greedy: one run, one input.

    make bench

The reference is `benchmarks/reference.py`: DeepSeek's algorithm in plain Python loops. All plan 58 layers of 256
experts onto 32 ranks with 9 slots each, one group. Reference and policies take turns, so that a busy machine slows
both. The loads are DeepSeek-R1's recorded ones where they lie beside the repository, else synthetic.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

import equipoise as eq
import reference
from equipoise.planning.kernel import num_threads

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT.parent / "shared" / "traces" / "deepseek-r1-sglang" / "prefill_in1024.json"
TARGETS = {"greedy": 400.0, "ensemble": 13.0}  # times as fast as the reference
RANKS, SLOTS = 32, 9


def loads() -> tuple[np.ndarray, str]:
    """The loads ``[L, E]`` and what they are, in words."""
    if RECORDED.is_file():
        return eq.load_trace(RECORDED).total().astype(np.float64), f"recorded DeepSeek-R1, {RECORDED.name}"
    trace = eq.synthetic_trace()
    return trace.total().astype(np.float64), trace.source


def milliseconds(run, *arguments) -> float:
    started = time.perf_counter()
    run(*arguments)
    return (time.perf_counter() - started) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="runs of the reference")
    parser.add_argument("--repeats", type=int, default=20, help="runs of a policy in each round")
    parser.add_argument("--check", action="store_true", help="exit 1 unless the targets are met")
    options = parser.parse_args()

    weight, words = loads()
    topology = eq.Topology(RANKS, SLOTS)
    problem = eq.Problem.of(weight, topology)
    policies = {name: eq.policies[name] for name in eq.policies}
    for policy in policies.values():
        policy.place(problem)  # compile, or load from the cache
    times: dict[str, list[float]] = {"reference": [], **{name: [] for name in policies}}
    gc.disable()
    for _ in range(options.rounds):
        times["reference"].append(milliseconds(reference.greedy, weight, topology.num_slots, 1, 1, RANKS))
        for name, policy in policies.items():
            times[name] += [milliseconds(policy.place, problem) for _ in range(options.repeats)]

    table = Table(
        title=f"{words}: {weight.shape[0]} x {weight.shape[1]} on {RANKS} x {SLOTS}, {num_threads()} threads"
    )
    for heading in (
        "policy",
        "times the reference's speed",
        "ms median",
        "ms min",
        "mean imbalance",
        "worst layer",
    ):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    base = median(times["reference"])
    missed = []
    for name, found in times.items():
        if name == "reference":
            phy2log = reference.greedy(weight, topology.num_slots, 1, 1, RANKS)[0]
        else:
            phy2log = policies[name].place(problem)
        balance = eq.balance(eq.rank_loads(weight, eq.Placement(phy2log, RANKS, weight.shape[1])))
        ratio = base / median(found)
        if ratio < TARGETS.get(name, 0.0):
            missed.append(f"{name}: {ratio:.0f} times as fast, at least {TARGETS[name]:.0f} wanted")
        numbers = (f"{ratio:.1f}", f"{median(found):.2f}", f"{min(found):.2f}")
        table.add_row(name, *numbers, f"{balance.mean_imbalance:.4f}", f"{balance.worst_layer:.4f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"reference: {options.rounds} runs; policies: {options.rounds * options.repeats}; scored in-sample"
    )
    for line in missed:
        console.print(f"missed: {line}")
    if missed and options.check:
        sys.exit(1)


if __name__ == "__main__":
    main()
