"""The planning stages for torch tensors, batched over layers and candidates.

Each function gives exactly what the compiled kernel of the same name gives: loads are integers, draws come from
the same counter, and every choice among equals goes to the lowest index, which is what torch's ``argmax`` and
``argmin`` return. Nothing here reads a value back from the device, but for one flag a round in `separate`.

Shapes: ``B`` layers (or sub-layers of nodes), ``C`` candidates, ``P`` ranks of ``S`` slots, ``R = P * S`` items.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from .orders import ITEM_BITS, LARGEST_KEY, NOISE_SCALE
from .pack import FULL, RANK_BITS
from .random import DRAW_BITS, FIRST, GOLDEN, SECOND
from .scale import SCALE

OUTGOING_BLOCK = 16  # slots that `refine` looks at together: its memory is this many times R


def to_integers(loads: Tensor) -> Tensor:
    """Float64 loads ``[..., E]`` to integers, the largest of each row becoming 2^30."""
    largest = loads.amax(dim=-1, keepdim=True)
    scaled = loads / torch.where(largest > 0, largest, torch.ones_like(largest))
    return (scaled * SCALE).round().to(torch.int64)


def replicate(loads: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Replica counts ``[B, E]`` and the expert of each item ``[B, R]``, in the order of the awards."""
    num_layers, num_experts = loads.shape
    real = loads.to(torch.float64)
    loaded = loads > 0
    logcnt = torch.ones_like(loads)
    keys = torch.where(loaded, real, -torch.ones_like(real))
    item_expert = torch.empty((num_layers, num_slots), dtype=torch.int64, device=loads.device)
    item_expert[:, :num_experts] = torch.arange(num_experts, device=loads.device)
    for item in range(num_experts, num_slots):
        hottest = keys.argmax(dim=1, keepdim=True)
        count = logcnt.gather(1, hottest) + 1
        logcnt.scatter_(1, hottest, count)
        key = torch.where(loaded.gather(1, hottest), real.gather(1, hottest) / count, -count.to(real.dtype))
        keys.scatter_(1, hottest, key)
        item_expert[:, item : item + 1] = hottest
    return logcnt, item_expert


def item_weights(loads: Tensor, logcnt: Tensor, item_expert: Tensor) -> Tensor:
    """The load of each item under an even split, rounded to an integer: ``[B, R]``."""
    shares = loads.to(torch.float64) / logcnt.to(torch.float64)
    return shares.round().to(torch.int64).gather(1, item_expert)


def largest_loads(loads: Tensor, phy2log: Tensor, num_ranks: int) -> Tensor:
    """The largest rank load of placements ``[L, R]``: ``[L]``, of the same weights as `item_weights`."""
    logcnt = torch.zeros_like(loads).scatter_add_(1, phy2log, torch.ones_like(phy2log))
    weight = item_weights(loads, logcnt, phy2log)
    return weight.view(len(loads), num_ranks, -1).sum(dim=2).amax(dim=1)


def sorted_items(keys: Tensor) -> Tensor:
    """Item numbers in ascending order of their keys ``[..., R]``; ties by item number."""
    items = torch.arange(keys.shape[-1], device=keys.device)
    # The item number is part of the key, so keys differ and any sort gives the same.
    return ((keys << ITEM_BITS) | items).sort(dim=-1).values & ((1 << ITEM_BITS) - 1)


def lpt_order(weight: Tensor) -> Tensor:
    """Heaviest first; ties by item number: ``[..., R]``."""
    return sorted_items(LARGEST_KEY - weight)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # int64 shifts in copies of the sign


def mix(state: Tensor, number: Tensor) -> Tensor:
    """Fold numbers into 64-bit states, in int64 that wraps around."""
    z = state + (number + 1) * _signed(GOLDEN)
    z = (z ^ _shift(z, 30)) * _signed(FIRST)
    z = (z ^ _shift(z, 27)) * _signed(SECOND)
    return z ^ _shift(z, 31)


def candidate_orders(weight: Tensor, lpt: Tensor, kinds: Sequence[int], noise: float, seed: int) -> Tensor:
    """All candidates of all layers: ``[B, C, R]``."""
    num_layers, num_items = weight.shape
    device = weight.device
    items = torch.arange(num_items, device=device)
    start = mix(items.new_zeros(()), items.new_full((), seed))
    layer_state = mix(start, torch.arange(num_layers, device=device))[:, None]
    runs = []
    first = 0
    for kind, run in groupby(kinds):
        count = len(list(run))
        if kind == 0:
            orders = lpt[:, None]
        elif kind == 1:
            ends = torch.where(items % 2 == 0, items // 2, num_items - 1 - items // 2)
            orders = lpt[:, None, ends]
        else:
            state = mix(layer_state, torch.arange(first, first + count, device=device))
            keys = _shift(mix(state[:, :, None], items), 64 - DRAW_BITS)
            if kind == 3:
                uniform = keys.to(torch.float64) * (1.0 / (1 << DRAW_BITS))
                noisy = weight[:, None] * ((1.0 - noise) + (2.0 * noise) * uniform) * NOISE_SCALE
                keys = LARGEST_KEY - noisy.to(torch.int64)
            orders = sorted_items(keys)
        runs.append(orders.expand(-1, count, -1))
        first += count
    return torch.cat(runs, dim=1)


def pack_greedy(in_order: Tensor, num_ranks: int) -> tuple[Tensor, Tensor]:
    """Item by item to the least loaded rank that has room; ties go to the lowest rank.

    Parameters
    ----------
    in_order : the weights of items in the order in which they are packed, ``[N, R]``

    Returns
    -------
    the rank of each position of an order ``[N, R]`` (16-bit), and the largest rank load ``[N]``
    """
    rows, num_items = in_order.shape
    steps = (in_order << RANK_BITS).t().contiguous()
    keys = torch.arange(num_ranks, device=steps.device)[:, None].repeat(1, rows)
    room = torch.full_like(keys, num_items // num_ranks)
    largest = torch.zeros_like(keys[0])
    ranks = torch.empty((num_items, rows), dtype=torch.int16, device=steps.device)
    for step in range(num_items):
        best = keys.amin(dim=0, keepdim=True)
        rank = best & ((1 << RANK_BITS) - 1)
        ranks[step] = rank[0]
        key = best + steps[step]
        largest = torch.maximum(largest, key[0])
        left = room.gather(0, rank) - 1
        room.scatter_(0, rank, left)
        keys.scatter_(0, rank, key.masked_fill(left == 0, int(FULL)))
    return ranks.t(), largest >> RANK_BITS


def pack_best(orders: Tensor, weight: Tensor, plain: Tensor, num_ranks: int) -> Tensor:
    """The rank of each item ``[B, R]``, packed with all orders of its layer or with one.

    Parameters
    ----------
    orders : candidates ``[A, C, R]`` of the first ``A`` layers: the one with the smallest largest load wins, the
        first of equals
    weight : ``[B, R]``
    plain : ``[B - A, R]``, the one order of each layer that is left
    """
    tried, candidates, _ = orders.shape
    expanded = weight[:tried, None].expand(-1, candidates, -1)
    in_order = [expanded.gather(2, orders).flatten(0, 1), weight[tried:].gather(1, plain)]
    ranks, largest = pack_greedy(torch.cat(in_order), num_ranks)
    rows = tried * candidates
    best = largest[:rows].view(tried, candidates).argmin(dim=1)
    layers = torch.arange(tried, device=best.device)
    chosen = torch.cat([ranks[layers * candidates + best], ranks[rows:]]).to(torch.int64)
    return torch.empty_like(chosen).scatter_(1, torch.cat([orders[layers, best], plain]), chosen)


def collect(lpt: Tensor, rank_of: Tensor, num_ranks: int) -> Tensor:
    """Members of each rank ``[B, P, S]``, as positions in the LPT order, heaviest first."""
    return sorted_items(rank_of.gather(1, lpt)).view(len(lpt), num_ranks, -1)


def _of_members(values: Tensor, members: Tensor) -> Tensor:
    return values.gather(1, members.flatten(1)).view_as(members)


def _swap(members: Tensor, p: Tensor, i: Tensor, q: Tensor, j: Tensor, active: Tensor) -> None:
    """In active layers, exchange slot ``i`` of rank ``p`` with slot ``j`` of rank ``q``; rows stay sorted."""
    layers = torch.arange(len(members), device=members.device)
    mine, theirs = members[layers, p, i], members[layers, q, j]
    members[layers, p, i] = torch.where(active, theirs, mine)
    members[layers, q, j] = torch.where(active, mine, theirs)
    for rank in (p, q):
        members[layers, rank] = members[layers, rank].sort(dim=1).values


def _held_by(row: Tensor, experts: Tensor, num_experts: int) -> Tensor:
    """Which of the experts ``[B, P, S]`` are in a row of experts ``[B, S]``."""
    table = torch.zeros((len(row), num_experts), dtype=torch.bool, device=row.device)
    return _of_members(table.scatter_(1, row, True), experts)


def find_twins(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Slots that share a rank with their twin, and those of them whose expert some rank has not: ``[B, P, S]``."""
    ordered, slots = experts.sort(dim=2)
    repeated = ordered[:, :, 1:] == ordered[:, :, :-1]
    edge = torch.zeros_like(experts[:, :, :1], dtype=torch.bool)
    either = torch.cat([repeated, edge], dim=2) | torch.cat([edge, repeated], dim=2)
    twin = torch.zeros_like(either).scatter_(2, slots, either)
    num_layers, num_ranks, _ = experts.shape
    holds = torch.zeros((num_layers, num_ranks, num_experts), dtype=torch.bool, device=experts.device)
    everywhere = holds.scatter_(2, experts, True).all(dim=1)
    return twin, twin & ~_of_members(everywhere, experts)


def separate(weight: Tensor, item_expert: Tensor, members: Tensor, num_experts: int) -> None:
    """Part avoidable twins, one swap a layer and round; see the kernel for the rule.

    Items are positions in the LPT order. ``members`` is changed in place.
    """
    _, ranks, slots = members.shape
    if ranks == 1 or slots == 1 or ranks * slots == num_experts:
        return
    while True:
        experts = _of_members(item_expert, members)
        twin, avoidable = find_twins(experts, num_experts)
        active = avoidable.flatten(1).any(dim=1)
        if not bool(active.any()):  # the one thing that is read back
            return
        at = avoidable.flatten(1).to(torch.int8).argmax(dim=1)
        p, i = at // slots, at % slots
        layers = torch.arange(len(at), device=at.device)
        weights = _of_members(weight, members)
        loads = weights.sum(dim=2)
        mine = experts[layers, p, i][:, None, None]
        change = weights[layers, p, i][:, None, None] - weights
        value = torch.maximum(loads[layers, p][:, None, None] - change, loads[:, :, None] + change)
        holds_it = (experts == mine).any(dim=2, keepdim=True)
        new_twin = _held_by(experts[layers, p], experts, num_experts) & ~twin
        value = value.masked_fill(holds_it | new_twin, int(FULL))
        to = value.flatten(1).argmin(dim=1)
        _swap(members, p, i, to // slots, to % slots, active)


def refine(weight: Tensor, item_expert: Tensor, members: Tensor, num_experts: int, max_swaps: int) -> None:
    """Up to ``max_swaps`` swaps of the most loaded rank with any other; see the kernel for the rule.

    Items are positions in the LPT order. ``members`` is changed in place.
    """
    for _ in range(max_swaps if members.shape[1] > 1 else 0):
        experts, weights = _of_members(item_expert, members), _of_members(weight, members)
        loads = weights.sum(dim=2)
        p = loads.argmax(dim=1)
        q, i, j, value = _best_swap(weights, experts, loads, p, num_experts)
        _swap(members, p, i, q, j, value < loads.amax(dim=1))


def _best_swap(
    weights: Tensor, experts: Tensor, loads: Tensor, p: Tensor, num_experts: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The other rank, both slots, and the larger load of the two ranks after the best swap of rank ``p``."""
    slots = weights.shape[2]
    layers = torch.arange(len(p), device=p.device)
    # Equal experts weigh the same and are of no use to swap, so one is refused wherever its expert is at all;
    # that also keeps `p` from swapping with itself.
    refused = _held_by(experts[layers, p], experts, num_experts)[:, :, None, :]
    largest = loads[layers, p][:, None, None, None]
    value = torch.full_like(p, int(FULL))
    q, i, j = torch.zeros_like(p), torch.zeros_like(p), torch.zeros_like(p)
    for start in range(0, slots, OUTGOING_BLOCK):
        block = slice(start, min(start + OUTGOING_BLOCK, slots))
        size = block.stop - block.start
        mine = experts[layers, p, block][:, None, :, None]
        change = weights[layers, p, block][:, None, :, None] - weights[:, :, None, :]
        values = torch.maximum(largest - change, loads[:, :, None, None] + change)
        holds_it = (experts[:, :, None, :] == mine).any(dim=3, keepdim=True)
        values = values.masked_fill(holds_it | refused, int(FULL)).flatten(1)
        at = values.argmin(dim=1)  # over [P, outgoing, incoming]: ties in that order
        found = values.gather(1, at[:, None])[:, 0]
        rank = at // (size * slots)
        better = (found < value) | ((found == value) & (rank < q))
        value, q = torch.where(better, found, value), torch.where(better, rank, q)
        i = torch.where(better, at // slots % size + start, i)
        j = torch.where(better, at % slots, j)
    return q, i, j, value
