"""Time and memory of a replay: 1,200 steps of 58 layers x 256 experts, windows of 8 steps, three policies.

    python benchmarks/bench_replay.py
    python benchmarks/bench_replay.py --policies greedy,chunked,ensemble --interval 1 --gate

The trace is synthetic. The peak of memory is that of the whole process, the trace included.
"""

from __future__ import annotations

import argparse
import resource
import time

import equipoise as eq
from equipoise.control import cost_model
from equipoise.policy.registry import policies
from equipoise.replay import replay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policies", default=",".join([name for name in policies if name != "chunked"][:3]))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--window-steps", type=int, default=8)
    parser.add_argument("--interval", type=int, default=8)
    parser.add_argument("--history", type=int, default=8)
    parser.add_argument("--gate", action="store_true")
    chosen = parser.parse_args()

    trace = eq.synthetic_trace(58, 256, chosen.steps, preset="deepseek-r1-chat")
    topology = eq.Topology(num_ranks=32, slots_per_rank=9, num_nodes=4, num_groups=8)
    started = time.perf_counter()
    result = replay(
        trace.regroup(chosen.window_steps),
        topology,
        chosen.policies.split(","),
        interval=chosen.interval,
        history=chosen.history,
        gate=chosen.gate,
        cost=cost_model("deepseek-v3"),
    )
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    plans = sum(series.summary.proposals for series in result.series)
    print(f"{trace}")
    print(f"{len(result.series)} series, {plans} plans: {seconds:.1f} s, peak memory {peak / 1e9:.2f} GB")
    for series in result.series:
        summary = series.summary
        print(
            f"  {series.label:20} held-out imbalance {summary.mean_imbalance:.4f}, "
            f"planning {summary.planning_s * 1e3:.1f} ms"
        )


if __name__ == "__main__":
    main()
