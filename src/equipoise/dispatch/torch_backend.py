"""Splitting and assigning for torch tensors, on whatever device they live on.

Shapes hang on nothing but shapes and nothing is read back, so all of it can be captured in a graph. Values are not
looked at: counts that are negative or no numbers, and experts that there are not, give results without meaning.

Shapes: ``L`` layers, ``E`` experts of at most ``X`` replicas, ``R`` slots on ``P`` ranks, ``N`` routed entries,
``M`` experts that several ranks may share.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..planning.activated import ONE
from ..planning.sweeps import HANDING, NOTHING, ROUNDING
from .maps import DeviceMaps
from .slots import KNUTH


class _Forest(NamedTuple):
    """The experts that several ranks share, in the order of sweeps; see `equipoise.planning.sweeps`."""

    loads: Tensor
    """``[L, M]``, tokens of each expert, 0 behind the last"""
    held: Tensor
    """``[L, M, P]``, whether a rank holds it"""
    parent: Tensor
    """``[L, M, P]``, whether it hangs from the rank"""
    taken: Tensor
    """``[L, M, P]``, its tokens on each rank: changed in place"""


def split_batch(counts: Tensor, maps: DeviceMaps, sweeps: int) -> Tensor:
    """Token shares ``[L, R]`` in float64 of counts ``[L, E]``; see `equipoise.split_batch`."""
    counts = counts.to(torch.float64)
    valid, slots = _slots(maps)
    even = 1.0 / maps.logcnt.clamp(min=1).to(torch.float64)[:, :, None] * valid
    if sweeps < 1 or not maps.experts.numel():
        return _of_slots(even, slots, maps)
    tokens = counts[:, :, None] / maps.logcnt.clamp(min=1)[:, :, None] * valid
    rank_loads = _of_slots(tokens, slots, maps).view(len(counts), maps.num_ranks, -1).sum(dim=2)
    some = maps.experts >= 0
    experts = maps.experts.clamp(min=0).to(torch.int64)[:, :, None].expand(-1, -1, valid.shape[2])
    valid = valid.gather(1, experts) & some[:, :, None]
    ranks = slots.gather(1, experts) // (maps.num_slots // maps.num_ranks)
    forest = _forest(counts.gather(1, experts[:, :, 0]) * some, tokens.gather(1, experts), valid, ranks, maps)
    for sweep in range(sweeps):
        if sweep < HANDING:
            forest, rank_loads = _hand_and_fill(forest, rank_loads, inwards=sweep > 0)
        else:
            rank_loads = _fill(forest, _fill(forest, rank_loads, inwards=True), inwards=False)
    part = _parts(forest, even.gather(1, experts), valid, ranks)
    # Behind the last expert stands a row that is thrown away.
    index = torch.where(some[:, :, None], experts, counts.shape[1])
    shares = torch.cat([even, even[:, :1]], dim=1).scatter_(1, index, part)[:, :-1]
    return _of_slots(shares, slots, maps)


class _Choices(NamedTuple):
    """The experts that several ranks share, as they choose one of them; see `equipoise.planning.activated`."""

    held: Tensor
    """``[L, M, P]``, whether a rank holds it, none for one that is not hit"""
    part: Tensor
    """``[L, M, P]``, what it counts on each of its ranks while it has not chosen, in `ONE`"""
    chosen: Tensor
    """``[L, M, P]``, `ONE` on the rank that it has chosen: changed in place"""


def split_activated(counts: Tensor, maps: DeviceMaps, sweeps: int) -> Tensor:
    """Token shares ``[L, R]`` in float64 of counts ``[L, E]``; see `equipoise.split_activated`."""
    hit = counts > 0
    valid, slots = _slots(maps)
    ranks = slots // (maps.num_slots // maps.num_ranks)
    nowhere = torch.zeros((*hit.shape, maps.num_ranks), dtype=torch.int64, device=hit.device)
    held = nowhere.scatter_add(2, ranks, valid.to(torch.int64)) > 0
    alone = held.sum(dim=2) == 1
    loads = (held & (hit & alone)[:, :, None]).sum(dim=1) * ONE
    some = maps.experts >= 0
    experts = maps.experts.clamp(min=0).to(torch.int64)
    wanted = some & hit.gather(1, experts)
    held = held.gather(1, experts[:, :, None].expand(-1, -1, maps.num_ranks)) & wanted[:, :, None]
    part = held * (ONE // held.sum(dim=2, keepdim=True).clamp(min=1))
    choices = _Choices(held, part, torch.zeros_like(part))
    for _ in range(sweeps + 1):
        loads = _choose(choices, loads)
        choices = choices._replace(part=torch.zeros_like(part))
    # Behind the last expert stands a row that is thrown away.
    index = torch.where(some, experts, hit.shape[1])
    number = torch.arange(maps.num_ranks, device=hit.device)
    chosen = ((choices.chosen > 0) * number).sum(dim=2)
    rank = torch.cat([ranks[:, :, 0], ranks[:, :1, 0]], dim=1).scatter_(1, index, chosen)[:, :-1]
    serves = valid & (ranks == rank[:, :, None])
    serves &= serves.cumsum(dim=2) == 1  # of twins the first
    even = 1.0 / maps.logcnt.clamp(min=1).to(torch.float64)[:, :, None] * valid
    return _of_slots(torch.where(hit[:, :, None], serves.to(torch.float64), even), slots, maps)


def _choose(choices: _Choices, loads: Tensor) -> Tensor:
    """Let experts choose, from the last to the first; of equal ranks they take the first.

    ``loads [L, P]``: activated experts of ranks, in `ONE`. Returns those after that.
    """
    num_ranks = loads.shape[1]
    number = torch.arange(num_ranks, device=loads.device)
    waiting = choices.part.sum(dim=1)
    for m in reversed(range(choices.held.shape[1])):
        held = choices.held[:, m]
        loads = loads - choices.chosen[:, m]
        waiting = waiting - choices.part[:, m]
        keys = ((loads + waiting) * num_ranks + number).masked_fill(~held, torch.iinfo(torch.int64).max)
        choices.chosen[:, m] = (held & (keys == keys.amin(dim=1, keepdim=True))) * ONE
        loads = loads + choices.chosen[:, m]
    return loads


def _parts(forest: _Forest, even: Tensor, valid: Tensor, ranks: Tensor) -> Tensor:
    """Tokens as parts of their sum ``[L, M, X]``, ``even`` where there are none; ``valid``, ``ranks``: of slots."""
    total = forest.taken.sum(dim=2, keepdim=True)
    part = torch.where(total > 0, forest.taken / total, torch.zeros_like(total)).gather(2, ranks)
    part[:, :, 1:] *= ranks[:, :, 1:] != ranks[:, :, :-1]  # of twins the first takes all
    return torch.where((total > 0) & (forest.loads > 0)[:, :, None], part * valid, even)


def _slots(maps: DeviceMaps) -> tuple[Tensor, Tensor]:
    """Which places ``[L, E, X]`` have a slot, and the slots, 0 where there is none."""
    valid = torch.arange(maps.log2phy.shape[2], device=maps.log2phy.device) < maps.logcnt[:, :, None]
    return valid, torch.where(valid, maps.log2phy, torch.zeros_like(maps.log2phy)).to(torch.int64)


def _of_slots(values: Tensor, slots: Tensor, maps: DeviceMaps) -> Tensor:
    """Values of replicas ``[L, E, X]``, 0 where there is none, as those of slots ``[L, R]``."""
    found = values.new_zeros((len(values), maps.num_slots))
    return found.scatter_add_(1, slots.flatten(1), values.flatten(1))


def _forest(loads: Tensor, tokens: Tensor, valid: Tensor, ranks: Tensor, maps: DeviceMaps) -> _Forest:
    """With the tokens of an even split: ``tokens``, ``valid`` and ``ranks [L, M, X]`` of the experts' slots."""
    nowhere = loads.new_zeros((*loads.shape, maps.num_ranks))
    held = nowhere.scatter_add(2, ranks, valid.to(loads.dtype)) > 0
    number = torch.arange(maps.num_ranks, device=loads.device)
    parent = held & (maps.parents[:, :, None] == number)
    return _Forest(loads, held, parent, nowhere.scatter_add(2, ranks, tokens * valid))


def _hand_and_fill(forest: _Forest, rank_loads: Tensor, *, inwards: bool) -> tuple[_Forest, Tensor]:
    """Hand on, then fill; in layers where that leaves a rank busier than before, fill and nothing else."""
    filled = forest._replace(taken=forest.taken.clone())
    others = _fill(filled, _fill(filled, rank_loads, inwards=True), inwards=False)
    found = _hand_inwards(forest, rank_loads)
    if inwards:
        found = _fill(forest, found, inwards=True)
    found = _fill(forest, found, inwards=False)
    worse = found.amax(dim=1) > rank_loads.amax(dim=1) * (1.0 + ROUNDING)
    taken = torch.where(worse[:, None, None], filled.taken, forest.taken)
    return forest._replace(taken=taken), torch.where(worse[:, None], others, found)


def _levels(forest: _Forest, rank_loads: Tensor) -> Tensor:
    """The mean rank load of each rank's part of the forest ``[L, P]``; a part ends where tokens cannot pass."""
    number = torch.arange(rank_loads.shape[1], device=rank_loads.device)
    part = torch.full_like(rank_loads, -1, dtype=torch.int64)
    nothing = NOTHING * rank_loads.amax(dim=1, keepdim=True)
    for m in range(forest.loads.shape[1]):
        parent, taken = forest.parent[:, m], forest.taken[:, m]
        above, given = ((values * parent).sum(dim=1, keepdim=True) for values in (rank_loads, taken))
        own = torch.where(parent, torch.where(part < 0, number, part), -1).amax(dim=1, keepdim=True)
        high = (taken <= nothing) & (rank_loads > above + nothing)
        low = (given <= nothing) & (rank_loads < above - nothing)
        found = torch.where(high | low, number, own)
        part = torch.where(forest.held[:, m] & (part < 0), found, part)
    same = part[:, :, None] == part[:, None, :]
    return (same * rank_loads[:, None, :]).sum(dim=2) / same.sum(dim=2)


def _hand_inwards(forest: _Forest, rank_loads: Tensor) -> Tensor:
    """Fill ranks up to the mean of their part, from the leaves to the roots; parents take the rest."""
    levels = _levels(forest, rank_loads)
    for m in reversed(range(forest.loads.shape[1])):
        others = rank_loads - forest.taken[:, m]
        room = (levels - others).clamp(min=0) * (forest.held[:, m] & ~forest.parent[:, m])
        left = (forest.loads[:, m, None] - (room.cumsum(dim=1) - room)).clamp(min=0)
        part = torch.minimum(room, left)
        rest = (forest.loads[:, m] - part.sum(dim=1)).clamp(min=0)
        forest.taken[:, m] = part + rest[:, None] * forest.parent[:, m]
        rank_loads = others + forest.taken[:, m]
    return rank_loads


def _fill(forest: _Forest, rank_loads: Tensor, *, inwards: bool) -> Tensor:
    """Split each expert so that the fullest of the ranks that it uses are level; the rank loads after it.

    The level is the smallest of the means that the lightest rank, the two lightest and so on would have.
    """
    numbers = range(forest.loads.shape[1])
    used = torch.arange(1, rank_loads.shape[1] + 1, device=rank_loads.device)
    for m in reversed(numbers) if inwards else numbers:
        others, held = rank_loads - forest.taken[:, m], forest.held[:, m]
        here = others.masked_fill(~held, torch.inf).sort(dim=1).values
        level = ((forest.loads[:, m, None] + here.cumsum(dim=1)) / used).amin(dim=1, keepdim=True)
        forest.taken[:, m] = torch.where(held, (level - others).clamp(min=0), torch.zeros_like(others))
        rank_loads = others + forest.taken[:, m]
    return rank_loads


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


def by_number(chosen: Tensor, log2phy: Tensor, logcnt: Tensor) -> Tensor:
    """Slots of chosen experts by a hash of the token's number; see `equipoise.assign_by_number`.

    Parameters
    ----------
    chosen : ``[T, k]`` of one layer, or ``[L, T, k]``; -1 for none
    log2phy, logcnt : ``[E, X]`` and ``[E]``, or ``[L, E, X]`` and ``[L, E]``; see `DeviceMaps`

    Returns
    -------
    int64 in the shape of ``chosen``: slots, -1 for none and where an expert has no slot
    """
    number = torch.arange(chosen.shape[-2], device=chosen.device)
    hashed = ((number * int(KNUTH)) & 0xFFFFFFFF)[:, None].expand(chosen.shape).flatten(-2)
    owner = chosen.clamp(min=0).to(torch.int64).flatten(-2)
    turn = hashed % logcnt.gather(-1, owner).clamp(min=1)
    slots = log2phy.flatten(-2).gather(-1, owner * log2phy.shape[-1] + turn)
    return slots.to(torch.int64).view(chosen.shape).masked_fill(chosen < 0, -1)
