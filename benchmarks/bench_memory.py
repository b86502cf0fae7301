"""The largest memory and the time of a large plan: 58 layers, 1,024 experts, 2,048 slots, 64 ranks.

    python benchmarks/bench_memory.py

Each policy plans in a fresh process with compiled kernels in the cache, on synthetic loads; the peak is that of the
whole process: Python, NumPy, Numba (and torch for the torch form) included. Linux and macOS.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

LAYERS, EXPERTS, RANKS, SLOTS = 58, 1024, 64, 32
MOST_MIB, MOST_SECONDS = 1.5e9 / 2**20, 5.0
CHECKED = "ensemble"  # the policy that the targets are for
TORCH = "ensemble, torch on one CPU thread"


def peak_mib() -> float:
    """The largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def plan(name: str) -> dict[str, float]:
    """Plan once, small (kernels are loaded) and then large: seconds, MiB at most, mean imbalance."""
    import equipoise as eq

    topology = eq.Topology(RANKS, SLOTS)
    trace = eq.synthetic_trace(num_layers=LAYERS, num_experts=EXPERTS, seed=0)
    windows = trace.counts.astype(np.float64)
    if name == TORCH:
        import torch

        torch.set_num_threads(1)  # on busy processors torch's threads wait for each other

        def place(loads: np.ndarray) -> np.ndarray:
            return eq.Ensemble().place_tensor(torch.from_numpy(loads), topology).numpy()
    else:

        def place(loads: np.ndarray) -> np.ndarray:
            return eq.policies[name].place(eq.Problem.of(loads, topology))

    place(windows[:, :2])
    started = time.perf_counter()
    phy2log = place(windows)
    seconds = time.perf_counter() - started
    loads = eq.rank_loads(windows[0], eq.Placement(phy2log, RANKS, EXPERTS))
    mean = eq.balance(loads).mean_imbalance
    return {"seconds": seconds, "peak": peak_mib(), "imbalance": mean}


def measured(name: str) -> dict[str, Any]:
    """`plan` in a process of its own, after another one has filled the cache."""
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, __file__, "--one", name], stdout=subprocess.PIPE, text=True, check=True
        )
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", help="plan with one policy in this process and print JSON")
    parser.add_argument("--check", action="store_true", help=f"exit 1 unless {CHECKED} meets its targets")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(plan(options.one)))
        return
    import equipoise as eq

    table = Table(
        title=f"synthetic: {LAYERS} x {EXPERTS} on {RANKS} x {SLOTS}; "
        f"{CHECKED} wanted under {MOST_MIB:.0f} MiB and {MOST_SECONDS:.0f} s"
    )
    table.add_column("policy")
    for heading in ("seconds", "MiB at most", "mean imbalance"):
        table.add_column(heading, justify="right")
    names = [*eq.policies]
    try:
        import torch  # noqa: F401
    except ImportError:
        pass
    else:
        names.append(TORCH)
    met = True
    for name in names:
        found = measured(name)
        if name == CHECKED:
            met = found["peak"] < MOST_MIB and found["seconds"] < MOST_SECONDS
        numbers = (f"{found['seconds']:.2f}", f"{found['peak']:.0f}")
        table.add_row(name, *numbers, f"{found['imbalance']:.4f}")
    Console(highlight=False, width=100).print(table)
    if options.check and not met:
        sys.exit(1)


if __name__ == "__main__":
    main()
