"""Assigning as kernels for Triton (Tillet, Kung, Cox, MAPL 2019); `triton_backend` launches them.

Sums are of integers, or of shares in the order of `torch_backend`, so nothing hangs on the order in which
programs run.

Shapes: ``L`` layers, ``E`` experts of at most ``X`` replicas, ``N`` routed entries in ``B`` blocks.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def count_block(topk, counts, entries, E: tl.constexpr, BLOCK: tl.constexpr, BINS: tl.constexpr):
    """Count the experts of one block of entries, one program each.

    ``topk [L, N]``: experts, -1 for none. ``counts [L, B, E]`` is written. ``entries``: ``N``. ``E``; ``BLOCK``
    entries of a block; ``BINS``: a power of two above ``E``.
    """
    block, layer = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i = block * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(topk + layer * entries + i, mask=i < entries, other=-1).to(tl.int32)
    found = tl.histogram(tl.where(expert < 0, E, expert), BINS)
    e = tl.arange(0, BINS)
    tl.store(counts + (layer * tl.num_programs(0) + block) * E + e, found, mask=e < E)


@triton.jit
def cut_experts(
    counts,
    shares,
    maps,
    ends,
    blocks,
    sizes: tl.constexpr,
    EVEN: tl.constexpr,
    E_BLOCK: tl.constexpr,
    B_BLOCK: tl.constexpr,
):
    """Where entries of replicas end, and how many of an expert stand before a block; one program some experts.

    ``counts [L, B, E]``: of blocks, changed to those of all blocks before. ``shares [L, R]``; not read if ``EVEN``.
    ``maps``: ``log2phy [L, E, X]``, ``logcnt [L, E]``. ``ends [L, E, X]`` is written. ``blocks``: ``B``. ``sizes``:
    ``E, X, P, S``. ``E_BLOCK``, ``B_BLOCK``: experts of a program, blocks that it looks at together.
    """
    E: tl.constexpr = sizes[0]
    X: tl.constexpr = sizes[1]
    layer = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * E_BLOCK + tl.arange(0, E_BLOCK)
    total = tl.zeros((E_BLOCK,), tl.int32)
    for start in range(0, blocks, B_BLOCK):
        b = start + tl.arange(0, B_BLOCK)[:, None]
        at = counts + (layer * blocks + b) * E + e[None, :]
        here = tl.load(at, mask=(b < blocks) & (e < E)[None, :], other=0)
        tl.store(at, total[None, :] + tl.cumsum(here, axis=0) - here, mask=(b < blocks) & (e < E)[None, :])
        total += tl.sum(here, axis=0)
    count = tl.load(maps[1] + layer * E + e, mask=e < E, other=0).to(tl.int32)
    replicas = tl.maximum(count, 1).to(tl.float64)
    log2phy, ends = maps[0] + (layer * E + e) * X, ends + (layer * E + e) * X
    shares += layer * sizes[2] * sizes[3]
    most = tl.max(count, axis=0)
    whole = tl.zeros((E_BLOCK,), tl.float64)
    for k in range(most):
        slot = tl.load(log2phy + k, mask=k < count, other=0)
        whole += (
            tl.where(k < count, 1.0 / replicas, 0.0)
            if EVEN
            else tl.load(shares + slot, mask=k < count, other=0.0)
        )
    running = tl.zeros((E_BLOCK,), tl.float64)
    for k in range(most):
        slot = tl.load(log2phy + k, mask=k < count, other=0)
        running += (
            tl.where(k < count, 1.0 / replicas, 0.0)
            if EVEN
            else tl.load(shares + slot, mask=k < count, other=0.0)
        )
        part = tl.where(whole > 0.0, running / tl.where(whole > 0.0, whole, 1.0), (k + 1.0) / replicas)
        tl.store(ends + k, tl.floor(part * total + 0.5).to(tl.int32), mask=k < count)


@triton.jit
def place_block(topk, before, ends, maps, slots, entries, sizes: tl.constexpr, BLOCK: tl.constexpr):
    """The slots of one block of entries, one program each.

    ``topk [L, N]``: experts, -1 for none. ``before [L, B, E]``: entries of experts before a block. ``ends [L, E,
    X]``: where those of replicas end. ``maps``: ``log2phy [L, E, X]``, ``logcnt [L, E]``. ``slots [L, N]`` is
    written. ``entries``: ``N``. ``sizes``: ``E, X, P, S``. ``BLOCK``: entries of a block.
    """
    E: tl.constexpr = sizes[0]
    X: tl.constexpr = sizes[1]
    block, layer = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = block * BLOCK + i < entries
    at = layer * entries + block * BLOCK + i
    expert = tl.load(topk + at, mask=inside, other=-1).to(tl.int32)
    earlier = (expert[:, None] == expert[None, :]) & (i[:, None] > i[None, :])
    some = inside & (expert >= 0)
    seen = tl.sum(earlier.to(tl.int32), axis=1)
    seen += tl.load(before + (layer * tl.num_programs(0) + block) * E + expert, mask=some, other=0)
    owner = layer * E + expert
    count = tl.load(maps[1] + owner, mask=some, other=0).to(tl.int32)
    replica = tl.zeros((BLOCK,), tl.int32)
    for k in range(tl.max(count, axis=0) - 1):  # nothing stands behind the last
        end = tl.load(ends + owner * X + k, mask=some & (k < count - 1), other=0x7FFFFFFF)
        replica += (seen >= end).to(tl.int32)
    slot = tl.load(maps[0] + owner * X + replica, mask=some & (count > 0), other=-1)
    tl.store(slots + at, slot.to(tl.int64), mask=inside)
