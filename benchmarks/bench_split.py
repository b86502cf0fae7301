"""What splitting every batch by its load brings, and placements made for it: the tables of docs/dispatch.md.

    python benchmarks/bench_split.py [--traces ../shared/traces] [--every N]
    python benchmarks/bench_split.py --other    the same recordings cut elsewhere, and other topologies
    python benchmarks/bench_split.py --live     re-planning from what ranks hold, while law turns into intent

Held-out mean imbalance over all layers and scored windows: even split, three sweeps, and the optimum of each scored
window's own split. Every plan is made from nothing, from the windows before the scored one (16, or three statistics).
``--every N`` scores each N-th window of the first stream alone. "Excess left" is that of placements made for batches
over that of `robust`'s, both at the optimum. "Kept" is what three sweeps keep: of that gain, and of what splitting
gains over an even split of the same placement. Times are CPU time of all threads; those of splits and tokens are the
least of nine calls.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from equipoise import Placement, Robust, Topology, assign, imbalance, rank_loads, split_batch
from equipoise.planning.shares import MAX_SWEEPS
from real_loads import SEEN, UNSEEN, deepseek, place, shifted_routes, shuffled_routes

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
    yield "gpt-oss windows, 8 x 5", cases(windows, Topology(8, 5), 12)
    seen, unseen = deepseek(traces, *SEEN), deepseek(traces, *UNSEEN)
    for topology in (Topology(32, 9), Topology(64, 5), Topology(128, 3)):
        yield f"DeepSeek-R1, {topology.num_ranks} x {topology.slots_per_rank}", [(seen, unseen, topology)]


def other_streams(traces: Path) -> Iterator[tuple[str, list[Case]]]:
    """As `streams`, on windows and topologies that nothing was chosen by."""
    found: dict[Topology, list[Case]] = {}
    three = [names for names in itertools.combinations(SEEN + UNSEEN, 3) if set(names) != set(SEEN)]
    for k, names in enumerate(three):
        rest = [name for name in SEEN + UNSEEN if name not in names]
        pair = [((32, 9), (64, 5)), ((32, 9), (128, 3)), ((32, 10), (16, 18))][k % 3]
        for shape in pair:
            case = (deepseek(traces, *names), deepseek(traces, *rest), Topology(*shape))
            found.setdefault(case[2], []).append(case)
    for topology, asked in found.items():
        yield f"DeepSeek-R1, other files, {topology.num_ranks} x {topology.slots_per_rank}", asked
    mixed = shuffled_routes(traces, tokens=512, seed=5)
    yield "law + intent, 512 tokens, 16 x 5", cases(mixed, Topology(16, 5), 8)
    mixed = shuffled_routes(traces, tokens=128, seed=7)
    yield "law + intent, 128 tokens, 8 x 10", cases(mixed, Topology(8, 10), 24)
    with np.load(traces / "gpt-oss-20b" / "windows_shuffled.npz") as file:
        windows = file["counts"].astype(np.float64)
    yield "gpt-oss windows, 16 x 3", cases(windows, Topology(16, 3), 96)


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


def balance_table(asked_streams: Iterator[tuple[str, list[Case]]]) -> None:
    """`robust`'s placements and those made for batches, side by side."""
    print(
        "\n| stream | windows | robust: even / three / optimum | batch: even / three / optimum | excess left | "
        "kept of the gain | kept of splitting | CPU s a plan |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, asked in asked_streams:
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


def live_table(traces: Path, every: int = 6) -> None:
    """Law texts, then intent texts, 16 x 5: plans from the last 16 windows, from what ranks hold, scored on the next.

    Re-planned every sixth window; the first plan's fetches do not count.
    """
    counts, _ = shifted_routes(traces, "law", "intent")
    topology = Topology(16, 5)
    budget = counts.shape[1] * topology.num_slots // 20
    print("| policy | even / three / optimum | moved % | CPU s a plan |\n|---|---|---|---|")
    for name, policy, max_moves in (
        ("robust", Robust(), None),
        ("robust, 5 % budget", Robust(), budget),
        ("batch", Robust(split="batch"), None),
        ("batch, 5 % budget", Robust(split="batch"), budget),
        ("batch, fresh each time", Robust(split="batch", start="fresh"), None),
    ):
        held: Placement | None = None
        found, moved, seconds = [], [], 0.0
        for w in range(HISTORY, len(counts), every):
            options = {} if held is None else {"current": held, "max_moves": max_moves}
            started = time.process_time()
            made = place(policy, counts[w - HISTORY : w], topology, **options)
            seconds += time.process_time() - started
            after = Placement(made, topology.num_ranks, counts.shape[2])
            if held is not None:
                moved.append(after.moves_from(held).sum() / made.size)
            found.append(splits(counts[w : w + 1], made, topology))
            held = after
        cell = " / ".join(f"{x:.4f}" for x in np.mean(found, axis=0))
        print(f"| {name} | {cell} | {100 * np.mean(moved):.2f} | {seconds / len(found):.2f} |", flush=True)


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
    parser.add_argument("--every", type=int, default=1, help="score each N-th window of the first stream")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--other", action="store_true", help="the recordings cut elsewhere, other topologies")
    which.add_argument("--live", action="store_true", help="re-planning from what ranks hold")
    options = parser.parse_args()
    if options.live:
        live_table(options.traces)
    elif options.other:
        balance_table(other_streams(options.traces))
    else:
        time_table(options.traces)
        balance_table(streams(options.traces, options.every))


if __name__ == "__main__":
    main()
