"""Balance against dispatch: what names of ranks and swaps of experts do to nodes a token, and what that costs.

    python benchmarks/bench_affinity.py                    the tables of docs/communication.md
    python benchmarks/bench_affinity.py --figure FILE      also draws the frontier

DeepSeek-V2-Lite routes of ../shared/traces, domains alone and together, no replicas. The first half of each domain's
tokens is planned from, in windows of 512, and its pairs are counted; the second half is scored: nodes and ranks a
token, and the imbalance of its tokens in one window, and in windows of 256.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from equipoise import Placement, Robust, Routes, Topology, imbalance, rank_loads
from equipoise.plans.communication import communication, count_pairs
from equipoise.search.names import name_ranks
from real_loads import FloatArray, cut, place

TRACES = Path(__file__).resolve().parents[2] / "shared" / "traces" / "deepseek-v2-lite"
DOMAINS = {"law": ("law",), "intent": ("intent",), "law + intent": ("law", "intent")}
SHAPES = (Topology(8, 8, 4), Topology(16, 4, 4))
CAPS = (1.02, 1.05, 1.1, 1.2, 1.3)
EXPERTS, PLANNED, SCORED = 64, 512, 256


@dataclass(frozen=True)
class Halves:
    """Routes to plan from and to score on, and the loads of both in windows."""

    seen: Routes
    unseen: Routes
    planned: FloatArray
    scored: FloatArray


def halves(domains: tuple[str, ...]) -> Halves:
    """The first and the second half of each domain."""
    first, second = [], []
    for name in domains:
        with np.load(TRACES / f"{name}_routes.npz") as file:
            topk = file["topk"]
        middle = topk.shape[1] // 2
        first.append(topk[:, :middle])
        second.append(topk[:, middle:])
    seen, unseen = np.concatenate(first, axis=1), np.concatenate(second, axis=1)
    return Halves(Routes(seen, EXPERTS), Routes(unseen, EXPERTS), cut(seen, PLANNED), cut(unseen, SCORED))


@dataclass(frozen=True)
class Point:
    """One plan, scored on the tokens that it was not made from."""

    name: str
    nodes: float
    ranks: float
    imbalance: float
    by_window: float


def scored(name: str, given: Halves, phy2log: np.ndarray, topology: Topology) -> Point:
    placement = Placement(phy2log, topology.num_ranks, EXPERTS)
    found = communication(given.unseen, placement, topology)
    return Point(
        name,
        float(found.nodes_per_token.mean()),
        float(found.ranks_per_token.mean()),
        float(imbalance(rank_loads(given.scored.sum(axis=0), placement)).mean()),
        float(imbalance(rank_loads(given.scored, placement)).mean()),
    )


def line(given: Halves, topology: Topology) -> Iterator[Point]:
    """From the plan as it is to the highest cap."""
    pairs = count_pairs(given.seen).counts
    plain = place(Robust(), given.planned, topology)
    yield scored("without pairs", given, plain, topology)
    yield scored("names alone", given, name_ranks(plain, pairs, topology), topology)
    yield scored(
        "with pairs (default)",
        given,
        place(Robust(), given.planned, topology, pair_counts=pairs),
        topology,
    )
    for cap in CAPS:
        phy2log = place(Robust(affinity=cap), given.planned, topology, pair_counts=pairs)
        yield scored(f"affinity {cap}", given, phy2log, topology)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path, help="draw the frontier: .png, .svg or .pdf")
    options = parser.parse_args()
    lines: dict[str, list[Point]] = {}
    print(
        "| domain | ranks x slots, nodes | plan | nodes a token | ranks a token | imbalance | in windows of 256 |"
    )
    print("|---|---|---|---|---|---|---|")
    for domain, names in DOMAINS.items():
        given = halves(names)
        for topology in SHAPES:
            shape = f"{topology.num_ranks} x {topology.slots_per_rank}, {topology.num_nodes}"
            points = lines[f"{domain}, {topology.num_ranks} ranks"] = list(line(given, topology))
            for point in points:
                less = point.nodes / points[0].nodes - 1.0
                print(
                    f"| {domain} | {shape} | {point.name} | {point.nodes:.3f} ({less:+.1%}) | {point.ranks:.3f} "
                    f"| {point.imbalance:.4f} | {point.by_window:.4f} |"
                )
    if options.figure is not None:
        draw(lines, options.figure)


def draw(lines: dict[str, list[Point]], path: Path) -> None:
    """Nodes a token against imbalance, a line for each domain and shape."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for (name, points), mark in zip(lines.items(), "osPv^D", strict=True):
        axes.plot([p.nodes for p in points], [p.imbalance for p in points], marker=mark, label=name)
    axes.set_xlabel("nodes a token, held-out")
    axes.set_ylabel("mean imbalance, held-out")
    axes.invert_xaxis()
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
