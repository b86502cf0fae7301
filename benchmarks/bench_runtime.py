"""What the runtime costs: a step without a move beside a forward pass, and a transfer plan of DeepSeek-V3's size.

    python benchmarks/bench_runtime.py [--passes 100] [--pairs-every 16]

The first part serves the model of `equipoise demo` on one rank, over a real group of one, in passes of 4 x 64 bytes.
Shares are of CPU time of the serving thread, medians over passes that move nothing, those included in which a window
is added up or a plan is asked for; counting, which happens inside the pass, stands beside it. The second part hands
windows of 58 layers x 256 experts to a recorder, with pairs and without. The third plans the transfer of 61 layers x
288 slots on 32 ranks of 4 nodes between placements by `greedy` of an early and a late window of a synthetic load,
where nearly every slot changes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import equipoise as eq
from equipoise.demo.serving import Served
from equipoise.demo.texts import Stream
from equipoise.plans.warmup import TransferKind
from equipoise.runtime import ExpertWeights, LiveBalancer, Pace, State, TorchTransport, transfer_plan

LAYERS, EXPERTS, SLOTS = 8, 64, 72


class Timed:
    """A counter that notes the time that counting takes."""

    def __init__(self, counter: Any) -> None:
        self._counter, self.seconds = counter, 0.0

    def add(self, layer: int, topk: torch.Tensor) -> None:
        start = time.thread_time()
        self._counter.add(layer, topk)
        self.seconds += time.thread_time() - start


def serving(passes: int, pairs_every: int | None) -> None:
    """Print what counting and stepping cost beside a forward pass; with pairs on one token of so many."""
    topology = eq.Topology(1, SLOTS)
    placed = eq.contiguous_placement(LAYERS, EXPERTS, 1, SLOTS)
    model = Served(placed, Stream(passes=10))
    store = dist.TCPStore("127.0.0.1", 0, 1, True, timedelta(seconds=30), wait_for_workers=False)
    balancer = eq.Balancer(topology, LAYERS, EXPERTS, policy="greedy")
    transport = TorchTransport([0], store, rank=0)
    weights = ExpertWeights(model.layers.tensors())
    pace = Pace(interval=10)
    live = LiveBalancer(balancer, weights, transport, placed, pace=pace, pairs_every=pairs_every)
    counter = Timed(live.counter)
    model.layers.follow(live.maps, counter)
    forward, counting, step = [], [], []
    for number in range(passes):
        counter.seconds = 0.0
        start = time.thread_time()
        model.serve(number, 0)
        middle = time.thread_time()
        before = live.state
        live.step()
        end = time.thread_time()
        if State.MOVING not in (before, live.state):
            forward.append(middle - start - counter.seconds)
            counting.append(counter.seconds)
            step.append(end - middle)
    one = statistics.median(forward)
    print(f"forward pass of the demo model, {len(forward)} passes without a move: {1e3 * one:.1f} ms")
    for name, times in (("step()", step), ("counting in 8 layers", counting)):
        share, mean = statistics.median(times) / one, statistics.fmean(times) / statistics.fmean(forward)
        print(f"{name}: {100 * share:.2f} % of it (mean over mean {100 * mean:.2f} %)")
    transport.abort()


def recording() -> None:
    """Print what a recorder takes of the serving thread of rank 0, once a window, at DeepSeek-V3's size."""
    topk = np.random.default_rng(0).integers(0, 256, (58, 500, 8))
    pairs = eq.count_pairs(eq.Routes(topk, 256)).counts
    counts = np.diagonal(pairs, axis1=1, axis2=2)
    ways: dict[str, dict[str, Any]] = {"loads": {}, "loads and pairs": {"pairs": pairs}}
    for what, more in ways.items():
        found: list[list[float]] = [[], []]
        for kept, seconds in zip(found, (60.0, 0.0), strict=True):
            with (
                tempfile.TemporaryDirectory() as folder,
                eq.TraceWriter(folder, 58, 256, flush_seconds=seconds) as writer,
            ):
                for _ in range(9):
                    start = time.thread_time()
                    writer.add(counts, **more)
                    kept.append(time.thread_time() - start)
        held, written = (1e3 * statistics.median(times) for times in found)
        print(
            f"a window of {what}, 58 x 256, to TraceWriter: {held:.1f} ms, {written:.1f} ms where it writes"
        )


def planning() -> None:
    """Print how long the transfer of a large model takes to plan."""
    topology = eq.Topology(32, 9, 4)
    trace = eq.synthetic_trace(num_layers=61, num_experts=256, num_windows=8, seed=0)
    old, new = (eq.plan(trace.counts[at], topology, policy="greedy").placement for at in (0, -1))
    TransferKind().warm()
    times = []
    for _ in range(9):
        start = time.thread_time()
        made = transfer_plan(old, new, topology)
        times.append(time.thread_time() - start)
    changed = float(np.mean(old.phy2log != new.phy2log))
    print(
        f"transfer plan, 61 layers x 288 slots, 32 ranks, {100 * changed:.0f} % of slots change, "
        f"{made.num_fetches} fetches: {1e3 * statistics.median(times):.0f} ms (best {1e3 * min(times):.0f} ms)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passes", type=int, default=100)
    parser.add_argument("--pairs-every", type=int, help="also count pairs, on one token of so many")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    serving(arguments.passes, arguments.pairs_every)
    recording()
    planning()


if __name__ == "__main__":
    main()
