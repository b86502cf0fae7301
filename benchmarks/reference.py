"""DeepSeek's load balancer in plain Python, one loop per sentence of its description.

Slow and obviously right: what the fast planners are compared with. The algorithm is that of DeepSeek's EPLB
(https://github.com/deepseek-ai/EPLB): groups are packed onto nodes, each node replicates the experts it got,
and packs the replicas onto its ranks. Nothing here is shared with the package.
"""

from __future__ import annotations

import numpy as np


def pack(loads: list[float], num_packs: int) -> tuple[list[int], list[int]]:
    """Heaviest item first, each to the lightest pack with room; equally many items in every pack.

    Returns the pack of each item and its position in that pack.
    """
    room = len(loads) // num_packs
    if room == 1:
        return list(range(len(loads))), [0] * len(loads)
    totals = [0.0] * num_packs
    sizes = [0] * num_packs
    pack_of = [-1] * len(loads)
    position = [-1] * len(loads)
    for item in sorted(range(len(loads)), key=lambda i: -loads[i]):
        lightest = None
        for candidate in range(num_packs):
            if sizes[candidate] < room and (lightest is None or totals[candidate] < totals[lightest]):
                lightest = candidate
        assert lightest is not None
        pack_of[item], position[item] = lightest, sizes[lightest]
        totals[lightest] += loads[item]
        sizes[lightest] += 1
    return pack_of, position


def replicate(loads: list[float], num_slots: int) -> tuple[list[int], list[int]]:
    """One replica after the other to the expert with the largest load per replica.

    Returns the expert of each replica and the replica count of each expert.
    """
    expert_of = list(range(len(loads)))
    counts = [1] * len(loads)
    while len(expert_of) < num_slots:
        hottest = 0
        for expert in range(len(loads)):
            if loads[expert] / counts[expert] > loads[hottest] / counts[hottest]:
                hottest = expert
        expert_of.append(hottest)
        counts[hottest] += 1
    return expert_of, counts


def place_layer(
    loads: list[float], num_slots: int, num_groups: int, num_nodes: int, num_ranks: int
) -> list[int]:
    """The expert of every slot of one layer."""
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    group_size = len(loads) // num_groups
    group_loads = [sum(loads[g * group_size : (g + 1) * group_size]) for g in range(num_groups)]
    node_of, position = pack(group_loads, num_nodes)
    slots: list[int] = []
    for node in range(num_nodes):
        groups = sorted((g for g in range(num_groups) if node_of[g] == node), key=lambda g: position[g])
        experts = [g * group_size + i for g in groups for i in range(group_size)]
        expert_of, counts = replicate([loads[e] for e in experts], num_slots // num_nodes)
        replica_loads = [loads[experts[e]] / counts[e] for e in expert_of]
        ranks = num_ranks // num_nodes
        rank_of, slot_of = pack(replica_loads, ranks)
        on_node = [-1] * len(expert_of)
        for replica, expert in enumerate(expert_of):
            on_node[rank_of[replica] * (len(expert_of) // ranks) + slot_of[replica]] = experts[expert]
        slots += on_node
    return slots


def greedy(
    weight: np.ndarray, num_slots: int, num_groups: int, num_nodes: int, num_ranks: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``phy2log [L, R]``, ``log2phy [L, E, X]`` (padded with -1) and ``logcnt [L, E]``."""
    rows = [[float(x) for x in row] for row in np.asarray(weight)]
    phy2log = [place_layer(row, num_slots, num_groups, num_nodes, num_ranks) for row in rows]
    logcnt = [[slots.count(e) for e in range(len(rows[0]))] for slots in phy2log]
    width = max(max(counts) for counts in logcnt)
    log2phy = [
        [
            ([p for p, held in enumerate(slots) if held == e] + [-1] * width)[:width]
            for e in range(len(rows[0]))
        ]
        for slots in phy2log
    ]
    return np.array(phy2log), np.array(log2phy), np.array(logcnt)


def largest_rank_load(loads: np.ndarray, phy2log: np.ndarray, num_ranks: int) -> list[float]:
    """The load of the most loaded rank of each layer, under an even split."""
    result = []
    for row, slots in zip(np.asarray(loads).tolist(), np.asarray(phy2log).tolist(), strict=True):
        totals = [0.0] * num_ranks
        for slot, expert in enumerate(slots):
            totals[slot // (len(slots) // num_ranks)] += row[expert] / slots.count(expert)
        result.append(max(totals))
    return result
