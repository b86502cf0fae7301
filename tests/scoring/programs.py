"""Programs to score: honest ones and cheats, as text."""

from __future__ import annotations

HONEST = """
import numpy as np

def rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus):
    weight = np.asarray(weight)
    layers, experts = weight.shape
    phy2log = np.empty((layers, num_replicas), dtype=np.int64)
    logcnt = np.ones((layers, experts), dtype=np.int64)
    for layer in range(layers):
        for _ in range(num_replicas - experts):
            logcnt[layer, np.argmax(weight[layer] / logcnt[layer])] += 1
        replicas = np.repeat(np.arange(experts), logcnt[layer])
        load = (weight[layer] / logcnt[layer])[replicas]
        totals, room = np.zeros(num_gpus), np.full(num_gpus, num_replicas // num_gpus)
        for item in np.argsort(-load, kind="stable"):
            rank = int(np.argmin(np.where(room > 0, totals, np.inf)))
            room[rank] -= 1
            phy2log[layer, rank * (num_replicas // num_gpus) + room[rank]] = replicas[item]
            totals[rank] += load[item]
    log2phy = np.full((layers, experts, logcnt.max()), -1, dtype=np.int64)
    for layer in range(layers):
        for expert in range(experts):
            slots = np.flatnonzero(phy2log[layer] == expert)
            log2phy[layer, expert, : len(slots)] = slots
    return phy2log, log2phy, logcnt
"""


def cheat(before: str = "", inside: str = "", after: str = "") -> str:
    """The honest program with lines at the top, before its answer is computed, and before it is returned."""

    def indent(lines: str) -> str:
        return "".join(f"    {line}\n" for line in lines.strip("\n").split("\n"))

    return (
        HONEST.replace("def rebalance_experts", "def honest")
        + f"\n{before}\n\n"
        + "def rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus):\n"
        + indent(inside or "pass")
        + "    phy2log, log2phy, logcnt = honest(weight, num_replicas, num_groups, num_nodes, num_gpus)\n"
        + indent(after or "pass")
        + "    return phy2log, log2phy, logcnt\n"
    )


TORCH = """
import torch

# EVOLVE-BLOCK-START
def rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus):
    assert isinstance(weight, torch.Tensor) and weight.dtype == torch.int64
    layers, experts = weight.shape
    phy2log = (torch.arange(num_replicas) % experts).repeat(layers, 1)
    logcnt = torch.ones(layers, experts, dtype=torch.int64)
    logcnt[:, : num_replicas - experts] += 1
    log2phy = torch.stack([torch.arange(experts), torch.arange(experts) + experts], dim=1)
    log2phy[num_replicas - experts :, 1] = -1
    return phy2log, log2phy.repeat(layers, 1, 1), logcnt
# EVOLVE-BLOCK-END
"""
