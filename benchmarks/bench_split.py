"""What splitting every batch by its load brings, and placements made for it: the tables of docs/dispatch.md.

    python benchmarks/bench_split.py [--traces ../shared/traces] [--every N]

Held-out mean imbalance over all layers and scored windows: even split, three sweeps, and the optimum of each scored
window's own split. Every plan is made from nothing, from the windows before the scored one (16, or three statistics).
``--every N`` scores each N-th of the windows alone. "Excess left" is that of placements made for batches over that of
`robust`'s, both at the optimum. "Kept" is what three sweeps keep: of that gain, and of what splitting gains over an
even split of the same placement. Times are CPU time of all threads; of splits and tokens the least of nine calls.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from equipoise import Placement, Robust, Topology, assign, imbalance, rank_loads, split_batch
from equipoise.planning.shares import MAX_SWEEPS
from real_loads import SEEN, UNSEEN, deepseek, place, shuffled_routes

ROOT = Path(__file__).resolve().parents[1]
HISTORY = 16
FloatArray = npt.NDArray[np.float64]
Case = tuple[FloatArray, FloatArray, Topology]


def streams(traces: Path, every: int) -> Iterator[tuple[str, list[Case]]]:
    """Each stream's name, and what its plans are made from and scored on."""
    mixed = shuffled_routes(traces)
    yield "law + intent shuffled, 16 x 5", cases(mixed, Topology(16, 5), every)
    with np.load(traces / "gpt-oss-20b" / "windows_shuffled.npz") as file:
        windows = file["counts"].astype(np.float64)
    yield "gpt-oss windows, 8 x 5", cases(windows, Topology(8, 5), 12 * every)
    seen, unseen = deepseek(traces, *SEEN), deepseek(traces, *UNSEEN)
    for topology in (Topology(32, 9), Topology(64, 5), Topology(128, 3)):
        yield f"DeepSeek-R1, {topology.num_ranks} x {topology.slots_per_rank}", [(seen, unseen, topology)]


def cases(counts: FloatArray, topology: Topology, every: int) -> list[Case]:
    """Each ``every``-th window, planned from those before it."""
    scored = range(HISTORY, len(counts), every)
    return [(counts[w - HISTORY : w], counts[w : w + 1], topology) for w in scored]


def splits(loads: FloatArray, phy2log: npt.NDArray[np.int64], topology: Topology) -> FloatArray:
    """Mean imbalance of windows ``[W, L, E]``: even, three sweeps, optimum."""
    placement = Placement(phy2log, topology.num_ranks, loads.shape[2])
    found = [
        [imbalance(rank_loads(w, placement, split_batch(w, placement, n))).mean() for n in (0, 3, MAX_SWEEPS)]
        for w in loads
    ]
    return np.mean(found, axis=0)


def balance_table(traces: Path, every: int) -> None:
    """`robust`'s placements and those made for batches, side by side."""
    print(
        "\n| stream | windows | robust: even / three / optimum | batch: even / three / optimum | excess left | "
        "kept of the gain | kept of splitting | CPU s a plan |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, asked in streams(traces, every):
        even, batch, seconds = [], [], 0.0
        for history, later, topology in asked:
            even.append(splits(later, place(Robust(), history, topology), topology))
            started = time.process_time()
            made = place(Robust(split="batch"), history, topology)
            seconds += time.process_time() - started
            batch.append(splits(later, made, topology))
        one, other = np.mean(even, axis=0), np.mean(batch, axis=0)
        left = (other[2] - 1) / (one[2] - 1)
        cells = [" / ".join(f"{x:.4f}" for x in row) for row in (one, other)]
        kept = [(one[1] - other[1]) / (one[2] - other[2]), (other[0] - other[1]) / (other[0] - other[2])]
        windows = sum(len(later) for _, later, _ in asked)
        print(
            f"| {name} | {windows} | {cells[0]} | {cells[1]} | {left:.2f} | {kept[0]:.2f} | {kept[1]:.2f} | "
            f"{seconds / len(asked):.2f} |",
            flush=True,
        )


def warm_up() -> None:
    """Let kernels be compiled."""
    place(Robust(split="batch"), np.random.default_rng(0).integers(1, 99, (3, 2, 16)), Topology(4, 5))


def least_seconds(call: Callable[[], object], repeats: int = 9) -> float:
    """CPU time, after a call that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return min(times)


def time_table(traces: Path) -> None:
    """Three sweeps of a layer of 256 experts, 4,096 x 8 tokens, a plan of 58 layers from four windows."""
    warm_up()
    loads = deepseek(traces, "prefill_in1024")
    four = np.concatenate([deepseek(traces, *SEEN), deepseek(traces, UNSEEN[0])])
    print(
        "| placement | three sweeps, us a layer | assign 4,096 x 8, ms | plan from 4 windows, CPU s |\n"
        "|---|---|---|---|"
    )
    for topology in (Topology(32, 9), Topology(64, 5), Topology(128, 3)):
        made = Placement(place(Robust(), loads, topology), topology.num_ranks, 256)
        one = made.layer(0)
        shares = split_batch(loads[0, :1], one)
        topk = np.random.default_rng(0).choice(256, (4096, 8), p=loads[0, 0] / loads[0, 0].sum())
        sweeps = least_seconds(lambda made=made: split_batch(loads[0], made)) / loads.shape[1]
        tokens = least_seconds(lambda one=one, shares=shares, topk=topk: assign(topk, shares, one))
        started = time.process_time()
        place(Robust(split="batch"), four, topology)
        planned = time.process_time() - started
        cells = f"{1e6 * sweeps:.1f} | {1e3 * tokens:.2f} | {planned:.1f}"
        print(f"| {topology.num_ranks} x {topology.slots_per_rank} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--traces", type=Path, default=ROOT.parent / "shared" / "traces")
    parser.add_argument("--every", type=int, default=1, help="score each N-th of the windows alone")
    options = parser.parse_args()
    time_table(options.traces)
    balance_table(options.traces, options.every)


if __name__ == "__main__":
    main()
