"""Hashes of thousands of plans, so that a change of structure can show that it changes no plan.

    python benchmarks/hash_plans.py                  prints a hash for each part of the grid, checks them
    python benchmarks/hash_plans.py --save FILE      also writes the hash of every single plan
    python benchmarks/hash_plans.py --compare FILE   names the plans that differ from that file
    python benchmarks/hash_plans.py --update         writes the hashes of the parts to plan_hashes.json

The grid: all policies and settings of `robust`, topologies with and without nodes and groups, one to many windows,
loads of every kind, with and without a current placement and a budget of moves, compiled kernels and torch tensors;
several thousand small problems and a dozen large ones. Everything is drawn from fixed seeds. `plan_hashes.json`
holds the hashes that are expected; a commit that means to change plans updates it and says which and why.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import equipoise as eq

EXPECTED = Path(__file__).with_name("plan_hashes.json")
SMALL_PROBLEMS = 500
Case = tuple[str, str, np.ndarray]  # part of the grid, name of the plan, what is hashed

KINDS = ("log-normal", "small integers", "large integers", "zero layers", "few carry all", "equal", "noise")

# Topology, experts.
SMALL = [
    (eq.Topology(4, 5), 12),
    (eq.Topology(8, 2), 8),
    (eq.Topology(8, 3), 20),
    (eq.Topology(6, 1), 6),
    (eq.Topology(8, 1), 3),
    (eq.Topology(2, 8), 3),
    (eq.Topology(3, 4), 11),
    (eq.Topology(1, 12), 9),
    (eq.Topology(16, 5), 64),
    (eq.Topology(12, 4), 36),
    (eq.Topology(4, 5, 1, 4), 16),
    (eq.Topology(8, 4, 2, 4), 16),
    (eq.Topology(8, 3, 4, 8), 16),
    (eq.Topology(6, 6, 3, 6), 24),
    (eq.Topology(4, 5, 4, 8), 16),
    (eq.Topology(4, 4, 4, 6), 12),
    (eq.Topology(8, 5, 2, 14), 28),
]
LARGE = [
    (eq.Topology(32, 9), 256, 58),
    (eq.Topology(8, 33), 256, 20),
    (eq.Topology(64, 5), 256, 20),
    (eq.Topology(144, 2), 256, 12),
    (eq.Topology(128, 3), 256, 8),
    (eq.Topology(32, 9, 4, 8), 256, 20),
]


def loads_of(kind: str, shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Loads ``[W, L, E]`` of one of the KINDS."""
    if kind == "small integers":
        return rng.integers(0, 4, shape).astype(float)
    if kind == "large integers":
        return rng.integers(0, 1 << 30, shape).astype(float)
    if kind == "few carry all":
        return np.where(rng.random(shape) < 0.1, 1e6, rng.integers(0, 2, shape)).astype(float)
    if kind == "equal":
        return np.full(shape, 7.0)
    if kind == "noise":  # one profile, counted from few tokens
        profile = rng.lognormal(0.0, 1.0, shape[1:])
        return rng.poisson(profile * 20.0, shape).astype(float)
    loads = rng.lognormal(0.0, 1.0, shape[1:]) * rng.lognormal(0.0, 0.3, shape)
    if kind == "zero layers":
        loads[:, rng.random(shape[1]) < 0.5] = 0.0
    return loads


def name_of(topology: eq.Topology) -> str:
    """As in "32 x 9, 8 groups on 4 nodes"."""
    grouped = f", {topology.num_groups} groups on {topology.num_nodes} nodes"
    return f"{topology.num_ranks} x {topology.slots_per_rank}{grouped}"


def current_of(kind: str, loads: np.ndarray, topology: eq.Topology, rng: np.random.Generator) -> eq.Placement:
    """A placement to start from: of the contiguous kind, planned for other loads, or scrambled."""
    _, num_layers, num_experts = loads.shape
    if kind == "contiguous":
        return eq.contiguous_placement(num_layers, num_experts, topology.num_ranks, topology.num_slots)
    other = rng.permuted(loads, axis=2) if kind == "of other loads" else loads
    placement = eq.plan(other, topology, "greedy").placement
    if kind == "scrambled":
        mixed = np.stack([row[rng.permutation(row.size)] for row in placement.phy2log])
        return eq.Placement(mixed, topology.num_ranks, num_experts)
    return placement


def robust_settings(topology: eq.Topology) -> dict[str, eq.Robust]:
    """Settings of `robust` that take other ways through the planner."""
    settings = {"default": eq.Robust(), "global": eq.Robust(groups="global")}
    if topology.hierarchical:
        settings["anchored"] = eq.Robust(groups="anchored")
    return settings


def small_cases() -> Iterator[Case]:
    """Small problems, drawn at random."""
    for number in range(SMALL_PROBLEMS):
        rng = np.random.default_rng(number)
        topology, experts = SMALL[number % len(SMALL)]
        kind = KINDS[int(rng.integers(len(KINDS)))]
        windows = int(rng.choice([1, 1, 2, 3, 5, 20]))
        loads = loads_of(kind, (windows, int(rng.integers(1, 4)), experts), rng)
        about = f"{number}: {kind}, {windows} windows, {name_of(topology)}"
        yield "loads", about, loads
        seed = int(rng.integers(100))
        for policy in ("greedy", "chunked", "ensemble"):
            yield policy, about, eq.plan(loads, topology, policy, seed=seed).placement.phy2log
        few = eq.Ensemble(random=2, noisy=3, max_swaps=4)
        yield "ensemble", f"{about}, few", eq.plan(loads, topology, few, seed=seed).placement.phy2log
        if number % 4 == 0:
            yield "torch", about, torch_plan(loads, topology, seed)
        for name, policy in robust_settings(topology).items():
            yield "robust fresh", f"{about}, {name}", eq.plan(loads, topology, policy).placement.phy2log
        short = eq.Robust(max_steps=5, max_windows=2)
        yield "robust fresh", f"{about}, short", eq.plan(loads, topology, short).placement.phy2log
        if not topology.hierarchical:
            for_shares = eq.plan(loads, topology, eq.Robust(split="shares"), shares=True)
            yield "shares", f"{about}, planned for shares", for_shares.placement.phy2log
            yield "shares", f"{about}, shares", for_shares.shares
        start = ("contiguous", "of other loads", "scrambled")[number // len(SMALL) % 3]
        current = current_of(start, loads, topology, rng)
        budgets = (None, 0, 0.05, int(rng.integers(1, 12)), 1.0)
        for name, policy in robust_settings(topology).items():
            for budget in budgets:
                plan = eq.plan(loads, topology, policy, current=current, max_moves=budget)
                yield "robust warm", f"{about}, {name}, {start}, {budget}", plan.placement.phy2log
        renamed = eq.plan(loads, topology, eq.Robust(start="fresh"), current=current)
        yield "robust renamed", f"{about}, {start}", renamed.placement.phy2log
        if number % 8 == 0:
            line = eq.frontier(loads, topology, current, points=5)
            yield "frontier", about, np.stack([placement.phy2log for placement in line.placements])


def large_cases() -> Iterator[Case]:
    """Layers as large as those that are served."""
    for number, (topology, experts, layers) in enumerate(LARGE):
        for windows in (1, 4, 24):
            rng = np.random.default_rng(1000 + number)
            loads = loads_of("log-normal", (windows, layers, experts), rng)
            about = f"{windows} windows, {layers} x {experts}, {name_of(topology)}"
            for policy in ("greedy", "chunked", "ensemble", "robust"):
                yield "large", f"{about}, {policy}", eq.plan(loads, topology, policy).placement.phy2log
            later = loads_of("log-normal", (windows, layers, experts), rng)
            current = eq.plan(later, topology, "robust").placement
            for budget in (None, 0.05):
                plan = eq.plan(loads, topology, "robust", current=current, max_moves=budget)
                yield "large", f"{about}, robust, budget {budget}", plan.placement.phy2log
    loads = loads_of("log-normal", (1, 3, 128), np.random.default_rng(7))
    for topology in (eq.Topology(16, 9), eq.Topology(16, 9, 4, 8)):
        yield "torch", f"large, {name_of(topology)}", torch_plan(loads, topology, 5)


def torch_plan(loads: np.ndarray, topology: eq.Topology, seed: int) -> np.ndarray:
    """`ensemble` by the stages for tensors, which on the processor only tests and this script use."""
    import torch

    plan = eq.Ensemble().place_tensor(torch.from_numpy(loads), topology, seed=seed)
    return np.asarray(plan.numpy())


def digest(array: np.ndarray) -> str:
    """SHA-256 of shape and content."""
    content = np.ascontiguousarray(array)
    return hashlib.sha256(str(content.shape).encode() + content.tobytes()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--save", type=Path, metavar="FILE")
    parser.add_argument("--compare", type=Path, metavar="FILE")
    parser.add_argument("--update", action="store_true")
    arguments = parser.parse_args()
    started = time.perf_counter()
    plans: dict[str, str] = {}
    parts: dict[str, hashlib._Hash] = {}
    for part, name, array in (*small_cases(), *large_cases()):
        plans[f"{part}: {name}"] = found = digest(array)
        parts.setdefault(part, hashlib.sha256()).update(found.encode())
    hashes = {part: whole.hexdigest()[:16] for part, whole in parts.items()}
    print(f"{len(plans)} plans in {time.perf_counter() - started:.0f} s")
    if arguments.save:
        arguments.save.write_text(json.dumps(plans, indent=0), encoding="utf-8")
    if arguments.compare:
        before = json.loads(arguments.compare.read_text(encoding="utf-8"))
        differing = [name for name in plans if before.get(name) != plans[name]]
        print(f"{len(differing)} plans differ from {arguments.compare}", *differing, sep="\n  ")
    if arguments.update:
        EXPECTED.write_text(json.dumps(hashes, indent=2) + "\n", encoding="utf-8")
    expected = json.loads(EXPECTED.read_text(encoding="utf-8")) if EXPECTED.exists() else {}
    for part, found in hashes.items():
        print(f"{found}  {'as expected' if expected.get(part) == found else 'DIFFERS'}  {part}")
    return 0 if hashes == expected else 1


if __name__ == "__main__":
    sys.exit(main())
