"""Planning problems for tests: loads of many shapes, topologies of all kinds, and what a legal plan is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from equipoise import Topology

KINDS = ("log-normal", "small integers", "large integers", "zero layers", "few carry all", "equal", "tiny")


@dataclass(frozen=True)
class Problem:
    loads: np.ndarray  # [W, L, E] float64
    topology: Topology
    seed: int = 0


def loads_of(kind: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Loads of one of the KINDS."""
    rng = np.random.default_rng(seed)
    if kind == "small integers":  # many equal loads and zeros
        return rng.integers(0, 4, shape).astype(np.float64)
    if kind == "large integers":  # beyond what float32 holds exactly
        return rng.integers(0, 1 << 30, shape).astype(np.float64)
    if kind == "few carry all":
        return np.where(rng.random(shape) < 0.1, 1e9, rng.integers(0, 2, shape))
    if kind == "equal":
        return np.full(shape, 7.0)
    loads = rng.lognormal(0.0, 1.0, shape)
    if kind == "zero layers":
        loads[..., rng.random(shape[-2]) < 0.6, :] = 0.0
    return loads * 1e-12 if kind == "tiny" else loads


@st.composite
def problems(draw: st.DrawFn, *, hierarchical: bool | None = None, max_windows: int = 2) -> Problem:
    """Small problems of every kind; hierarchical ones only, flat ones only, or both."""
    nodes = draw(st.sampled_from([2, 3, 4])) if hierarchical else draw(st.sampled_from([1, 1, 2, 3]))
    ranks = nodes * draw(st.integers(1, 3))
    slots = draw(st.integers(1, 6))
    groups = nodes * draw(st.integers(1, 3)) if hierarchical else draw(st.sampled_from([1, 2, 4, 6]))
    if hierarchical is False:
        groups = 1
    total = ranks * slots
    if groups > total:
        groups = nodes if hierarchical else 1
    experts = groups * draw(st.integers(1, total // groups))
    if hierarchical is False and nodes > 1:
        nodes = 1
    shape = (draw(st.integers(1, max_windows)), draw(st.integers(1, 3)), experts)
    loads = loads_of(draw(st.sampled_from(KINDS)), shape, draw(st.integers(0, 1 << 20)))
    return Problem(loads, Topology(ranks, slots, nodes, groups), draw(st.integers(0, 100)))


# The corners that random problems might miss.
CORNERS = {
    "one slot a rank": (Topology(6, 1), 6),
    "one slot a rank and replicas": (Topology(8, 1), 3),
    "one rank": (Topology(1, 12), 9),
    "one expert": (Topology(4, 3), 1),
    "no redundancy": (Topology(4, 4), 16),
    "more replicas than ranks": (Topology(2, 8), 3),
    "one rank a node": (Topology(4, 5, 4, 8), 16),
    "groups on nodes, no redundancy": (Topology(8, 2, 2, 4), 16),
    "groups that nodes do not divide": (Topology(4, 4, 4, 6), 12),
    "everything one": (Topology(1, 1), 1),
}


def prefill(traces: Path) -> np.ndarray:
    """The MoE layers of the DeepSeek prefill statistics: ``[58, 256]`` tokens."""
    path = traces / "deepseek-r1-sglang" / "prefill_in1024.json"
    counts = np.array(json.loads(path.read_text())["logical_count"], dtype=np.float64)
    while counts.ndim > 2:
        counts = counts.sum(axis=0)
    return counts[counts.sum(axis=1) > 0]


def check_legal(phy2log: np.ndarray, problem: Problem) -> None:
    """A legal placement: shape, every expert somewhere, and groups whole on nodes in the hierarchical form."""
    topology = problem.topology
    _, num_layers, num_experts = problem.loads.shape
    assert phy2log.dtype == np.int64
    assert phy2log.shape == (num_layers, topology.num_slots)
    for row in phy2log:
        assert set(row.tolist()) == set(range(num_experts))
        if topology.hierarchical:
            nodes = row.reshape(topology.num_nodes, -1) // (num_experts // topology.num_groups)
            groups = [set(node.tolist()) for node in nodes]
            assert sum(len(group) for group in groups) == topology.num_groups, "a group is on two nodes"


def avoidable_twins(phy2log: np.ndarray, topology: Topology) -> list[tuple[int, int]]:
    """(layer, expert) with two replicas on one rank although a rank of the same node (or any) has none."""
    nodes = topology.num_nodes if topology.hierarchical else 1
    found = []
    for layer, row in enumerate(phy2log):
        for node in row.reshape(nodes, topology.num_ranks // nodes, -1).tolist():
            for expert in {expert for rank in node for expert in rank}:
                counts = [rank.count(expert) for rank in node]
                if max(counts) > 1 and min(counts) == 0:
                    found.append((layer, expert))
    return found
