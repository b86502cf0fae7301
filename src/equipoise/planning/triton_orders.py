"""The first half of the ensemble as kernels for Triton: items and their weights, candidate orders, packing.

What `torch_stages` does in thousands of launches, with the same integers; `triton_backend` launches them. Blocks are
powers of two that hold what they are named after.

Shapes: ``B`` sub-layers, the planner's and then as many of `greedy`'s, each a row; ``E`` experts, ``R`` slots, ``P``
ranks of a sub-layer; ``C`` candidates.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import orders, pack, random, scale

ITEM_BITS = tl.constexpr(orders.ITEM_BITS)
ITEM = tl.constexpr((1 << orders.ITEM_BITS) - 1)
LARGEST_KEY = tl.constexpr(orders.LARGEST_KEY)
NOISE_SCALE = tl.constexpr(orders.NOISE_SCALE)
RANK_BITS = tl.constexpr(pack.RANK_BITS)
RANK = tl.constexpr((1 << pack.RANK_BITS) - 1)
FULL = tl.constexpr(int(pack.FULL))
GOLDEN, FIRST, SECOND = (tl.constexpr(c) for c in (random.GOLDEN, random.FIRST, random.SECOND))
DRAW_SHIFT = tl.constexpr(64 - random.DRAW_BITS)
UNIT = tl.constexpr(1.0 / (1 << random.DRAW_BITS))
SCALE = tl.constexpr(scale.SCALE)
WHOLE = tl.constexpr(float(1 << 52))  # float64 has no places behind the point from here on


@triton.jit
def rounded(x):
    """``x`` (float64, below 2^51) to the nearest whole number, of two the even one."""
    return (x + WHOLE) - WHOLE


@triton.jit
def mix(state, number):
    """See `equipoise.planning.random.mix`. ``state``, ``number``: 64 bits, unsigned."""
    z = state + (number + 1) * GOLDEN
    z = (z ^ (z >> 30)) * FIRST
    z = (z ^ (z >> 27)) * SECOND
    return z ^ (z >> 31)


@triton.jit
def sorted_items(keys, size, BLOCK: tl.constexpr):
    """Item numbers in ascending order of their ``keys [BLOCK]``; ties by item number, those from ``size`` on last."""
    i = tl.arange(0, BLOCK)
    return tl.sort(tl.where(i < size, (keys << ITEM_BITS) | i, FULL)) & ITEM


@triton.jit
def weigh(loads, experts, share, owner, weight, lpt, sizes: tl.constexpr, blocks: tl.constexpr):
    """Replicas, weights and LPT order of one sub-layer, one program each.

    ``loads [L, E * N]``: float64, not negative. ``experts [2 B, E]``: those of a sub-layer. ``share [2 B, E]``:
    scratch. ``owner [2 B, R]``, the expert of each item, ``weight [2 B, R]``, its load, and ``lpt [2 B, R]``, items
    heaviest first, are written. ``sizes``: ``E, R, P, N, B``. ``blocks``: of ``E * N``, ``E``, ``R``, ``P``.
    """
    E: tl.constexpr = sizes[0]
    R: tl.constexpr = sizes[1]
    N: tl.constexpr = sizes[3]
    row = tl.program_id(0).to(tl.int64)
    loads += row % sizes[4] // N * (E * N)
    every = tl.arange(0, blocks[0])
    largest = tl.max(tl.load(loads + every, mask=every < E * N, other=0.0), axis=0)
    e = tl.arange(0, blocks[1])
    expert = tl.load(experts + row * E + e, mask=e < E, other=0)
    raw = tl.load(loads + expert, mask=e < E, other=0.0)
    real = rounded(raw / tl.where(largest > 0.0, largest, 1.0) * SCALE)
    count = tl.full((blocks[1],), 1.0, tl.float64)
    tl.store(owner + row * R + e, e, mask=e < E)
    for item in range(E, R):
        key = tl.where(real > 0.0, real / count, -count)
        hottest = tl.argmax(tl.where(e < E, key, -float("inf")), axis=0)
        count += (e == hottest).to(tl.float64)
        tl.store(owner + row * R + item, hottest)
    tl.store(share + row * E + e, rounded(real / count).to(tl.int64), mask=e < E)
    tl.debug_barrier()
    i = tl.arange(0, blocks[2])
    load = tl.load(share + row * E + tl.load(owner + row * R + i, mask=i < R, other=0), mask=i < R, other=0)
    tl.store(weight + row * R + i, load, mask=i < R)
    tl.store(lpt + row * R + i, sorted_items(LARGEST_KEY - load, R, blocks[2]), mask=i < R)


@triton.jit
def _order(candidate, layer, weight, lpt, seed, R: tl.constexpr, BLOCK: tl.constexpr, recipe: tl.constexpr):
    """The items ``[BLOCK]`` of one sub-layer in a candidate's order; see `equipoise.planning.orders`.

    ``candidate``, ``layer``, ``seed``: of the draws. ``weight [R]``, ``lpt [R]``: of items. ``recipe``: where LPT,
    interleaved and random candidates end, and the noise of those behind.
    """
    i = tl.arange(0, BLOCK)
    if candidate < recipe[0]:
        order = tl.load(lpt + i, mask=i < R, other=0)
    elif candidate < recipe[1]:
        order = tl.load(lpt + tl.where(i % 2 == 0, i // 2, R - 1 - i // 2), mask=i < R, other=0)
    else:
        state = mix(mix(tl.cast(0, tl.uint64), tl.cast(seed, tl.uint64)), layer.to(tl.uint64))
        state = mix(state, candidate.to(tl.uint64))
        keys = (mix(state, i.to(tl.uint64)) >> DRAW_SHIFT).to(tl.int64)
        if candidate >= recipe[2]:
            factor = (1.0 - recipe[3]) + (2.0 * recipe[3]) * (keys.to(tl.float64) * UNIT)
            load = tl.load(weight + i, mask=i < R, other=0).to(tl.float64)
            keys = LARGEST_KEY - (load * factor * NOISE_SCALE).to(tl.int64)
        order = sorted_items(keys, R, BLOCK)
    return order


@triton.jit(do_not_specialize=["seed"])
def pack_candidate(
    items, chosen, largest, ranks, seed, sizes: tl.constexpr, blocks: tl.constexpr, recipe: tl.constexpr
):
    """Pack one candidate of one sub-layer, one program each: item by item to the least loaded rank with room.

    The last candidate is `greedy`'s: its items in LPT order.

    ``items``: ``weight [2 B, R]``, ``lpt [2 B, R]``. ``chosen``: ``order [B, C + 1, R]``, items, and ``steps [B, C +
    1, R]``, what they add to a key; ``largest [B, C + 1]``, the largest rank load; ``ranks [B, C + 1, R]``, the rank
    of each item in order: all written. ``seed``: of the draws. ``sizes``, ``blocks``: see `weigh`. ``recipe``: see
    `_order`.
    """
    R: tl.constexpr = sizes[1]
    P: tl.constexpr = sizes[2]
    candidate, layer = tl.program_id(0), tl.program_id(1)
    last = tl.num_programs(0) - 1
    row = tl.where(candidate == last, layer + sizes[4], layer).to(tl.int64) * R
    at = (layer.to(tl.int64) * (last + 1) + candidate) * R
    i = tl.arange(0, blocks[2])
    if candidate == last:
        order = tl.load(items[1] + row + i, mask=i < R, other=0)
    else:
        order = _order(candidate, layer, items[0] + row, items[1] + row, seed, R, blocks[2], recipe)
    tl.store(chosen[0] + at + i, order, mask=i < R)
    tl.store(
        chosen[1] + at + i, tl.load(items[0] + row + order, mask=i < R, other=0) << RANK_BITS, mask=i < R
    )
    tl.debug_barrier()
    r = tl.arange(0, blocks[3])
    keys = tl.where(r < P, r.to(tl.int64), FULL)
    room = tl.full((blocks[3],), R // P, tl.int32)
    most = tl.cast(0, tl.int64)
    for step in range(R):
        best = tl.min(keys, axis=0)
        rank = best & RANK
        tl.store(ranks + at + step, rank.to(tl.int16))
        key = best + tl.load(chosen[1] + at + step)
        most = tl.maximum(most, key)
        mine = r == rank
        room -= mine.to(tl.int32)
        keys = tl.where(mine, tl.where(room == 0, FULL, key), keys)
    tl.store(largest + layer * (last + 1) + candidate, most >> RANK_BITS)
