"""How long it takes to see where tokens go, and the memory for it.

    python benchmarks/bench_routes.py                     58 layers x 1,000,000 tokens x 8 of 256 experts, one thread
    python benchmarks/bench_routes.py --tokens 100000

Times are CPU seconds of this process. Tokens hit one expert of each of 8 groups, drawn evenly.
"""

from __future__ import annotations

import argparse
import os
import resource
import time

os.environ["EQUIPOISE_NUM_THREADS"] = "1"

import numpy as np

from equipoise import Routes, Topology, contiguous_placement
from equipoise.plans.communication import communication, count_pairs

LAYERS, EXPERTS, TOP_K = 58, 256, 8


def drawn(tokens: int) -> Routes:
    rng = np.random.default_rng(0)
    topk = np.empty((LAYERS, tokens, TOP_K), np.uint8)
    for layer in topk:
        layer[...] = rng.integers(0, EXPERTS // TOP_K, layer.shape, dtype=np.uint8)
        layer += np.arange(0, EXPERTS, EXPERTS // TOP_K, dtype=np.uint8)
    topk.flags.writeable = False  # so that it is not copied
    return Routes(topk, EXPERTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    routes, topology = drawn(parser.parse_args().tokens), Topology(32, 9, 4)
    placement = contiguous_placement(LAYERS, EXPERTS, topology.num_ranks, topology.num_slots)
    for run in (lambda part: communication(part, placement, topology), count_pairs):
        run(routes[:10])  # compiles
        started = time.process_time()
        found = run(routes)
        print(f"{type(found).__name__}: {time.process_time() - started:.1f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"peak memory of the process: {peak / 1e9:.2f} GB, {routes.topk.nbytes / 1e9:.2f} GB of them routes"
    )


if __name__ == "__main__":
    main()
