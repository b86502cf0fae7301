"""DeepSeek's load balancer in plain torch, all layers of a model at once: what a GPU's ensemble is timed beside.

The algorithm is that of DeepSeek's EPLB (https://github.com/deepseek-ai/EPLB) without groups; `reference.py` has it
one loop per sentence. Nothing here is shared with the package.
"""

from __future__ import annotations

import torch
from torch import Tensor


def replicate(loads: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """The expert of each replica ``[L, R]``, and replica counts ``[L, E]``."""
    num_layers, num_experts = loads.shape
    owner = torch.arange(num_slots, device=loads.device).repeat(num_layers, 1)
    counts = torch.ones_like(loads)
    for replica in range(num_experts, num_slots):
        hottest = (loads / counts).argmax(dim=1, keepdim=True)
        owner[:, replica : replica + 1] = hottest
        counts.scatter_add_(1, hottest, torch.ones_like(hottest, dtype=counts.dtype))
    return owner, counts


def greedy(loads: Tensor, num_slots: int, num_ranks: int) -> Tensor:
    """``phy2log [L, R]`` for loads ``[L, E]`` in float64."""
    owner, counts = replicate(loads, num_slots)
    if num_slots == num_ranks:
        return owner
    weight, order = (loads / counts).gather(1, owner).sort(dim=1, descending=True, stable=True)
    totals = loads.new_zeros((len(loads), num_ranks))
    sizes = torch.zeros_like(totals, dtype=torch.int64)
    slots = torch.empty_like(order)
    room = num_slots // num_ranks
    for item in range(num_slots):
        lightest = totals.masked_fill(sizes == room, torch.inf).argmin(dim=1, keepdim=True)
        slots[:, item : item + 1] = lightest * room + sizes.gather(1, lightest)
        totals.scatter_add_(1, lightest, weight[:, item : item + 1])
        sizes.scatter_add_(1, lightest, torch.ones_like(lightest))
    return torch.empty_like(owner).scatter_(1, slots, owner.gather(1, order))
