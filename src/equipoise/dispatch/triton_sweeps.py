"""Splitting as kernels for Triton (Tillet, Kung, Cox, MAPL 2019); `triton_backend` launches them.

Sums of tokens are taken in the order of `torch_backend`, so nothing hangs on the order in which programs run. Blocks
are powers of two that hold what they are named after.

Shapes: ``L`` layers, ``E`` experts of at most ``X`` replicas, ``R`` slots on ``P`` ranks of ``S``, ``M`` experts that
several ranks may share.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..planning import sweeps as reference

ROUNDING = tl.constexpr(reference.ROUNDING)
NOTHING = tl.constexpr(reference.NOTHING)
HANDING = tl.constexpr(reference.HANDING)


@triton.jit
def _level(loads, held, x):
    """The level that load ``x`` fills ranks up to: Newton's method from above on a convex function, so it is exact.

    ``loads [P]``: of ranks. ``held [P]``: which of them hold the expert. ``x``: its tokens.
    """
    count = tl.sum(held.to(tl.int32), axis=0)
    level = (x + tl.sum(tl.where(held, loads, 0.0), axis=0)) / tl.maximum(count, 1)
    more = count > 1
    while more:
        below = held & (loads < level)
        fewer = tl.sum(below.to(tl.int32), axis=0)
        more = (fewer < count) & (fewer > 0)
        if more:
            level = (x + tl.sum(tl.where(below, loads, 0.0), axis=0)) / fewer
            count = fewer
    return level


@triton.jit
def _number_shared(counts, experts, number, tokens, most, sizes: tl.constexpr, BLOCK: tl.constexpr):
    """Number the experts of a layer that several ranks share; returns how many there are.

    ``counts [E]``: tokens. ``experts [M]``: in the order of sweeps, -1 behind the last. ``number [E]``, -1 for one
    that is not shared, and ``tokens [M, P + 1]`` are written: the last of a row are the expert's own, the others -1.
    ``most``: ``M``.
    """
    P: tl.constexpr = sizes[2]
    i = tl.arange(0, BLOCK)
    expert = tl.load(experts + i, mask=i < most, other=-1)
    found = tl.sum((expert >= 0).to(tl.int32), axis=0)
    tl.store(number + i, -1, mask=i < sizes[0])
    for start in range(0, found * (P + 1), BLOCK):
        tl.store(tokens + start + i, -1.0, mask=start + i < found * (P + 1))
    tl.debug_barrier()
    tl.store(number + expert, i, mask=expert >= 0)
    own = tl.load(counts + expert, mask=expert >= 0, other=0.0)
    tl.store(tokens + i * (P + 1) + P, own, mask=expert >= 0)
    tl.debug_barrier()
    return found


@triton.jit
def _row_slots(
    log2phy, logcnt, start, E: tl.constexpr, X: tl.constexpr, ROWS: tl.constexpr, X_BLOCK: tl.constexpr
):
    """Experts ``[ROWS]`` from ``start`` on, their replicas ``[ROWS]``, slots and which are some ``[ROWS, X]``.

    ``log2phy [E, X]``, ``logcnt [E]``: the maps of a layer.
    """
    e = start + tl.arange(0, ROWS)
    k = tl.arange(0, X_BLOCK)[None, :]
    count = tl.load(logcnt + e, mask=e < E, other=0).to(tl.int32)
    valid = k < count[:, None]
    slots = tl.load(log2phy + e[:, None] * X + k, mask=valid, other=0).to(tl.int32)
    return e, count, slots, valid


@triton.jit
def _split_evenly(counts, maps, number, tokens, shares, sizes: tl.constexpr, blocks: tl.constexpr):
    """The even split, from which sweeps start: tokens of slots, and of shared experts by rank; returns rank loads.

    ``counts [E]``: tokens. ``maps``: ``log2phy [E, X]``, ``logcnt [E]``. ``number [E]``: see `_number_shared`.
    ``tokens [M, P + 1]`` and ``shares [R]`` are written.
    """
    E: tl.constexpr = sizes[0]
    P: tl.constexpr = sizes[2]
    S: tl.constexpr = sizes[3]
    for start in range(0, E, blocks[3]):
        e, count, slots, valid = _row_slots(maps[0], maps[1], start, E, sizes[1], blocks[3], blocks[1])
        x = tl.load(counts + e, mask=e < E, other=0.0) / tl.maximum(count, 1)
        m = tl.load(number + e, mask=e < E, other=-1)
        tl.store(shares + slots, tl.broadcast_to(x[:, None], slots.shape), mask=valid)
        held = valid & (m >= 0)[:, None]
        tl.store(tokens + m[:, None] * (P + 1) + slots // S, 0.0, mask=held)
    tl.debug_barrier()
    for start in range(0, E, blocks[3]):
        e, count, slots, valid = _row_slots(maps[0], maps[1], start, E, sizes[1], blocks[3], blocks[1])
        x = tl.load(counts + e, mask=e < E, other=0.0) / tl.maximum(count, 1)
        m = tl.load(number + e, mask=e < E, other=-1)
        held = valid & (m >= 0)[:, None]
        # Twins add equal numbers, in whatever order.
        row = tokens + m[:, None] * (P + 1) + slots // S
        tl.atomic_add(row, tl.broadcast_to(x[:, None], slots.shape), mask=held)
    tl.debug_barrier()
    r = tl.arange(0, blocks[2])
    loads = tl.zeros((blocks[2],), tl.float64)
    for s in range(S):
        loads += tl.load(shares + r * S + s, mask=r < P, other=0.0)
    return loads


@triton.jit
def _levels(tokens, parents, loads, found, P: tl.constexpr, P_BLOCK: tl.constexpr):
    """The mean rank load of each rank's part of the forest ``[P]``; a part ends where tokens cannot pass.

    ``tokens [M, P + 1]``: see `_split_evenly`. ``parents [M]``: ranks. ``loads [P]``: of ranks. ``found``: experts.
    """
    r = tl.arange(0, P_BLOCK)
    part = tl.full((P_BLOCK,), -1, tl.int32)
    count = tl.zeros((), tl.int32)
    nothing = NOTHING * tl.max(loads, axis=0)
    for m in range(found):
        taken = tl.load(tokens + m * (P + 1) + r, mask=r < P, other=-1.0)
        parent = r == tl.load(parents + m)
        above = tl.sum(tl.where(parent, loads, 0.0), axis=0)
        given = tl.sum(tl.where(parent, taken, 0.0), axis=0)
        own = tl.max(tl.where(parent, part, -1), axis=0)
        root = (own < 0).to(tl.int32)
        own = tl.where(own < 0, count, own)
        count += root
        high = (taken <= nothing) & (loads > above + nothing)
        low = loads < tl.where(given <= nothing, above - nothing, -1.0)
        new = (taken >= 0.0) & (part < 0)
        apart = (new & (high | low)).to(tl.int32)
        part = tl.where(new, tl.where(apart > 0, count + tl.cumsum(apart, axis=0) - 1, own), part)
        count += tl.sum(apart, axis=0)
    means = tl.zeros((P_BLOCK,), tl.float64)
    for one in range(count):
        inside = part == one
        total = tl.sum(tl.where(inside, loads, 0.0), axis=0)
        means = tl.where(inside, total / tl.sum(inside.to(tl.int32), axis=0), means)
    return means


@triton.jit
def _hand_inwards(tokens, parents, loads, found, P: tl.constexpr, P_BLOCK: tl.constexpr):
    """Fill ranks up to the mean of their part, from the leaves to the roots; parents take the rest.

    ``tokens [M, P + 1]``: see `_split_evenly`, changed. ``parents [M]``: ranks. ``loads [P]``: of ranks. ``found``:
    experts. Returns the rank loads after it.
    """
    r = tl.arange(0, P_BLOCK)
    levels = _levels(tokens, parents, loads, found, P, P_BLOCK)
    for i in range(found):
        m = found - 1 - i
        row = tokens + m * (P + 1)
        x = tl.load(row + P)
        parent = r == tl.load(parents + m)
        mine = tl.load(row + r, mask=r < P, other=-1.0)
        held = mine >= 0.0
        others = loads - tl.where(held, mine, 0.0)
        room = tl.where(held & (parent == 0), tl.maximum(levels - others, 0.0), 0.0)
        part = tl.minimum(room, tl.maximum(x - (tl.cumsum(room, axis=0) - room), 0.0))
        rest = tl.maximum(x - tl.sum(part, axis=0), 0.0)
        part = tl.where(parent, rest, part)
        loads = others + part
        tl.store(row + r, part, mask=held)
    tl.debug_barrier()
    return loads


@triton.jit
def _fill(tokens, loads, found, inwards, P: tl.constexpr, P_BLOCK: tl.constexpr):
    """Fill the ranks of each expert up to one level; returns the rank loads after it.

    ``tokens [M, P + 1]``: see `_split_evenly`, changed. ``loads [P]``: of ranks. ``found``: experts. ``inwards``:
    from the leaves to the roots.
    """
    r = tl.arange(0, P_BLOCK)
    for i in range(found):
        row = tokens + tl.where(inwards, found - 1 - i, i) * (P + 1)
        x = tl.load(row + P)
        mine = tl.load(row + r, mask=r < P, other=-1.0)
        held = mine >= 0.0
        loads = loads - tl.where(held, mine, 0.0)
        level = _level(loads, held, x)
        part = tl.where(held & (loads < level), level - loads, 0.0)
        loads = tl.where(held, tl.maximum(loads, level), loads)
        tl.store(row + r, part, mask=held)
    tl.debug_barrier()
    return loads


@triton.jit
def _copy(source, target, size, BLOCK: tl.constexpr):
    """Copy ``size`` numbers. ``source [size]``; ``target [size]`` is written."""
    i = tl.arange(0, BLOCK)
    for start in range(0, size, BLOCK):
        some = start + i < size
        tl.store(target + start + i, tl.load(source + start + i, mask=some, other=0.0), mask=some)
    tl.debug_barrier()


@triton.jit
def _hand_and_fill(tokens, kept, parents, loads, found, inwards, sizes: tl.constexpr, blocks: tl.constexpr):
    """Hand on, then fill; where that leaves a rank busier than before, fill and nothing else; returns rank loads.

    ``tokens [M, P + 1]``: see `_split_evenly`, changed. ``kept [M, P + 1]``: as they were. ``parents [M]``: ranks.
    ``loads [P]``: of ranks. ``found``: experts. ``inwards``: whether to fill inwards as well after handing on.
    """
    P: tl.constexpr = sizes[2]
    before, largest = loads, tl.max(loads, axis=0) * (1.0 + ROUNDING)
    _copy(tokens, kept, found * (P + 1), blocks[0])
    loads = _hand_inwards(tokens, parents, loads, found, P, blocks[2])
    if inwards:
        loads = _fill(tokens, loads, found, True, P, blocks[2])
    loads = _fill(tokens, loads, found, False, P, blocks[2])
    if tl.max(loads, axis=0) > largest:
        _copy(kept, tokens, found * (P + 1), blocks[0])
        loads = _fill(tokens, before, found, True, P, blocks[2])
        loads = _fill(tokens, loads, found, False, P, blocks[2])
    return loads


@triton.jit
def split_layer(
    counts, maps, forest, scratch, shares, sweeps, most, sizes: tl.constexpr, blocks: tl.constexpr
):
    """Sweep one layer, one program each; see `equipoise.planning.sweeps`.

    ``counts [L, E]``: tokens in float64. ``maps``: ``log2phy [L, E, X]``, ``logcnt [L, E]``. ``forest``: ``experts
    [L, M]``, ``parents [L, M]``. ``scratch``: ``number [L, E]``, ``tokens`` and ``kept [L, M, P + 1]``. ``shares [L,
    R]``: zeros, written. ``sweeps``: how many. ``most``: ``M``. ``sizes``: ``E, X, P, S``. ``blocks``: of ``E``,
    ``X``, ``P``, and rows of ``[E, X]`` that are looked at together.
    """
    E: tl.constexpr = sizes[0]
    X: tl.constexpr = sizes[1]
    P: tl.constexpr = sizes[2]
    layer = tl.program_id(0).to(tl.int64)
    counts, shares = counts + layer * E, shares + layer * P * sizes[3]
    maps = (maps[0] + layer * E * X, maps[1] + layer * E)
    parents = forest[1] + layer * most
    number, tokens = scratch[0] + layer * E, scratch[1] + layer * most * (P + 1)
    kept = scratch[2] + layer * most * (P + 1)
    found = _number_shared(counts, forest[0] + layer * most, number, tokens, most, sizes, blocks[0])
    loads = _split_evenly(counts, maps, number, tokens, shares, sizes, blocks)
    for sweep in range(sweeps):
        if sweep < HANDING:
            loads = _hand_and_fill(tokens, kept, parents, loads, found, sweep > 0, sizes, blocks)
        else:
            loads = _fill(tokens, loads, found, True, P, blocks[2])
            loads = _fill(tokens, loads, found, False, P, blocks[2])
    _write_shares(maps, number, tokens, shares, sweeps, sizes, blocks)


@triton.jit
def _write_shares(maps, number, tokens, shares, sweeps, sizes: tl.constexpr, blocks: tl.constexpr):
    """Tokens to parts of their sum; evenly where there are none, and for experts that are not shared.

    ``maps``: ``log2phy [E, X]``, ``logcnt [E]``. ``number [E]``: see `_number_shared`. ``tokens [M, P + 1]``: by
    rank. ``sweeps``: how many there were. ``shares [R]`` is written.
    """
    E: tl.constexpr = sizes[0]
    X: tl.constexpr = sizes[1]
    P: tl.constexpr = sizes[2]
    S: tl.constexpr = sizes[3]
    k = tl.arange(0, blocks[1])[None, :]
    for start in range(0, E, blocks[3]):
        e, count, slots, valid = _row_slots(maps[0], maps[1], start, E, X, blocks[3], blocks[1])
        m = tl.where(sweeps > 0, tl.load(number + e, mask=e < E, other=-1), -1)[:, None]
        shared = valid & (m >= 0)
        before = tl.load(maps[0] + e[:, None] * X + k - 1, mask=valid & (k > 0), other=-S).to(tl.int32)
        part = tl.load(tokens + m * (P + 1) + slots // S, mask=shared, other=0.0)
        # Twins share a rank: the first of them takes all.
        part = tl.where((k > 0) & (before // S == slots // S), 0.0, part)
        total = tl.sum(part, axis=1)[:, None]
        own = tl.load(tokens + m * (P + 1) + P, mask=shared, other=0.0)
        even = tl.broadcast_to((1.0 / tl.maximum(count, 1).to(tl.float64))[:, None], slots.shape)
        filled = shared & (total > 0.0) & (own > 0.0)
        tl.store(shares + slots, tl.where(filled, part / tl.where(total > 0.0, total, 1.0), even), mask=valid)
