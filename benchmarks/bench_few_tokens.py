"""Plans from windows of few tokens: does `robust` fit their chance?

    python benchmarks/bench_few_tokens.py [--layers 40] [--traces ../shared/traces]

Counts are drawn (synthetic) from one profile a layer, so windows differ by chance alone, and whoever plans can do no
better than to add them up. Each setting is planned from its windows by `robust`, from their sum by `robust` and by
`greedy`, and scored on 16 other windows. A row says by how much `robust` is above the better one of the two on
sums: the mean over settings, the largest, and in how many it is by more than 0.004, first as it is and then with two
standard errors of the layers taken off. In the second table each expert changes from window to window, by itself.
The third one is of recorded loads, where windows tell more.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from bench_robust import show
from equipoise import Greedy, Robust, Topology
from real_loads import FloatArray, place, score, shifted_routes, shuffled_routes

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = 0.004
SIZES = ((64, Topology(40, 2)), (128, Topology(72, 2)), (64, Topology(32, 3)), (128, Topology(64, 3)))
TOKENS = (2, 8, 40, 200)  # of an expert in a window
WINDOWS = (1, 2, 3, 4, 6, 8, 16, 64)
SKEWS = (0.4, 0.9, 1.3)  # sigma of the log-normal profiles
RECORDED = (Topology(40, 2), Topology(32, 3))
Row = dict[str, Any]


def samples(
    experts: int, tokens: int, windows: int, skew: float, layers: int, change: float = 0.0
) -> tuple[FloatArray, FloatArray]:
    """Windows to plan from ``[W, L, E]``, and 16 to score on; ``change`` is the sigma of log-normal changes."""
    rng = np.random.default_rng([experts, tokens, windows, round(10 * skew), round(10 * change)])
    profile = rng.lognormal(0.0, skew, (layers, experts))
    profile *= tokens * experts / profile.sum(axis=1, keepdims=True)
    rates = profile * rng.lognormal(0.0, change, (windows + 16, layers, experts))
    counts = rng.poisson(rates).astype(np.float64)
    return counts[:windows], counts[windows:]


def three_ways(seen: FloatArray, later: FloatArray, topology: Topology) -> dict[str, FloatArray]:
    """Held-out imbalance of each layer."""
    total = seen.sum(axis=0, keepdims=True)
    plans = {
        "windows": place(Robust(), seen, topology),
        "sum": place(Robust(), total, topology),
        "greedy": place(Greedy(), total, topology),
    }
    return {name: score(later, plan, topology.num_ranks).mean(axis=0) for name, plan in plans.items()}


def above(found: dict[str, FloatArray]) -> tuple[float, float]:
    """How far the plan from windows is above the better one of the two from sums, and the standard error."""
    better = min(found["sum"], found["greedy"], key=np.mean)
    difference = found["windows"] - better
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(difference.size))


def drawn(layers: int, grid: Iterable[tuple[int, int, float]], change: float) -> list[Row]:
    """A row for each number of slots and windows; the grid is of tokens, windows and skews."""
    settings: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for (experts, topology), (tokens, windows, skew) in product(SIZES, grid):
        seen, later = samples(experts, tokens, windows, skew, layers, change)
        settings[topology.slots_per_rank, windows].append(above(three_ways(seen, later, topology)))
    rows = []
    for (slots, windows), found in sorted(settings.items()):
        gaps, errors = np.array(found).T
        rows.append(
            {
                "slots a rank": slots,
                "windows": windows,
                "settings": len(found),
                "above, mean": gaps.mean(),
                "largest": gaps.max(),
                f"by > {ALLOWED}": int((gaps > ALLOWED).sum()),
                "beyond 2 errors": int((gaps - 2 * errors > ALLOWED).sum()),
            }
        )
    return rows


def recorded(traces: Path) -> list[Row]:
    """Recorded routes in windows of 256 tokens, planned from nothing at a dozen places, scored on the next four."""
    streams = {"law and intent, mixed": shuffled_routes(traces)}
    for domains in (("law", "intent"), ("intent", "law")):
        streams[", then ".join(domains)] = shifted_routes(traces, *domains)[0]
    rows = []
    for (name, counts), topology, windows in product(streams.items(), RECORDED, (2, 3, 4, 8, 16)):
        places = range(windows, len(counts) - 4, max(4, len(counts) // 12))
        found = [three_ways(counts[at - windows : at], counts[at : at + 4], topology) for at in places]
        means = {way: np.mean([ways[way].mean() for ways in found]) for way in found[0]}
        told = {"stream": name, "topology": f"{topology.num_ranks} x {topology.slots_per_rank}"}
        rows.append({**told, "windows planned from": windows, **means})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--layers", type=int, default=40, help="layers of each setting")
    parser.add_argument("--traces", type=Path, default=ROOT.parent / "shared" / "traces")
    options = parser.parse_args()
    told = "held-out mean imbalance above the better plan from the sum"
    show(f"Samples of one profile, {told}", drawn(options.layers, product(TOKENS, WINDOWS, SKEWS), 0.0))
    alone = product(TOKENS[2:], (4, 8, 16), SKEWS)
    show(f"Experts that change by themselves, {told}", drawn(options.layers, alone, 0.3))
    if options.traces.is_dir():
        show("Recorded loads, held-out mean imbalance", recorded(options.traces))
    else:
        print(f"{options.traces} is not there: no recorded loads")


if __name__ == "__main__":
    main()
