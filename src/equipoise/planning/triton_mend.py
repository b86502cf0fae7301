"""The second half of the ensemble as kernels for Triton: the best packing mended, the better plan, its maps.

A sub-layer is the rank of each of its items, which are numbered in LPT order: the members of a rank in order are its
items in the order of their numbers, so a swap is two numbers and nothing is sorted. Beside it stand, in scratch
memory that all threads of a program read, how often ranks hold experts, how many ranks hold one, and the rank loads.
Numbers there change by atomic sums of integers, between two barriers.

Shapes: see `triton_orders`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import pack

RANK_BITS = tl.constexpr(pack.RANK_BITS)
FULL = tl.constexpr(int(pack.FULL))


@triton.jit
def _count_holders(
    rank, expert, load, state, sizes: tl.constexpr, E_BLOCK: tl.constexpr, BLOCK: tl.constexpr
):
    """Fill in the scratch memory of a sub-layer.

    ``rank [R]``, ``expert [R]``, ``load [R]``: of items. ``state``: ``holds [P, E]``, how often a rank holds an
    expert, ``spread [E]``, how many ranks hold it, ``rank_loads [P]``: zeros, written.
    """
    E: tl.constexpr = sizes[0]
    i = tl.arange(0, BLOCK)
    tl.atomic_add(state[0] + rank * E + expert, 1, mask=i < sizes[1])
    tl.atomic_add(state[2] + rank, load, mask=i < sizes[1])
    tl.debug_barrier()
    e = tl.arange(0, E_BLOCK)
    spread = tl.zeros((E_BLOCK,), tl.int32)
    for r in range(sizes[2]):
        spread += (tl.load(state[0] + r * E + e, mask=e < E, other=0) > 0).to(tl.int32)
    tl.store(state[1] + e, spread, mask=e < E)
    tl.debug_barrier()


@triton.jit
def _swap(rank, one, other, items, state, E: tl.constexpr, BLOCK: tl.constexpr):
    """Exchange the ranks of items ``one`` and ``other``; returns the ranks after it.

    ``rank [R]``: of items. ``items``: ``lpt [R]``, ``owner [R]``, ``weight [R]``. ``state``: see `_count_holders`.
    """
    i = tl.arange(0, BLOCK)
    p = tl.sum(tl.where(i == one, rank, 0), axis=0)
    q = tl.sum(tl.where(i == other, rank, 0), axis=0)
    a, b = tl.load(items[0] + one), tl.load(items[0] + other)
    mine, theirs = tl.load(items[1] + a), tl.load(items[1] + b)
    change = tl.load(items[2] + a) - tl.load(items[2] + b)
    holds = state[0]
    moved = (tl.load(holds + q * E + mine) == 0).to(tl.int32) - (tl.load(holds + p * E + mine) == 1).to(
        tl.int32
    )
    back = (tl.load(holds + p * E + theirs) == 0).to(tl.int32) - (tl.load(holds + q * E + theirs) == 1).to(
        tl.int32
    )
    tl.debug_barrier()
    tl.atomic_add(holds + p * E + mine, -1)
    tl.atomic_add(holds + q * E + mine, 1)
    tl.atomic_add(holds + q * E + theirs, -1)
    tl.atomic_add(holds + p * E + theirs, 1)
    tl.atomic_add(state[1] + mine, moved)
    tl.atomic_add(state[1] + theirs, back)
    tl.atomic_add(state[2] + p, -change)
    tl.atomic_add(state[2] + q, change)
    tl.debug_barrier()
    return tl.where(i == one, q, tl.where(i == other, p, rank))


@triton.jit
def _first_avoidable(rank, expert, state, sizes: tl.constexpr, BLOCK: tl.constexpr):
    """Which items ``[R]`` are twins, and rank and number of the first that can be parted, `FULL` if there is none.

    ``rank [R]``, ``expert [R]``: of items. ``state``: see `_count_holders`.
    """
    i = tl.arange(0, BLOCK)
    twin = tl.load(state[0] + rank * sizes[0] + expert, mask=i < sizes[1], other=0) > 1
    avoidable = twin & (tl.load(state[1] + expert, mask=i < sizes[1], other=0) < sizes[2])
    return twin, tl.min(tl.where(avoidable, rank.to(tl.int64) * BLOCK + i, FULL), axis=0)


@triton.jit
def _separate(rank, expert, load, items, state, sizes: tl.constexpr, BLOCK: tl.constexpr):
    """Part avoidable twins; see `equipoise.planning.refine.separate_layer`. Returns the ranks after it.

    ``rank [R]``, ``expert [R]``, ``load [R]``: of items. ``items``, ``state``: see `_swap`.
    """
    E: tl.constexpr = sizes[0]
    i = tl.arange(0, BLOCK)
    twin, first = _first_avoidable(rank, expert, state, sizes, BLOCK)
    while first < FULL:
        p, one = first // BLOCK, first % BLOCK
        a = tl.load(items[0] + one)
        change = tl.load(items[2] + a) - load
        theirs = tl.load(state[2] + rank, mask=i < sizes[1], other=0)
        held = tl.load(state[0] + rank * E + tl.load(items[1] + a), mask=i < sizes[1], other=1) > 0
        new_twin = (tl.load(state[0] + p * E + expert, mask=i < sizes[1], other=1) > 0) & (twin == 0)
        value = tl.maximum(tl.load(state[2] + p) - change, theirs + change)
        key = tl.where(held | new_twin, FULL, (value << RANK_BITS) | rank)
        _, other = _least(key, i.to(tl.int64))
        rank = _swap(rank, one, other, items, state, E, BLOCK)
        twin, first = _first_avoidable(rank, expert, state, sizes, BLOCK)
    return rank


@triton.jit
def _least(key, tie):
    """The smallest of ``key [R]``, and of those that have it the smallest ``tie [R]``."""
    least = tl.min(key, axis=0)
    return least, tl.min(tl.where(key == least, tie, FULL), axis=0)


@triton.jit
def _best_swap(rank, expert, load, items, state, mine, sizes: tl.constexpr, blocks: tl.constexpr):
    """The swap of an item of the most loaded rank that leaves the smallest larger load of the two ranks.

    ``rank [R]``, ``expert [R]``, ``load [R]``: of items. ``items``, ``state``: see `_swap`. ``mine [S]``: scratch.
    Returns whether it lowers the largest load, and both items.
    """
    E: tl.constexpr = sizes[0]
    R: tl.constexpr = sizes[1]
    BLOCK: tl.constexpr = blocks[2]
    i = tl.arange(0, BLOCK)
    r = tl.arange(0, blocks[3])
    rank_loads = tl.load(state[2] + r, mask=r < sizes[2], other=-1)
    top, p = tl.max(rank_loads, axis=0), tl.argmax(rank_loads, axis=0)
    own = rank == p
    tl.store(mine + tl.cumsum(own.to(tl.int32), axis=0) - 1, i, mask=own)
    theirs = tl.load(state[2] + rank, mask=i < R, other=0)
    refused = tl.load(state[0] + p * E + expert, mask=i < R, other=1) > 0
    tl.debug_barrier()
    best = tl.full((BLOCK,), FULL, tl.int64)
    tie = tl.full((BLOCK,), FULL, tl.int64)
    for s in range(R // sizes[2]):
        one = tl.load(mine + s)
        a = tl.load(items[0] + one)
        change = tl.load(items[2] + a) - load
        held = tl.load(state[0] + rank * E + tl.load(items[1] + a), mask=i < R, other=1) > 0
        value = tl.maximum(top - change, theirs + change)
        key = tl.where(held | refused, FULL, (value << RANK_BITS) | rank)
        tie = tl.where(key < best, one.to(tl.int64) * BLOCK + i, tie)
        best = tl.minimum(best, key)
    least, code = _least(best, tie)
    tl.debug_barrier()
    return (least >> RANK_BITS) < top, code // BLOCK, code % BLOCK


@triton.jit
def _packed_ranks(packed, lpt, rank_of, row, sizes: tl.constexpr, blocks: tl.constexpr):
    """The ranks of items ``[R]`` in the best packing of a sub-layer, or in `greedy`'s; ``P`` behind the last item.

    ``packed``: see `mend`. ``lpt [R]``: items. ``rank_of [R]``: scratch. ``row``: the sub-layer.
    """
    R: tl.constexpr = sizes[1]
    C: tl.constexpr = sizes[5]
    layer = row % sizes[4]
    c = tl.arange(0, blocks[4])
    found = tl.load(packed[2] + layer * (C + 1) + c, mask=c < C, other=FULL)
    at = (layer * (C + 1) + tl.where(row < sizes[4], tl.argmin(found, axis=0), C)) * R
    i = tl.arange(0, blocks[2])
    ranks = tl.load(packed[1] + at + i, mask=i < R, other=0).to(tl.int32)
    tl.store(rank_of + tl.load(packed[0] + at + i, mask=i < R, other=0), ranks, mask=i < R)
    tl.debug_barrier()
    return tl.load(rank_of + tl.load(lpt + i, mask=i < R, other=0), mask=i < R, other=sizes[2])


@triton.jit
def _refine(rank, expert, load, items, state, mine, max_swaps, sizes: tl.constexpr, blocks: tl.constexpr):
    """Up to ``max_swaps`` of `_best_swap`, while they lower the largest load; returns the ranks after it.

    ``rank [R]``, ``expert [R]``, ``load [R]``: of items. ``items``, ``state``: see `_swap`. ``mine [S]``: scratch.
    """
    left = max_swaps
    while left > 0:
        better, one, other = _best_swap(rank, expert, load, items, state, mine, sizes, blocks)
        left = tl.where(better, left - 1, 0)
        if better:
            rank = _swap(rank, one, other, items, state, sizes[0], blocks[2])
    return rank


@triton.jit
def _write_plan(rank, expert, items, state, results, row, sizes: tl.constexpr, blocks: tl.constexpr):
    """What is known of a sub-layer in the end.

    ``rank [R]``, ``expert [R]``: of items. ``items``, ``state``: see `_swap`. ``results``: see `mend`, written.
    ``row``: the sub-layer.
    """
    R: tl.constexpr = sizes[1]
    i = tl.arange(0, blocks[2])
    slots = tl.sort(rank.to(tl.int64) * blocks[2] + i) % blocks[2]
    item = tl.load(items[0] + slots, mask=i < R, other=0)
    # With one slot a rank, greedy does not sort.
    item = tl.where((row >= sizes[4]) & (sizes[2] == R), i, item)
    tl.store(results[0] + row * R + i, tl.load(items[1] + item, mask=i < R, other=0), mask=i < R)
    r = tl.arange(0, blocks[3])
    largest = tl.max(tl.load(state[2] + r, mask=r < sizes[2], other=0), axis=0)
    tl.store(results[1] + row, largest)
    _, first = _first_avoidable(rank, expert, state, sizes, blocks[2])
    tl.store(results[2] + row, (first < FULL).to(tl.int32))


@triton.jit
def mend(packed, items, state, scratch, results, max_swaps, sizes: tl.constexpr, blocks: tl.constexpr):
    """The best packing of a sub-layer with twins parted and swaps made, or `greedy`'s as it is; one program each.

    ``packed``: ``order [B, C + 1, R]``, ``ranks [B, C + 1, R]``, ``largest [B, C + 1]`` of `pack_candidate`.
    ``items``: ``lpt [2 B, R]``, ``owner [2 B, R]``, ``weight [2 B, R]``. ``state``: zeros, see `_count_holders`, with
    an axis of ``2 B`` before. ``scratch``: ``rank_of [2 B, R]``, ``mine [2 B, S]``. ``results``: ``phy2sub [2 B,
    R]``, experts of slots; ``largest [2 B]``; ``twins [2 B]``, avoidable ones. ``max_swaps``: of a sub-layer.
    ``sizes``: ``E, R, P, N, B, C``. ``blocks``: of ``E * N``, ``E``, ``R``, ``P``, ``C``.
    """
    E: tl.constexpr = sizes[0]
    R: tl.constexpr = sizes[1]
    P: tl.constexpr = sizes[2]
    row = tl.program_id(0).to(tl.int64)
    mine = scratch[1] + row * (R // P)
    items = (items[0] + row * R, items[1] + row * R, items[2] + row * R)
    state = (state[0] + row * P * E, state[1] + row * E, state[2] + row * P)
    rank = _packed_ranks(packed, items[0], scratch[0] + row * R, row, sizes, blocks)
    i = tl.arange(0, blocks[2])
    item = tl.load(items[0] + i, mask=i < R, other=0)
    expert = tl.load(items[1] + item, mask=i < R, other=0)
    load = tl.load(items[2] + item, mask=i < R, other=0)
    _count_holders(rank, expert, load, state, sizes, blocks[1], blocks[2])
    if row < sizes[4]:
        rank = _separate(rank, expert, load, items, state, sizes, blocks[2])
        rank = _refine(rank, expert, load, items, state, mine, max_swaps, sizes, blocks)
    _write_plan(rank, expert, items, state, results, row, sizes, blocks)


@triton.jit
def choose(results, experts, phy2log, sizes: tl.constexpr, blocks: tl.constexpr):
    """A layer of `greedy` where that is better and has no avoidable twins, else of the ensemble; one program each.

    ``results``: of `mend`. ``experts [2 B, E]``: those of sub-layers. ``phy2log [L, R * N]`` is written. ``sizes``,
    ``blocks``: see `mend`.
    """
    R: tl.constexpr = sizes[1]
    N: tl.constexpr = sizes[3]
    B: tl.constexpr = sizes[4]
    layer = tl.program_id(0).to(tl.int64)
    largest = tl.cast(0, tl.int64)
    other = tl.cast(0, tl.int64)
    twins = tl.cast(0, tl.int32)
    for row in range(layer * N, (layer + 1) * N):
        largest = tl.maximum(largest, tl.load(results[1] + row))
        other = tl.maximum(other, tl.load(results[1] + B + row))
        twins += tl.load(results[2] + B + row)
    offset = tl.where((other < largest) & (twins == 0), B, 0)
    i = tl.arange(0, blocks[2])
    for row in range(layer * N, (layer + 1) * N):
        held = tl.load(results[0] + (offset + row) * R + i, mask=i < R, other=0)
        expert = tl.load(experts + (offset + row) * sizes[0] + held, mask=i < R, other=0)
        tl.store(phy2log + row * R + i, expert, mask=i < R)


@triton.jit
def count_replicas(phy2log, logcnt, E: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr):
    """Replicas of one layer, one program each. ``phy2log [L, R]``. ``logcnt [L, E]``: zeros, written."""
    layer = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    expert = tl.load(phy2log + layer * R + i, mask=i < R, other=0)
    tl.atomic_add(logcnt + layer * E + expert, tl.full((BLOCK,), 1, tl.int64), mask=i < R)


@triton.jit
def list_slots(
    phy2log, logcnt, first, log2phy, width, E: tl.constexpr, R: tl.constexpr, blocks: tl.constexpr
):
    """The slots of each expert of one layer, one program each.

    ``phy2log [L, R]``, ``logcnt [L, E]``: the maps. ``first [L, E]``: scratch. ``log2phy [L, E, X]``: -1, written.
    ``width``: ``X``. ``blocks``: of ``E`` and ``R``.
    """
    layer = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, blocks[0])
    count = tl.load(logcnt + layer * E + e, mask=e < E, other=0)
    tl.store(first + layer * E + e, tl.cumsum(count, axis=0) - count, mask=e < E)
    tl.debug_barrier()
    i = tl.arange(0, blocks[1])
    expert = tl.load(phy2log + layer * R + i, mask=i < R, other=E)
    ordered = tl.sort(expert * blocks[1] + i)
    expert, slot = ordered // blocks[1], ordered % blocks[1]
    nth = i - tl.load(first + layer * E + expert, mask=i < R, other=0)
    tl.store(log2phy + (layer * E + expert) * width + nth, slot, mask=i < R)
