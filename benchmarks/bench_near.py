"""Tokens on nodes that they visit anyway: what that does to nodes a token, and to balance.

    python benchmarks/bench_near.py            the table and times of docs/dispatch.md

DeepSeek-V2-Lite routes of ../shared/traces. The first half of each domain's tokens is planned from, in windows of
512, with its pairs; the second half is served in batches of 512 tokens, all ranks' together. Means over batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

import equipoise as eq
from bench_affinity import DOMAINS, EXPERTS, Halves, halves
from equipoise import Placement, Robust, Topology
from real_loads import cut, place

SHAPES = (Topology(8, 10, 4), Topology(16, 5, 4), Topology(16, 6, 8), Topology(16, 8, 2))
BATCH = 512


def distinct(of_entries: np.ndarray, size: int) -> float:
    """Different ranks or nodes of a token, on average; ``of_entries [L, T, K]``."""
    seen = np.zeros((*of_entries.shape[:2], size), np.bool_)
    np.put_along_axis(seen, of_entries, True, axis=2)
    return float(seen.sum(axis=2).mean())


def scored(slots: np.ndarray, topology: Topology) -> tuple[float, float, float]:
    """Nodes a token, ranks a token, mean imbalance of slots ``[L, T, K]``."""
    rank = slots // topology.slots_per_rank
    loads = np.stack([np.bincount(layer.ravel(), minlength=topology.num_ranks) for layer in rank])
    nodes = np.array(topology.nodes)[rank]
    return (
        distinct(nodes, topology.num_nodes),
        distinct(rank, topology.num_ranks),
        float(eq.imbalance(loads).mean()),
    )


def dispatched(
    topk: np.ndarray, placement: Placement, topology: Topology
) -> Iterator[tuple[str, np.ndarray]]:
    """The slots of one batch ``[L, T, K]``, one way after the other."""
    shares = eq.split_batch(cut(topk, BATCH)[0], placement)
    yield "by number", eq.assign_by_number(topk, placement)
    yield "even", eq.assign(topk, None, placement)
    yield "even, near", eq.assign_near(topk, None, placement, topology)
    yield "batch", eq.assign(topk, shares, placement)
    yield "batch, near", eq.assign_near(topk, shares, placement, topology)


def means(given: Halves, topology: Topology) -> dict[str, np.ndarray]:
    """What each way brings, over all batches."""
    phy2log = place(Robust(), given.planned, topology, pair_counts=eq.count_pairs(given.seen).counts)
    placement = Placement(phy2log, topology.num_ranks, EXPERTS)
    topk = given.unseen.topk.astype(np.int64)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for start in range(0, topk.shape[1] - BATCH + 1, BATCH):
        for name, slots in dispatched(topk[:, start : start + BATCH], placement, topology):
            found.setdefault(name, []).append(scored(slots, topology))
    return {name: np.mean(rows, axis=0) for name, rows in found.items()}


def seconds(run: Callable[[], object]) -> float:
    """CPU time of this thread: the least of five, after one that may compile."""
    run()
    found = []
    for _ in range(5):
        started = time.thread_time()
        run()
        found.append(time.thread_time() - started)
    return min(found)


def times(topology: Topology) -> str:
    """What 4,096 made-up tokens of 8 of 256 experts take in one layer, as a line."""
    rng = np.random.default_rng(0)
    loads = rng.lognormal(0.0, 1.0, (4, 1, 256))
    placement = eq.plan(loads, topology).placement
    topk = np.argsort(rng.random((4096, 256)) / loads[0, 0], axis=1)[:, :8]
    plain = seconds(lambda: eq.assign(topk, None, placement))
    near = seconds(lambda: eq.assign_near(topk, None, placement, topology))
    shape = f"{topology.num_ranks} x {topology.slots_per_rank}, {topology.num_nodes} nodes"
    return f"{shape}: assign {1e3 * plain:.2f} ms, assign_near {1e3 * near:.2f} ms, {near / plain:.0f} times"


def main() -> None:
    print("| domain | ranks x slots, nodes | dispatch | nodes a token | ranks a token | imbalance |")
    print("|---|---|---|---|---|---|")
    for domain, names in DOMAINS.items():
        given = halves(names)
        for topology in SHAPES:
            shape = f"{topology.num_ranks} x {topology.slots_per_rank}, {topology.num_nodes}"
            rows = means(given, topology)
            for name, (nodes, ranks, balance) in rows.items():
                less = nodes / rows[name.removesuffix(", near")][0] - 1.0
                of = f" ({less:+.1%})" if name.endswith("near") else ""
                print(f"| {domain} | {shape} | {name} | {nodes:.3f}{of} | {ranks:.3f} | {balance:.4f} |")
    for topology in (Topology(32, 9, 4), Topology(128, 3, 16)):
        print(times(topology))


if __name__ == "__main__":
    main()
