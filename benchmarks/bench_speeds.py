"""What plans gain that know how fast ranks are: `robust` told and not told, against the bound that knows the speeds.

    python benchmarks/bench_speeds.py

DeepSeek-R1 loads of ../shared/traces, 32 ranks x 9 slots (alone and as 4 nodes x 8 groups) and 8 ranks x 33, planned
from three workloads. Imbalances are times, loads divided by speeds, of the busiest rank over the fair one; in-sample
those of the three workloads added up, held-out the mean of two others.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from equipoise import Placement, Robust, Topology, imbalance, rank_loads
from equipoise.planning.bounds import lower_bound
from real_loads import SEEN, UNSEEN, FloatArray, deepseek, place

TRACES = Path(__file__).resolve().parents[2] / "shared" / "traces"


def speeds(name: str, num_ranks: int) -> tuple[float, ...]:
    """Speeds of ranks by the name of a case."""
    if name == "one slow rank":
        return (*(1.0,) * (num_ranks - 1), 0.8)
    if name == "every third at 0.8":
        return tuple(0.8 if rank % 3 == 2 else 1.0 for rank in range(num_ranks))
    return tuple(np.random.default_rng(0).uniform(0.7, 1.0, num_ranks).round(2).tolist())


def measured(loads: FloatArray, phy2log: np.ndarray, topology: Topology) -> float:
    """Mean imbalance of times over windows and layers ``[W, L, E]``."""
    placement = Placement(phy2log, topology.num_ranks, loads.shape[2])
    return float(imbalance(rank_loads(loads, placement), topology.rank_speed).mean())


def main() -> None:
    seen, unseen = deepseek(TRACES, *SEEN), deepseek(TRACES, *UNSEEN)
    total = seen.sum(axis=0)[None]
    print("| topology | speeds | not told | told | bound | of the gap closed | held-out, not told | told |")
    print("|---|---|---|---|---|---|---|---|")
    for blind in (Topology(32, 9), Topology(32, 9, 4, 8), Topology(8, 33)):
        for name in ("one slow rank", "every third at 0.8", "0.7 to 1"):
            told = Topology(
                blind.num_ranks,
                blind.slots_per_rank,
                blind.num_nodes,
                blind.num_groups,
                rank_speed=speeds(name, blind.num_ranks),
            )
            without, knowing = place(Robust(), seen, blind), place(Robust(), seen, told)
            before, after = measured(total, without, told), measured(total, knowing, told)
            bound = float(lower_bound(total[0], told).mean())
            later = [measured(unseen, plan, told) for plan in (without, knowing)]
            closed = (before - after) / (before - bound)
            nodes = f", groups on {blind.num_nodes} nodes" if blind.hierarchical else ""
            shape = f"{blind.num_ranks} x {blind.slots_per_rank}{nodes}"
            print(
                f"| {shape} | {name} | {before:.4f} | {after:.4f} | {bound:.4f} | {closed:.1%} "
                f"| {later[0]:.4f} | {later[1]:.4f} |"
            )


if __name__ == "__main__":
    main()
