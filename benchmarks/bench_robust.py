"""What `robust` reaches and how long it takes: the tables of docs/algorithm.md.

    python benchmarks/bench_robust.py [--traces ../shared/traces] [--json FILE]

The tables of balance need the recorded loads of ../shared/traces and are left out where they are missing; then
speed is measured on synthetic loads. Times are the median of several calls in one process, after a first call
that compiles; ratios are to the compiled `greedy` and to the plain-Python one of benchmarks/reference.py in this run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from equipoise import Greedy, Placement, Problem, Robust, Topology
from equipoise.planning.bounds import lower_bound
from equipoise.planning.kernel import num_threads
from real_loads import SEEN, UNSEEN, deepseek, place, replay, score, shifted_routes, shuffled_routes
from reference import greedy as plain_greedy

ROOT = Path(__file__).resolve().parents[1]
FLAT = (Topology(8, 33), Topology(16, 18), Topology(32, 9), Topology(64, 5))
GROUPED = Topology(32, 9, 4, 8)
SHIFTS = (("law", "intent"), ("intent", "law"))
SHIFT_TOPOLOGIES = (Topology(16, 5), Topology(32, 3))
Row = dict[str, Any]


def name_of(topology: Topology) -> str:
    """As in "32 x 9, 8 groups on 4 nodes"."""
    name = f"{topology.num_ranks} x {topology.slots_per_rank}"
    if topology.hierarchical:
        name += f", {topology.num_groups} groups on {topology.num_nodes} nodes"
    return name


def in_sample(traces: Path) -> list[Row]:
    """Planned from and scored on `prefill_in1024`."""
    loads = deepseek(traces, "prefill_in1024")
    rows = []
    for topology in (*FLAT, GROUPED):
        greedy = score(loads, place(Greedy(), loads, topology), topology.num_ranks)[0]
        robust = score(loads, place(Robust(), loads, topology), topology.num_ranks)[0]
        bound = lower_bound(loads[0], topology)
        rows.append(
            {
                "topology": name_of(topology),
                "greedy": greedy.mean(),
                "robust": robust.mean(),
                "bound": bound.mean(),
                "above bound %": 100 * (robust / bound - 1).mean(),
            }
        )
    return rows


def held_out(traces: Path) -> list[Row]:
    """Planned from three statistics, scored on two others."""
    seen, unseen = deepseek(traces, *SEEN), deepseek(traces, *UNSEEN)
    # Windows count alike for both: the sum that greedy gets is that of shares.
    alike = (seen / seen.sum(axis=2, keepdims=True)).sum(axis=0, keepdims=True)
    rows = []
    for topology in FLAT:
        greedy = score(unseen, place(Greedy(), alike, topology), topology.num_ranks)
        robust = score(unseen, place(Robust(), seen, topology), topology.num_ranks)
        rows.append({"topology": name_of(topology), "greedy": greedy.mean(), "robust": robust.mean()})
    return rows


WAYS: dict[str, tuple[Any, dict[str, float]]] = {
    "greedy": (Greedy(), {}),
    "robust": (Robust(), {}),
    "robust, 5 % budget": (Robust(), {"max_moves": 0.05}),
    "robust, 1 % budget": (Robust(), {"max_moves": 0.01}),
    "robust, fresh each time": (Robust(start="fresh"), {}),
}


def replay_ways(counts: Any, topology: Topology) -> list[Row]:
    """Re-planned every window from the last 16: greedy, and what robust does with its moves."""
    rows = []
    for name, (policy, options) in WAYS.items():

        def step(
            loads: Any,
            topology: Topology,
            current: Placement | None,
            policy: Any = policy,
            options: Any = options,
        ) -> Any:
            return place(policy, loads, topology, current=current, **(options if current else {}))

        found = replay(counts, topology, step)
        rows.append({"policy": name, "imbalance": found.imbalance, "moved %": 100 * found.moved})
    return rows


def replays(traces: Path, seeds: tuple[int, ...] = (0, 1, 2)) -> list[Row]:
    """Law and intent texts shuffled together, windows of 256 tokens."""
    rows = []
    for seed in seeds:
        counts = shuffled_routes(traces, seed=seed)
        rows += [{"seed": seed, **row} for row in replay_ways(counts, Topology(16, 5))]
    return rows


def shifts(traces: Path) -> list[Row]:
    """All texts of one domain, then all of the other one, windows of 256 tokens."""
    rows = []
    for domains in SHIFTS:
        counts, _ = shifted_routes(traces, *domains)
        for topology in SHIFT_TOPOLOGIES:
            told = {"texts": " then ".join(domains), "topology": name_of(topology)}
            rows += [{**told, **row} for row in replay_ways(counts, topology)]
    return rows


def milliseconds(
    call: Callable[[], object], repeats: int = 9, clock: Callable[[], float] = time.perf_counter
) -> float:
    """The median time of a call after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        started = clock()
        call()
        times.append(clock() - started)
    return 1e3 * float(np.median(times))


def synthetic(windows: int, layers: int, experts: int, seed: int = 0) -> Any:
    """Log-normal loads (synthetic): a base per expert, times noise per window."""
    rng = np.random.default_rng(seed)
    base = rng.lognormal(0.0, 0.8, (1, layers, experts))
    return np.rint(1e5 * base * rng.lognormal(0.0, 0.3, (windows, layers, experts)))


def more_windows(loads: Any, windows: int) -> Any:
    """Real statistics, repeated under noise (synthetic from the fifth window on) to as many windows."""
    rng = np.random.default_rng(0)
    extra = [loads[i % len(loads)] for i in range(windows)]
    noise = rng.lognormal(0.0, 0.1, (windows, *loads.shape[1:]))
    noise[: len(loads)] = 1.0
    return np.rint(np.array(extra) * noise)


def speed(traces: Path | None) -> list[Row]:
    """58 layers x 256 experts on 32 x 9, and 61 x 512 on 256 x 3."""
    topology, large = Topology(32, 9), Topology(256, 3)
    base = deepseek(traces, *SEEN, *UNSEEN) if traces else synthetic(5, 58, 256)
    one, many = base[1:2], more_windows(base, 17)
    robust, wide = Robust(), synthetic(1, 61, 512)
    greedy, wide_problem = Greedy(), Problem.of(wide, large)
    one_problem, sixteen = Problem.of(one, topology), Problem.of(many[:16], topology)
    greedy_ms = milliseconds(lambda: greedy.place(one_problem))
    wide_ms = milliseconds(lambda: greedy.place(wide_problem))
    started = time.perf_counter()
    plain_greedy(one[0], topology.num_slots, 1, 1, topology.num_ranks)
    plain_ms = 1e3 * (time.perf_counter() - started)
    started = time.perf_counter()
    plain_greedy(wide[0, :6], large.num_slots, 1, 1, large.num_ranks)
    plain_wide_ms = 1e3 * (time.perf_counter() - started) * 61 / 6  # six layers stand for all
    own = Placement(robust.place(sixteen), 32, 256)
    cold = Placement(greedy.place(one_problem), 32, 256)
    asked: list[tuple[str, Problem]] = [
        ("fresh, 1 window", one_problem),
        ("fresh, 4 windows", Problem.of(base[:4], topology)),
        ("fresh, 16 windows", sixteen),
        (
            "from its own plan, 16 windows, 5 % budget",
            Problem.of(many[1:17], topology, current=own, max_moves=0.05),
        ),
        ("from its own plan, 16 windows, no budget", Problem.of(many[1:17], topology, current=own)),
        (
            "from greedy's plan, 16 windows, 5 % budget",
            Problem.of(many[:16], topology, current=cold, max_moves=0.05),
        ),
    ]
    calls: list[tuple[str, Callable[[], object], float, float]] = [
        ("greedy, 1 window", lambda: greedy.place(one_problem), greedy_ms, plain_ms),
        *[(name, partial(robust.place, problem), greedy_ms, plain_ms) for name, problem in asked],
        ("fresh, 1 window, 61 x 512 on 256 x 3", lambda: robust.place(wide_problem), wide_ms, plain_wide_ms),
    ]
    rows = []
    for name, call, fast, slow in calls:
        ms = milliseconds(call)
        rows.append(
            {"plan": name, "ms": ms, "times greedy": ms / fast, "faster than plain Python": slow / ms}
        )
    return rows


def growth() -> list[Row]:
    """How CPU time grows as experts and ranks double together, E / 8 ranks x 9 slots; synthetic loads.

    Of all threads together: a layer uses one, so with few layers some would idle.
    """
    rows = []
    for windows in (1, 4):
        before = None
        experts = 64
        while experts <= 2048:
            layers = max(6, 1024 // experts)
            rng = np.random.default_rng(0)
            base = rng.lognormal(0.0, 0.8, (1, layers, experts))
            loads = np.rint(1e5 * base * rng.lognormal(0.0, 0.3, (windows, layers, experts)))
            topology = Topology(experts // 8, 9)
            spent = milliseconds(partial(place, Robust(), loads, topology), 5, time.process_time) / layers
            told = {"windows": windows, "experts": experts, "CPU ms a layer": spent}
            rows.append({**told, "times the one before": spent / before if before else "-"})
            before = spent
            experts *= 2
    return rows


def show(title: str, rows: list[Row]) -> None:
    """One Markdown table."""
    print(f"\n{title}\n")
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{x:.6g}" if isinstance(x, float) else str(x) for x in row.values()) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--traces", type=Path, default=ROOT.parent / "shared" / "traces")
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    options = parser.parse_args()
    traces = options.traces if options.traces.is_dir() else None
    tables: dict[str, list[Row]] = {}
    if traces is None:
        print(f"{options.traces} is not there: no tables of balance; speed on synthetic loads")
    else:
        tables["In-sample, mean imbalance"] = in_sample(traces)
        tables["Held-out, mean imbalance"] = held_out(traces)
        tables["Replay, held-out mean imbalance and slots fetched at each re-plan"] = replays(traces)
        tables["Replay of a domain shift, likewise"] = shifts(traces)
    tables[f"Speed, {num_threads()} threads"] = speed(traces)
    tables["Growth: experts and ranks double together"] = growth()
    for title, rows in tables.items():
        show(title, rows)
    if options.json:
        options.json.write_text(json.dumps(tables, indent=2, default=float) + "\n")


if __name__ == "__main__":
    main()
