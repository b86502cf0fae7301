"""Evolve a policy: mutate a program, score it in a process of its own, keep what is better.

    python examples/evolve_policy.py [GENERATIONS]

The smallest loop that shows the parts; docs/scoring.md has the frameworks that do it in earnest, and what keeps a
program honest. The winner is judged on a trace that the search has not seen.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import equipoise as eq
from equipoise.scoring import score_program

PROGRAM = """
import numpy as np

POWER = {power}      # loads are flattened by this before they are replicated
MEMORY = {memory}    # weight of the windows before


seen = None


def rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus):
    global seen
    weight = np.asarray(weight, dtype=np.float64)
    if seen is None or seen.shape != weight.shape:
        seen = weight
    seen = MEMORY * seen + (1 - MEMORY) * weight
    layers, experts = weight.shape
    slots = num_replicas // num_gpus
    phy2log = np.empty((layers, num_replicas), dtype=np.int64)
    logcnt = np.ones((layers, experts), dtype=np.int64)
    for layer, loads in enumerate(seen ** POWER):
        for _ in range(num_replicas - experts):
            logcnt[layer, np.argmax(loads / logcnt[layer])] += 1
        part = seen[layer] / logcnt[layer]
        items = np.repeat(np.arange(experts), logcnt[layer])
        items = items[np.argsort(-part[items], kind="stable")]
        ranks, full = np.zeros(num_gpus), np.zeros(num_gpus, dtype=np.int64)
        for item in items:
            rank = np.argmin(np.where(full < slots, ranks, np.inf))
            phy2log[layer, rank * slots + full[rank]] = item
            ranks[rank] += part[item]
            full[rank] += 1
    log2phy = np.full((layers, experts, logcnt.max()), -1, dtype=np.int64)
    for layer in range(layers):
        for expert in range(experts):
            places = np.flatnonzero(phy2log[layer] == expert)
            log2phy[layer, expert, : len(places)] = places
    return phy2log, log2phy, logcnt
"""
TOPOLOGY = eq.Topology(num_ranks=8, slots_per_rank=9)


def balance(program: Path, seed: int) -> float:
    """GPU balance on later windows; 0 for a program that is refused."""
    trace = eq.synthetic_trace(num_layers=4, num_experts=64, num_windows=6, drift=0.1, seed=seed)
    outcome = score_program(
        program, trace, "equipoise", topology=TOPOLOGY, window=1, model="deepseek-v2-lite"
    )
    return 0.0 if outcome.error else float(outcome.metrics["balancedness_score_gpu"])


def main(generations: int) -> None:
    rng = np.random.default_rng(0)
    program = Path("candidate.py")

    def score(genes: dict[str, float], seed: int) -> float:
        program.write_text(PROGRAM.format(**genes))
        return balance(program, seed)

    best = {"power": 0.5, "memory": 0.0}
    first, mark = dict(best), score(best, seed=0)
    print(f"start        {best}: {mark:.4f}")
    for generation in range(1, generations + 1):
        child = {
            "power": float(np.clip(best["power"] + rng.normal(0, 0.3), 0.1, 2)),
            "memory": float(np.clip(best["memory"] + rng.normal(0, 0.3), 0, 0.9)),
        }
        found = score(child, seed=0)
        print(f"generation {generation} {child}: {found:.4f}{' <' if found > mark else ''}")
        if found > mark:
            best, mark = child, found
    print(f"on a trace that the search has not seen: {score(first, seed=1):.4f} -> {score(best, seed=1):.4f}")
    program.write_text(PROGRAM.format(**best))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 6)
