"""From vLLM's expert load statistics to a static mapping, kept near what is served now.

    python examples/plan_from_vllm.py [STATS]

Statistics and mapping are those of vLLM pull request 41141, a proposal: counts of physical slots, with the map that
was in force. Without a file a synthetic one is made.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import equipoise as eq

RANKS = 4
BUDGET = 0.10  # of all slots may move


def synthetic_stats(path: Path) -> Path:
    """Six intervals of a server with 4 ranks x 6 slots that serves the contiguous placement."""
    trace = eq.synthetic_trace(num_layers=4, num_experts=16, num_windows=6, seed=1)
    served = eq.contiguous_placement(4, 16, RANKS, 24)
    layers = np.arange(4)[:, None]
    with path.open("w") as file:
        for step, counts in enumerate(trace.counts):
            line = {
                "record_type": "eplb_load_stats",
                "version": 1,
                "step": 50 * (step + 1),
                "num_ranks": RANKS,
                "expert_load": (
                    counts[layers, served.phy2log] // served.logcnt[layers, served.phy2log]
                ).tolist(),
                "p2l_map": served.phy2log.tolist(),
            }
            file.write(json.dumps(line) + "\n")
    return path


def main(stats: Path) -> None:
    trace = eq.load_trace(stats)
    print(f"read {trace}")
    topology = eq.Topology(RANKS, slots_per_rank=6)
    served = eq.contiguous_placement(trace.num_layers, trace.num_experts, RANKS, topology.num_slots)
    for budget in (None, BUDGET):
        plan = eq.plan(trace, topology, current=served, max_moves=budget)
        moved = int(plan.placement.moves_from(served).sum())
        allowed = "any number of moves" if budget is None else f"{budget:.0%} of all slots"
        print(f"{allowed}: {moved} fetches, imbalance {plan.report.after.mean_imbalance:.3f}")
    eq.save_placement(plan.placement, "mapping.jsonl", format="vllm")
    print("wrote mapping.jsonl, for initial_mapping_path in --eplb-config")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else synthetic_stats(Path("stats.jsonl")))
