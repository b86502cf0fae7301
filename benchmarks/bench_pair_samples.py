"""What a sample of the tokens tells of pairs: nodes a token where plans are made with it.

    python benchmarks/bench_pair_samples.py

As benchmarks/bench_affinity.py, but pairs are counted as a server counts them: by `LoadCounter`, in passes of 256
tokens, on one token of so many. The first half of the tokens is planned from, the second half is scored. Needs torch
and the routes of ../shared/traces.
"""

from __future__ import annotations

import numpy as np
import torch

from bench_affinity import EXPERTS, SHAPES, halves, scored
from equipoise import Robust, Routes
from equipoise.runtime.counter import LoadCounter
from real_loads import place

PASS = 256
DISTANCES = (1, 4, 16, 64, 256)


def sampled(routes: Routes, every: int) -> np.ndarray:
    """Pairs ``[L, E, E]`` as a server counts them."""
    counter = LoadCounter(routes.num_layers, EXPERTS, pairs_every=every)
    for first in range(0, routes.num_tokens, PASS):
        for layer, topk in enumerate(routes.topk[:, first : first + PASS]):
            counter.add(layer, torch.from_numpy(topk.astype(np.int64)))
        counter.end_pass()
    found = counter.take_pairs()
    assert found is not None
    return found.numpy()


def main() -> None:
    print(
        "| domain | ranks x slots, nodes | pairs of | default: nodes a token | affinity 1.1: nodes a token |"
    )
    print("|---|---|---|---|---|")
    for domain in ("law", "intent"):
        given = halves((domain,))
        for topology in SHAPES:
            shape = f"{topology.num_ranks} x {topology.slots_per_rank}, {topology.num_nodes}"
            bare = scored("", given, place(Robust(), given.planned, topology), topology)
            print(f"| {domain} | {shape} | none | {bare.nodes:.3f} | |")
            for every in DISTANCES:
                pairs = sampled(given.seen, every)
                found = [
                    scored("", given, place(policy, given.planned, topology, pair_counts=pairs), topology)
                    for policy in (Robust(), Robust(affinity=1.1))
                ]
                share = "all tokens" if every == 1 else f"1 token of {every}"
                print(f"| {domain} | {shape} | {share} | {found[0].nodes:.3f} | {found[1].nodes:.3f} |")


if __name__ == "__main__":
    main()
