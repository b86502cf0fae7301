"""Random problems against what every plan promises: a run of minutes, twenty thousand problems by default.

    python benchmarks/fuzz_plans.py [--problems 20000] [--seed 0]

Each problem is of any kind of loads, topology, policy, current placement and budget. Checked are: the placement is
legal; groups are where the policy keeps them; no twin shares a rank that another rank could take (`robust`); the
bound is not above the result; fetches stay within the budget; the report equals a recomputation in extended
precision; the same problem gives the same plan again. Prints the findings, and exits 1 if there are any.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import equipoise as eq
from equipoise.planning.groups import groups_are_on_nodes

KINDS = ("log-normal", "small integers", "few hot", "noise", "zeros", "equal", "tiny", "huge")
POLICIES = ("greedy", "chunked", "ensemble", "robust", "robust", "robust")


@dataclass(frozen=True)
class Case:
    """A random problem."""

    loads: np.ndarray  # [W, L, E]
    topology: eq.Topology
    policy: Any
    current: eq.Placement | None
    max_moves: int | float | None


def loads_of(kind: str, shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Loads ``[W, L, E]`` of a kind."""
    base = rng.lognormal(0.0, 1.0, shape[1:]) * rng.lognormal(0.0, 0.3, shape)
    if kind == "small integers":
        return rng.integers(0, 4, shape).astype(float)
    if kind == "few hot":
        return np.where(rng.random(shape[1:]) < 1.5 / shape[2], 1000.0, base)
    if kind == "noise":
        return rng.poisson(base * 10).astype(float)
    if kind == "zeros":
        return np.where(rng.random(shape) < 0.7, 0.0, base)
    if kind == "equal":
        return np.full(shape, 3.0)
    return base * {"tiny": 1e-310, "huge": 1e290}.get(kind, 1.0)


def case_of(number: int) -> Case:
    """The problem of that number: always the same one."""
    rng = np.random.default_rng(number)
    nodes = int(rng.choice([1, 1, 2, 3]))
    ranks, slots = nodes * int(rng.integers(1, 9)), int(rng.integers(1, 8))
    groups = nodes * int(rng.integers(1, 4)) if nodes > 1 else 1
    groups = groups if groups <= ranks * slots else 1
    experts = groups * int(rng.integers(1, ranks * slots // groups + 1))
    topology = eq.Topology(ranks, slots, nodes, groups)
    shape = (int(rng.choice([1, 1, 2, 7])), int(rng.integers(1, 4)), experts)
    loads = loads_of(str(rng.choice(KINDS)), shape, rng)
    policy: Any = str(rng.choice(POLICIES))
    if policy != "robust":
        return Case(loads, topology, policy, None, None)
    if topology.hierarchical:
        policy = eq.Robust(groups=str(rng.choice(["auto", "global", "anchored"])))  # type: ignore[arg-type]
    current, budget = None, None
    if rng.random() < 0.6:
        spare = rng.integers(0, experts, (shape[1], topology.num_slots - experts))
        rows = np.concatenate([np.tile(np.arange(experts), (shape[1], 1)), spare], axis=1)
        current = eq.Placement(rng.permuted(rows, axis=1), ranks, experts)
        budget = [None, 0, int(rng.integers(1, 9)), float(rng.random())][int(rng.integers(4))]
    return Case(loads, topology, policy, current, budget)


def findings(case: Case) -> Iterator[str]:
    """What is wrong with the plan of a case, in words."""
    options: dict[str, Any] = {"current": case.current, "max_moves": case.max_moves}
    plan = eq.plan(case.loads, case.topology, case.policy, **options)
    report, phy2log = plan.report, plan.placement.phy2log
    if not (report.bound <= report.imbalance_after).all():
        yield f"bound {report.bound} above the result {report.imbalance_after}"
    if case.max_moves is not None:
        slots = phy2log.size
        share = isinstance(case.max_moves, float)
        allowed = int(case.max_moves * slots + 1e-9) if share else case.max_moves
        if report.moves.sum() > allowed:
            yield f"{report.moves.sum()} fetches of a budget of {allowed}"
    on_nodes = (
        groups_are_on_nodes(phy2log, case.loads.shape[2], case.topology)
        if case.topology.hierarchical
        else True
    )
    if case.topology.hierarchical and report.keeps_groups and case.max_moves is None and not np.all(on_nodes):
        yield "a group is on two nodes"
    exact = exact_imbalance(case.loads, plan.placement)
    if not np.allclose(report.imbalance_after, exact, rtol=1e-12, atol=0):
        yield f"report says {report.imbalance_after}, extended precision {exact}"
    if case.max_moves is None and plan.report.policy == "robust":
        yield from twins(phy2log, case.topology, getattr(case.policy, "groups", "auto"))
    again = eq.plan(case.loads, case.topology, case.policy, **options).placement.phy2log
    if not np.array_equal(again, phy2log):
        yield "the same problem gives another plan"


def exact_imbalance(loads: np.ndarray, placement: eq.Placement) -> np.ndarray:
    """``[L]``, in extended precision, slot by slot."""
    total = loads.astype(np.longdouble).sum(axis=0)
    layers = np.arange(placement.num_layers)[:, None]
    slot = total[layers, placement.phy2log] / placement.logcnt[layers, placement.phy2log].astype(
        np.longdouble
    )
    rank = slot.reshape(placement.num_layers, placement.num_ranks, -1).sum(axis=2)
    mean = rank.mean(axis=1)
    return np.where(mean > 0, rank.max(axis=1) / np.where(mean > 0, mean, 1), 1).astype(float)


def twins(phy2log: np.ndarray, topology: eq.Topology, groups: str) -> Iterator[str]:
    """Experts twice on a rank while a rank that may hold them has none."""
    by_node = topology.hierarchical and groups in ("auto", "nodes")
    nodes = topology.num_nodes if by_node else 1
    for layer, row in enumerate(phy2log):
        for node in row.reshape(nodes, topology.num_ranks // nodes, -1):
            counts = np.stack([np.bincount(rank, minlength=row.max() + 1) for rank in node])
            avoidable = np.flatnonzero((counts.max(axis=0) > 1) & (counts.min(axis=0) == 0))
            if avoidable.size:
                yield f"layer {layer}: avoidable twins of experts {avoidable.tolist()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--problems", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first problem")
    arguments = parser.parse_args()
    started, found = time.perf_counter(), 0
    for number in range(arguments.seed, arguments.seed + arguments.problems):
        case = case_of(number)
        for finding in findings(case):
            found += 1
            if found <= 40:
                print(f"{number}: {case.policy}, {case.topology}, {case.loads.shape}: {finding}")
    print(f"{arguments.problems} problems, {found} findings, {time.perf_counter() - started:.0f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
