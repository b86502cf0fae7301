"""Splitting and assigning with kernels for Triton: what `torch_backend` does, in one launch and in three.

The same contract: nothing is read back, shapes hang on nothing but shapes, values are not looked at.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .maps import DeviceMaps
from .torch_backend import by_number, split_activated
from .triton_slots import count_block, cut_experts, place_block
from .triton_sweeps import split_layer

__all__ = ["assign", "by_number", "split_activated", "split_batch"]

TILE = 512  # numbers that a warp looks at together: with 2,048 a layer of 64 places an expert does not fit registers
ENTRIES = 128  # of a block; each is compared with all others of its block
EXACT = {"enable_fp_fusion": False}  # a fused product and sum rounds once, the reference twice


def _power(number: int) -> int:
    """The power of two that holds a number."""
    return int(triton.next_power_of_2(max(number, 1)))


def _sizes(maps: DeviceMaps) -> tuple[int, int, int, int]:
    """``E, X, P, S``."""
    _, num_experts, width = maps.log2phy.shape
    return num_experts, width, maps.num_ranks, maps.num_slots // maps.num_ranks


def _tensors(maps: DeviceMaps) -> tuple[Tensor, Tensor]:
    return maps.log2phy.contiguous(), maps.logcnt.contiguous()


def split_batch(counts: Tensor, maps: DeviceMaps, sweeps: int) -> Tensor:
    """Token shares ``[L, R]`` in float64 of counts ``[L, E]``; see `equipoise.split_batch`."""
    num_layers, num_experts = counts.shape
    sizes = _sizes(maps)
    width, ranks = _power(sizes[1]), _power(maps.num_ranks)
    warps = max(1, min(8, ranks // 64))
    rows = max(1, min(warps * TILE // width, _power(num_experts)))
    blocks = (_power(num_experts), width, ranks, rows)
    counts = counts.to(torch.float64).contiguous()
    most = maps.experts.shape[1]
    number = torch.empty((num_layers, num_experts), dtype=torch.int32, device=counts.device)
    tokens = counts.new_empty((num_layers, most, maps.num_ranks + 1))
    shares = counts.new_zeros((num_layers, maps.num_slots))
    forest = tuple(part.contiguous() for part in (maps.experts, maps.parents))
    scratch = (number, tokens, torch.empty_like(tokens))
    split_layer[(num_layers,)](
        counts, _tensors(maps), forest, scratch, shares, sweeps, most, sizes, blocks,
        num_warps=warps, **EXACT,
    )  # fmt: skip
    return shares


def assign(topk: Tensor, shares: Tensor | None, maps: DeviceMaps) -> Tensor:
    """Slots ``[L, N]`` of experts ``[L, N]``, by shares ``[L, R]`` or evenly; see `equipoise.assign`."""
    topk = topk.contiguous()
    num_layers, entries = topk.shape
    sizes, tensors = _sizes(maps), _tensors(maps)
    slots = torch.empty((num_layers, entries), dtype=torch.int64, device=topk.device)
    if not slots.numel():
        return slots
    blocks = triton.cdiv(entries, ENTRIES)
    counts = slots.new_empty((num_layers, blocks, sizes[0]), dtype=torch.int32)
    ends = torch.empty_like(tensors[0], dtype=torch.int32)
    grid = (blocks, num_layers)
    count_block[grid](topk, counts, entries, sizes[0], ENTRIES, _power(sizes[0] + 1), **EXACT)
    part = counts if shares is None else shares.to(torch.float64).contiguous()
    experts = (triton.cdiv(sizes[0], 16), num_layers)
    cut_experts[experts](counts, part, tensors, ends, blocks, sizes, shares is None, 16, 64, **EXACT)
    place_block[grid](topk, counts, ends, tensors, slots, entries, sizes, ENTRIES, **EXACT)
    return slots
