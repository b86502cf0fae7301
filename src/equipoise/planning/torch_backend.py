"""The Hybrid Ensemble for torch tensors, on whatever device the tensor lives on.

The same plan as the compiled kernels make, bit for bit; see `torch_stages`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..topology import Topology
from ..trace import MAX_LOAD, bad_load
from . import torch_stages as stages
from .groups import pairing_matrix, pairings


def check_tensor(tensor: Tensor, name: str) -> Tensor:
    """Finite, non-negative float64 loads ``[W, L, E]``; the tensor-side twin of `equipoise.trace.check_loads`.

    The smallest and largest load are read back, nothing else. Raises `ArgumentError` naming ``name``.
    """
    if tensor.is_meta:
        raise ArgumentError(f"{name} is on the meta device: it has a shape and no numbers to plan from")
    if tensor.is_nested:
        raise ArgumentError(f"{name} is a nested tensor: every layer needs as many experts")
    if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized:
        raise ArgumentError(f"{name} must be a dense tensor of numbers, got {tensor.layout} {tensor.dtype}")
    if tensor.ndim not in (2, 3):
        raise ArgumentError(
            f"{name} must have the axes [layers, experts] or [windows, layers, experts], "
            f"got shape {list(tensor.shape)}"
        )
    if 0 in tensor.shape:
        raise ArgumentError(f"{name} is empty: shape {list(tensor.shape)}")
    try:
        loads = tensor.detach().to(torch.float64)
    except TypeError as error:  # Apple's MPS
        raise ArgumentError(
            f"{name} is on device {tensor.device}, which has no float64: pass {name}.cpu() ({error})"
        ) from None
    low, high = torch.stack(torch.aminmax(loads)).tolist()
    if not (low >= 0 and high <= MAX_LOAD):  # both are NaN if any load is
        bad = (~((loads >= 0) & (loads <= MAX_LOAD))).nonzero()[0].tolist()
        raise ArgumentError(bad_load(name, bad, tensor[tuple(bad)].item()))
    return loads if tensor.ndim == 3 else loads[None]


def sum_windows(loads: Tensor) -> Tensor:
    """Loads ``[W, L, E]`` summed oldest window first, as `equipoise.planning.scale.sum_windows` does."""
    total = loads[0]
    for window in loads[1:]:
        total = total + window
    return total


def plan_ensemble(
    loads: Tensor, topology: Topology, kinds: Sequence[int], noise: float, max_swaps: int, seed: int
) -> Tensor:
    """Plan all layers at once; see `equipoise.Ensemble` for the parameters.

    Parameters
    ----------
    loads : ``[L, E]`` float64, of one window
    kinds : the kind of each candidate, as `orders.candidate_order` numbers them

    Returns
    -------
    ``phy2log [L, R]``, int64 on the device of ``loads``
    """
    integers = stages.to_integers(loads)
    experts, greedy_experts = experts_of_nodes(loads, topology)
    sub_loads, greedy_loads = (
        integers.gather(1, part.view(integers.shape)).view_as(part) for part in (experts, greedy_experts)
    )
    nodes = topology.num_nodes if topology.hierarchical else 1
    ranks, slots = topology.num_ranks // nodes, topology.num_slots // nodes
    phy2sub, greedy2sub = _plan_flat(sub_loads, greedy_loads, ranks, slots, kinds, noise, max_swaps, seed)
    shape = (len(loads), topology.num_slots)
    phy2log = experts.gather(1, phy2sub).view(shape)
    greedy = greedy_experts.gather(1, greedy2sub).view(shape)
    return _better(integers, greedy, phy2log, topology)


def experts_of_nodes(loads: Tensor, topology: Topology) -> tuple[Tensor, Tensor]:
    """The experts of each sub-layer ``[B, E / N]``, of the ensemble and of `greedy`, for loads ``[L, E]``."""
    shape = (-1, loads.shape[1] // topology.num_nodes) if topology.hierarchical else loads.shape
    every = torch.arange(loads.shape[1], device=loads.device).repeat(len(loads), 1)
    integers = stages.to_integers(loads)

    def in_groups(exact: bool) -> Tensor:
        groups = groups_to_nodes(integers, topology, exact=exact)[:, :, None]
        by_group = every.view(len(loads), topology.num_groups, -1)
        return by_group.gather(1, groups.expand_as(by_group)).view(shape)

    # Greedy orders the experts of a single node by group too.
    greedy = topology.hierarchical or topology.num_nodes == 1 < topology.num_groups
    return in_groups(True) if topology.hierarchical else every, in_groups(False) if greedy else every


def _plan_flat(
    loads: Tensor,
    greedy_loads: Tensor,
    num_ranks: int,
    num_slots: int,
    kinds: Sequence[int],
    noise: float,
    max_swaps: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """``phy2log [B, R]`` of the ensemble and of `greedy`, in one batch: most steps wait for the one before."""
    layers, num_experts = loads.shape
    both = torch.cat([loads, greedy_loads])
    logcnt, item_expert = stages.replicate(both, num_slots)
    weight = stages.item_weights(both, logcnt, item_expert)
    lpt = stages.lpt_order(weight)
    orders = stages.candidate_orders(weight[:layers], lpt[:layers], kinds, noise, seed)
    members = stages.collect(lpt, stages.pack_best(orders, weight, lpt[layers:], num_ranks), num_ranks)
    greedy = item_expert[layers:]
    weight, item_expert = weight.gather(1, lpt), item_expert.gather(1, lpt)
    if num_slots > num_ranks:  # with one slot a rank, greedy does not sort
        greedy = item_expert[layers:].gather(1, members[layers:].flatten(1))
    weight, item_expert, members = weight[:layers], item_expert[:layers], members[:layers]
    stages.separate(weight, item_expert, members, num_experts)
    stages.refine(weight, item_expert, members, num_experts, max_swaps)
    return item_expert.gather(1, members.flatten(1)), greedy


def _better(loads: Tensor, greedy: Tensor, phy2log: Tensor, topology: Topology) -> Tensor:
    """The layers of `greedy` that are better and have no avoidable twins, else those of ``phy2log``."""
    num_layers, num_experts = loads.shape
    nodes = topology.num_nodes if topology.hierarchical else 1
    by_node = greedy.view(num_layers * nodes, topology.num_ranks // nodes, topology.slots_per_rank)
    # Experts that live on another node are on no rank of this one, so on not all of them: no twins either.
    _, avoidable = stages.find_twins(by_node, num_experts)
    largest = stages.largest_loads(loads, phy2log, topology.num_ranks)
    better = stages.largest_loads(loads, greedy, topology.num_ranks) < largest
    better &= ~avoidable.view(num_layers, -1).any(dim=1)
    return torch.where(better[:, None], greedy, phy2log)


def groups_to_nodes(loads: Tensor, topology: Topology, *, exact: bool) -> Tensor:
    """The groups of each node ``[L, G]``, as `groups.groups_to_nodes` finds them."""
    num_layers, num_experts = loads.shape
    num_groups, num_nodes = topology.num_groups, topology.num_nodes
    every = torch.arange(num_groups, device=loads.device).repeat(num_layers, 1)
    if num_groups == num_nodes:
        return every
    group_loads = loads.view(num_layers, num_groups, num_experts // num_groups).sum(dim=2)
    table = pairings(num_groups, num_nodes) if exact else None
    if table is not None:
        matrix = torch.tensor(pairing_matrix(num_groups, num_nodes), device=loads.device)
        node_loads = (group_loads.to(torch.float64) @ matrix).view(num_layers, len(table), num_nodes)
        best = node_loads.amax(dim=2).argmin(dim=1)
        return stages.sorted_items(torch.tensor(table, device=loads.device)[best])
    lpt = stages.lpt_order(group_loads)
    members = stages.collect(lpt, stages.pack_best(lpt[:, None], group_loads, lpt[:0], num_nodes), num_nodes)
    if exact:
        stages.refine(group_loads.gather(1, lpt), every, members, num_groups, 4 * num_groups)
    return lpt.gather(1, members.flatten(1))


def invert(phy2log: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """The slots of each expert ``log2phy [L, E, X]``, padded with -1, and replica counts ``logcnt [L, E]``.

    ``X``, the largest count, shapes the result and is read back.
    """
    num_layers, num_slots = phy2log.shape
    slots = stages.sorted_items(phy2log)
    owners = phy2log.gather(1, slots)
    experts = torch.arange(num_experts, device=phy2log.device).repeat(num_layers, 1)
    first = torch.searchsorted(owners, experts)
    logcnt = torch.searchsorted(owners, experts, right=True) - first
    width = int(logcnt.max())
    nth = torch.arange(num_slots, device=phy2log.device) - first.gather(1, owners)
    log2phy = phy2log.new_full((num_layers, num_experts * width), -1)
    log2phy.scatter_(1, owners * width + nth, slots)
    return log2phy.view(num_layers, num_experts, width), logcnt
