"""A policy of your own, compared with the built-in ones on traffic that its plans have not seen.

    python examples/custom_policy.py

A policy is an object with `place(problem)`; what it returns is checked whole before anyone sees it. A package offers
one by name through the entry-point group `equipoise.policies`; every command then knows it.
"""

from __future__ import annotations

import numpy as np

import equipoise as eq
from equipoise.replay import replay


class Snake:
    """Replicas for the hottest experts, dealt out heaviest first, forwards and backwards over the ranks."""

    name = "snake"

    def place(self, problem: eq.Problem) -> np.ndarray:
        topology = problem.topology
        loads = np.asarray(problem.loads, dtype=np.float64).sum(axis=0)  # [L, E], windows added up
        return np.stack([self._layer(row, topology) for row in loads])

    @staticmethod
    def _layer(loads: np.ndarray, topology: eq.Topology) -> np.ndarray:
        replicas = np.ones(len(loads), dtype=np.int64)
        for _ in range(topology.num_slots - len(loads)):
            replicas[np.argmax(loads / replicas)] += 1
        items = np.repeat(np.arange(len(loads)), replicas)
        items = items[np.argsort(-(loads / replicas)[items], kind="stable")]
        table = items.reshape(topology.slots_per_rank, topology.num_ranks)
        table[1::2] = table[1::2, ::-1]
        return table.T.ravel()


def main() -> None:
    trace = eq.synthetic_trace(num_layers=8, num_experts=64, num_windows=24, seed=0)
    topology = eq.Topology(num_ranks=8, slots_per_rank=9)

    plan = eq.plan(trace, topology, Snake())
    print(f"in-sample {plan.report.after.mean_imbalance:.3f}, twins {int(plan.placement.twins.sum())}")

    found = replay(trace, topology, [Snake(), "greedy", "robust"], interval=4, history=8)
    for series in found.series:
        print(
            f"{series.label:12} held-out {series.summary.mean_imbalance:.3f}, moved {series.summary.moves_share:.0%}"
        )


if __name__ == "__main__":
    main()
