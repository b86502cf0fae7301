"""Splitting and assigning for torch tensors, on whatever device they live on.

Shapes hang on nothing but shapes and nothing is read back, so all of it can be captured in a graph. Values are not
looked at: counts that are negative or no numbers, and experts that there are not, give results without meaning.

Shapes: ``L`` layers, ``E`` experts of at most ``X`` replicas, ``R`` slots on ``P`` ranks, ``N`` routed entries.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .maps import DeviceMaps


class _Replicas(NamedTuple):
    """The experts that may have several replicas, ``M`` of a layer, those with one behind the others."""

    tokens: Tensor
    """``[L, M]``, tokens of each expert"""
    ranks: Tensor
    """``[L, M, X]``, ranks of its slots; 0 behind the last"""
    first: Tensor
    """``[L, M, X]``, whether a slot is its expert's first on the rank: of twins only that one is filled"""
    taken: Tensor
    """``[L, M, X]``, tokens of each slot, changed in place"""


def split_batch(counts: Tensor, maps: DeviceMaps, sweeps: int) -> Tensor:
    """Token shares ``[L, R]`` in float64 of counts ``[L, E]``; see `equipoise.split_batch`."""
    counts = counts.to(torch.float64)
    valid, slots = _slots(maps)
    even = (counts / maps.logcnt.clamp(min=1))[:, :, None] * valid
    taken = even.new_zeros((len(counts), maps.num_slots)).scatter_add_(1, slots.flatten(1), even.flatten(1))
    rank_loads = taken.view(len(counts), maps.num_ranks, -1).sum(dim=2)
    experts = _several(maps)
    replicas = _replicas(experts, counts, even, valid, slots // (maps.num_slots // maps.num_ranks))
    for sweep in range(sweeps):
        numbers = range(experts.shape[1])
        # Forth and back: a chain of ranks settles in fewer sweeps than in one direction alone.
        for m in numbers if sweep % 2 == 0 else reversed(numbers):
            rank_loads = _fill_expert(m, replicas, rank_loads)
    even.scatter_(1, experts[:, :, None].expand_as(replicas.taken), replicas.taken)
    return _to_shares(even, valid, slots, maps)


def _slots(maps: DeviceMaps) -> tuple[Tensor, Tensor]:
    """Which places ``[L, E, X]`` have a slot, and the slots, 0 where there is none."""
    valid = torch.arange(maps.log2phy.shape[2], device=maps.log2phy.device) < maps.logcnt[:, :, None]
    return valid, torch.where(valid, maps.log2phy, torch.zeros_like(maps.log2phy)).to(torch.int64)


def _several(maps: DeviceMaps) -> Tensor:
    """The experts that may have several replicas ``[L, M]``, in ascending order, then some with one."""
    ordered: Tensor = (maps.logcnt < 2).to(torch.int8).argsort(dim=1, stable=True)
    return ordered[:, : maps.most_several]


def _replicas(experts: Tensor, counts: Tensor, even: Tensor, valid: Tensor, ranks: Tensor) -> _Replicas:
    index = experts[:, :, None].expand(-1, -1, valid.shape[2])
    ranks, valid = ranks.gather(1, index), valid.gather(1, index)
    first = valid.clone()
    first[:, :, 1:] &= ranks[:, :, 1:] != ranks[:, :, :-1]
    return _Replicas(counts.gather(1, experts), ranks, first, even.gather(1, index))


def _fill_expert(m: int, replicas: _Replicas, rank_loads: Tensor) -> Tensor:
    """Split expert ``m`` of each layer so that the fullest of the ranks that it uses are level.

    The level is the smallest of the means that the lightest rank, the two lightest and so on would have.
    """
    ranks, taken, first = replicas.ranks[:, m], replicas.taken[:, m], replicas.first[:, m]
    others = rank_loads.scatter_add(1, ranks, -taken)
    here = others.gather(1, ranks).masked_fill(~first, torch.inf)
    used = torch.arange(1, here.shape[1] + 1, device=here.device)
    level = ((replicas.tokens[:, m, None] + here.sort(dim=1).values.cumsum(dim=1)) / used).amin(dim=1)
    # An expert that is lost has no level.
    taken.copy_(torch.where(first, (level[:, None] - here).clamp(min=0), torch.zeros_like(taken)))
    return others.scatter_add_(1, ranks, taken)


def _to_shares(taken: Tensor, valid: Tensor, slots: Tensor, maps: DeviceMaps) -> Tensor:
    """Tokens of slots ``[L, E, X]`` to parts of their sum, ``[L, R]``; evenly where there are none."""
    total = taken.sum(dim=2, keepdim=True)
    even = 1.0 / maps.logcnt.clamp(min=1)[:, :, None].to(torch.float64)
    part = torch.where(total > 0, taken / total, even) * valid
    shares = taken.new_zeros((len(taken), maps.num_slots))
    return shares.scatter_add_(1, slots.flatten(1), part.flatten(1))


def assign(topk: Tensor, shares: Tensor | None, maps: DeviceMaps) -> Tensor:
    """Slots ``[L, N]`` of experts ``[L, N]``, by shares ``[L, R]`` or evenly; see `equipoise.assign`."""
    num_experts = maps.logcnt.shape[1]
    experts = torch.where(topk < 0, num_experts, topk).to(torch.int64)
    tokens = torch.zeros((len(topk), num_experts + 1), dtype=torch.int64, device=topk.device)
    tokens.scatter_add_(1, experts, torch.ones_like(experts))
    seen = _seen(experts, tokens)
    owner = topk.clamp(min=0).to(torch.int64)
    replica = torch.zeros_like(owner)
    for end in _ends(tokens[:, :-1], shares, maps)[:-1]:  # nothing stands behind the last
        replica += seen >= end.gather(1, owner)
    slots: Tensor = maps.log2phy.flatten(1).gather(1, owner * maps.log2phy.shape[2] + replica)
    return slots.to(torch.int64).masked_fill(topk < 0, -1)


def _seen(experts: Tensor, tokens: Tensor) -> Tensor:
    """How many entries of the same expert stand before each ``[L, N]``; ``tokens [L, E + 1]`` have each."""
    ordered, order = experts.sort(dim=1, stable=True)
    number = torch.arange(experts.shape[1], device=experts.device)
    before = number - (tokens.cumsum(dim=1) - tokens).gather(1, ordered)
    return torch.empty_like(order).scatter_(1, order, before)


def _ends(tokens: Tensor, shares: Tensor | None, maps: DeviceMaps) -> list[Tensor]:
    """Where the tokens of each replica of an expert end, among ``tokens [L, E]``: ``X`` times ``[L, E]``."""
    valid, slots = _slots(maps)
    if shares is None:
        part = (1.0 / maps.logcnt.clamp(min=1).to(torch.float64))[:, :, None] * valid
    else:
        part = shares.to(torch.float64).gather(1, slots.flatten(1)).view(slots.shape) * valid
    running = [part[:, :, 0]]
    # One after the other: a scan adds in an order of its own, and half a token decides.
    for k in range(1, part.shape[2]):
        running.append(running[-1] + part[:, :, k])
    total, count = running[-1], maps.logcnt.clamp(min=1).to(torch.float64)
    ends = []
    for k, upto in enumerate(running):
        quotient = torch.where(total > 0, upto / total, (k + 1.0) / count)
        end = (quotient * tokens + 0.5).floor().to(torch.int64)
        ends.append(torch.where(valid[:, :, k], end, tokens + 1))
    return ends


def even(chosen: Tensor, log2phy: Tensor, logcnt: Tensor) -> Tensor:
    """Slots of chosen experts, replicas taking turns by the number of the entry; see `equipoise.assign_by_turns`.

    Parameters
    ----------
    chosen : ``[T, k]`` of one layer, or ``[L, T, k]``; -1 for none
    log2phy, logcnt : ``[E, X]`` and ``[E]``, or ``[L, E, X]`` and ``[L, E]``; see `DeviceMaps`

    Returns
    -------
    int64 in the shape of ``chosen``: slots, -1 for none and where an expert has no slot
    """
    owner = chosen.clamp(min=0).to(torch.int64).flatten(-2)
    number = torch.arange(owner.shape[-1], device=chosen.device)
    turn = number % logcnt.gather(-1, owner).clamp(min=1)
    slots = log2phy.flatten(-2).gather(-1, owner * log2phy.shape[-1] + turn)
    return slots.to(torch.int64).view(chosen.shape).masked_fill(chosen < 0, -1)
