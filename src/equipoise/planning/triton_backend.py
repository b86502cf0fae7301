"""The Hybrid Ensemble for torch tensors on a GPU, with kernels for Triton: four launches and two for the maps.

The same plan as the compiled kernels make, bit for bit. Where experts stay on nodes, their groups are placed by the
torch operations of `torch_backend`. Nothing is read back but the largest replica count, which shapes ``log2phy``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from ..topology import Topology
from . import torch_backend
from .triton_mend import choose, count_replicas, list_slots, mend
from .triton_orders import pack_candidate, weigh

MOST_SLOTS = 4096  # of a sub-layer: a program holds one number for each
EXACT = {"enable_fp_fusion": False}  # a fused product and sum rounds once, the compiled kernels twice


def _power(number: int) -> int:
    """The power of two that holds a number."""
    return int(triton.next_power_of_2(number))


def plan_ensemble(
    loads: Tensor, topology: Topology, kinds: Sequence[int], noise: float, max_swaps: int, seed: int
) -> Tensor:
    """Plan all layers at once; parameters and result are those of `torch_backend.plan_ensemble`."""
    nodes = topology.num_nodes if topology.hierarchical else 1
    slots, ranks = topology.num_slots // nodes, topology.num_ranks // nodes
    if slots > MOST_SLOTS:
        return torch_backend.plan_ensemble(loads, topology, kinds, noise, max_swaps, seed)
    experts = torch.cat(torch_backend.experts_of_nodes(loads, topology)).contiguous()
    rows, num_experts = experts.shape
    sizes = (num_experts, slots, ranks, nodes, rows // 2, len(kinds))
    blocks = tuple(map(_power, (num_experts * nodes, num_experts, slots, ranks, len(kinds))))
    ends = tuple(sum(kind <= last for kind in kinds) for last in range(3))
    items = _weigh(loads.contiguous(), experts, sizes, blocks)
    packed = _pack(items, (*ends, float(noise)), seed, sizes, blocks)
    results = _mend(items, packed, max_swaps, sizes, blocks)
    phy2log = experts.new_empty((len(loads), topology.num_slots))
    choose[(len(loads),)](results, experts, phy2log, sizes, blocks, **EXACT)
    return phy2log


Sizes = tuple[int, ...]
"""``E, R, P, N, B, C`` of `triton_mend.mend`"""


def _weigh(loads: Tensor, experts: Tensor, sizes: Sizes, blocks: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """``lpt``, ``owner`` and ``weight`` of items ``[2 B, R]``."""
    share = torch.empty_like(experts)
    owner, weight, lpt = (experts.new_empty((len(experts), sizes[1])) for _ in range(3))
    weigh[(len(experts),)](loads, experts, share, owner, weight, lpt, sizes, blocks, **EXACT)
    return lpt, owner, weight


def _pack(
    items: tuple[Tensor, Tensor, Tensor], recipe: tuple[float, ...], seed: int, sizes: Sizes, blocks: Sizes
) -> tuple[Tensor, Tensor, Tensor]:
    """Items in order and their ranks ``[B, C + 1, R]``, and largest rank loads ``[B, C + 1]``."""
    lpt, _, weight = items
    shape = (sizes[4], sizes[5] + 1, sizes[1])
    order, steps = (lpt.new_empty(shape) for _ in range(2))
    ranks, largest = lpt.new_empty(shape, dtype=torch.int16), lpt.new_empty(shape[:2])
    pack_candidate[(shape[1], shape[0])](
        (weight, lpt), (order, steps), largest, ranks, seed, sizes, blocks, recipe, num_warps=1, **EXACT
    )
    return order, ranks, largest


def _mend(
    items: tuple[Tensor, Tensor, Tensor],
    packed: tuple[Tensor, Tensor, Tensor],
    max_swaps: int,
    sizes: Sizes,
    blocks: Sizes,
) -> tuple[Tensor, Tensor, Tensor]:
    """Experts of slots ``[2 B, R]``, largest rank loads and whether there are avoidable twins ``[2 B]``."""
    lpt = items[0]
    rows, num_experts, ranks = len(lpt), sizes[0], sizes[2]
    holds = lpt.new_zeros((rows, ranks, num_experts), dtype=torch.int32)
    spread, rank_loads = holds.new_empty((rows, num_experts)), lpt.new_zeros((rows, ranks))
    rank_of = torch.empty_like(lpt, dtype=torch.int32)
    results = torch.empty_like(lpt), lpt.new_empty(rows), holds.new_empty(rows)
    state, scratch = (holds, spread, rank_loads), (rank_of, rank_of.new_empty((rows, sizes[1] // ranks)))
    mend[(rows,)](packed, items, state, scratch, results, max_swaps, sizes, blocks, **EXACT)
    return results


def invert(phy2log: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """``log2phy [L, E, X]``, padded with -1, and ``logcnt [L, E]``; ``X``, the largest count, is read back."""
    num_layers, slots = phy2log.shape
    logcnt = phy2log.new_zeros((num_layers, num_experts))
    count_replicas[(num_layers,)](phy2log, logcnt, num_experts, slots, _power(slots), **EXACT)
    width = int(logcnt.max())
    log2phy = phy2log.new_full((num_layers, num_experts, width), -1)
    blocks = (_power(num_experts), _power(slots))
    list_slots[(num_layers,)](
        phy2log, logcnt, torch.empty_like(logcnt), log2phy, width, num_experts, slots, blocks, **EXACT
    )
    return log2phy, logcnt
