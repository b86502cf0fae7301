"""Groups to nodes: the hierarchical form, in which all replicas of a group's experts stay on one node.

A layer becomes one sub-layer for each node, with the node's own experts, slots and ranks. Any planner of flat
layers solves the sub-layers, and `join` puts them together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from ..topology import Topology
from .kernel import copy_into, for_layers, kernel
from .orders import lpt_order
from .pack import UNREACHED, pack_greedy
from .refine import collect, rank_of_members, refine_layer
from .scale import to_integers

MAX_PAIRINGS = 6000  # enumerated; 12 groups on 3 nodes have 5,775. benchmarks/bench_planning.py


@lru_cache(maxsize=32)
def pairings(num_groups: int, num_nodes: int) -> npt.NDArray[np.int64] | None:
    """All ways to share groups equally among unnamed nodes: the node of each group ``[ways, G]``.

    ``None`` if there are more than 6,000 (8 groups on 4 nodes have 105).
    """
    size = num_groups // num_nodes
    count = 1
    for node in range(num_nodes):
        left = num_groups - node * size - 1  # the lowest group left opens the next node
        for k in range(size - 1):
            count = count * (left - k) // (k + 1)
        if count > MAX_PAIRINGS:
            return None
    ways: list[list[int]] = []

    def assign(nodes: list[int], node: int) -> None:
        free = [group for group in range(num_groups) if nodes[group] < 0]
        if not free:
            ways.append(nodes)
            return
        for rest in combinations(free[1:], size - 1):
            taken = nodes.copy()
            for group in (free[0], *rest):
                taken[group] = node
            assign(taken, node + 1)

    assign([-1] * num_groups, 0)
    table = np.array(ways, dtype=np.int64)
    table.flags.writeable = False
    return table


@kernel
def _pack_groups(first, last, loads, num_nodes, max_swaps, nodes, order_out):
    """Groups of layers ``first`` to ``last`` to nodes, greedily.

    ``loads [L, G]``: integers. ``num_nodes``: ``N``. ``max_swaps``: refining swaps, 0 for none. ``nodes [L, G]``, the
    node of each group, and ``order_out [L, G]``, groups heaviest first, are written.
    """
    num_groups = loads.shape[1]
    order = np.empty(num_groups, np.int64)
    room = np.empty(num_nodes, np.int64)
    group_numbers = np.arange(num_groups)
    members = np.empty((num_nodes, num_groups // num_nodes), np.int64)
    node_loads = np.empty(num_nodes, np.int64)
    for layer in range(first, last):
        lpt_order(loads[layer], order)
        pack_greedy(order, loads[layer], num_nodes, UNREACHED, nodes[layer], room)
        copy_into(order_out[layer], order)
        if max_swaps:
            collect(order, nodes[layer], loads[layer], members, node_loads, room)
            refine_layer(loads[layer], group_numbers, max_swaps, members, node_loads)
            rank_of_members(members, nodes[layer])


def groups_to_nodes(
    loads: npt.NDArray[np.int64], topology: Topology, *, exact: bool
) -> npt.NDArray[np.int64]:
    """The groups of each node, all nodes of a layer in a row.

    Parameters
    ----------
    loads : ``[L, E]`` as `to_integers` makes them
    exact : minimise the largest node load, by enumeration where there are at most 6,000 pairings and else by
        greedy packing with swaps; if false, greedy packing alone, as DeepSeek EPLB does

    Returns
    -------
    ``[L, G]``, node ``n`` has the groups at ``n * G / N`` to ``(n + 1) * G / N``. Where nodes are not equally fast,
    the heavier set of groups is on the faster node
    """
    num_layers, num_experts = loads.shape
    groups, num_nodes = topology.num_groups, topology.num_nodes
    group_loads = loads.reshape(num_layers, groups, num_experts // groups).sum(axis=-1)
    if groups == num_nodes and topology.rank_speed is None:
        return np.tile(np.arange(groups), (num_layers, 1))
    speeds = node_speeds(topology)
    table = pairings(groups, num_nodes) if exact else None
    if table is not None:
        nodes = table[best_pairing(group_loads, pairing_matrix(groups, num_nodes), speeds)]
        order = np.tile(np.arange(groups), (num_layers, 1))
    else:
        nodes = np.empty((num_layers, groups), np.int64)
        order = np.empty_like(nodes)
        swaps = 4 * groups if exact else 0
        for_layers(_pack_groups, num_layers, group_loads, num_nodes, swaps, nodes, order)
    if topology.rank_speed is not None:
        nodes = _faster_takes_more(group_loads, nodes, speeds)
    by_node = np.argsort(np.take_along_axis(nodes, order, axis=1), axis=1, kind="stable")
    return np.take_along_axis(order, by_node, axis=1)


@lru_cache(maxsize=32)
def pairing_matrix(num_groups: int, num_nodes: int) -> npt.NDArray[np.float64]:
    """Which groups a node has in a pairing: ``[G, ways * N]``, ones and zeros."""
    table = pairings(num_groups, num_nodes)
    assert table is not None
    members = table[:, None, :] == np.arange(num_nodes)[None, :, None]
    return np.ascontiguousarray(members.reshape(-1, num_groups).T.astype(np.float64))


def node_speeds(topology: Topology) -> npt.NDArray[np.float64]:
    """The speed of each node ``[N]``, the sum over its ranks; nodes are even."""
    return np.asarray(np.reshape(topology.speeds, (topology.num_nodes, -1)).sum(axis=1))


def best_pairing(
    group_loads: npt.NDArray[np.int64], matrix: npt.NDArray[np.float64], speeds: npt.NDArray[np.float64]
) -> Any:
    """The pairing with the smallest largest node load for the node's speed, the first of equals: ``[L]``.

    Pairings do not name nodes: the heavier set of groups goes to the faster node, which is best. Float64 holds these
    integer sums exactly, and its matrix product is fast.

    Parameters
    ----------
    group_loads : ``[L, G]``
    matrix : ``[G, ways * N]`` from `pairing_matrix`
    speeds : ``[N]``
    """
    node_loads = group_loads.astype(np.float64) @ matrix
    ways = int(matrix[0].sum())  # a group is on exactly one node of every pairing
    node_loads = node_loads.reshape(len(group_loads), ways, -1)
    if (speeds != speeds[0]).any():
        node_loads = np.sort(node_loads, axis=2) / np.sort(speeds)
    return node_loads.max(axis=2).argmin(axis=1)


def _faster_takes_more(
    group_loads: npt.NDArray[np.int64], nodes: npt.NDArray[np.int64], speeds: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """The node of each group ``[L, G]``, nodes renamed so that the heavier set of groups is on the faster one."""
    members = nodes[:, :, None] == np.arange(speeds.size)
    node_loads = (group_loads[:, :, None] * members).sum(axis=1)
    named = np.empty_like(node_loads)
    by_speed = np.broadcast_to(np.argsort(-speeds, kind="stable"), named.shape)
    np.put_along_axis(named, np.argsort(-node_loads, axis=1, kind="stable"), by_speed, axis=1)
    return np.take_along_axis(named, nodes, axis=1)


def split(
    loads: npt.NDArray[Any], groups_by_node: npt.NDArray[np.int64], topology: Topology
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Sub-layers of nodes.

    Parameters
    ----------
    loads : ``[..., L, E]``
    groups_by_node : ``[L, G]`` from `groups_to_nodes`

    Returns
    -------
    loads ``[..., L * N, E / N]`` of the nodes' experts, and their expert numbers ``[L * N, E / N]``
    """
    num_layers, num_experts = loads.shape[-2:]
    size = num_experts // topology.num_groups
    experts = (groups_by_node[:, :, None] * size + np.arange(size)).reshape(num_layers, num_experts)
    index = np.broadcast_to(experts, loads.shape)
    sub_loads = np.take_along_axis(loads, index, axis=-1)
    shape = (num_layers * topology.num_nodes, num_experts // topology.num_nodes)
    return sub_loads.reshape(*loads.shape[:-2], *shape), experts.reshape(shape)


def join(
    phy2sub: npt.NDArray[np.int64], experts: npt.NDArray[np.int64], num_nodes: int
) -> npt.NDArray[np.int64]:
    """Placements of sub-layers ``[L * N, R / N]`` to the placement of layers ``phy2log [L, R]``."""
    phy2log = np.take_along_axis(experts, phy2sub, axis=1)
    return phy2log.reshape(len(phy2sub) // num_nodes, phy2sub.shape[1] * num_nodes)


Flat = Callable[[npt.NDArray[np.int64], int, int], npt.NDArray[np.int64]]
"""Plans flat layers: integer loads ``[L, E]``, ranks, slots -> ``phy2log [L, R]``."""


def plan_by_node(
    loads: npt.NDArray[Any], topology: Topology, flat: Flat, *, exact_groups: bool
) -> npt.NDArray[np.int64]:
    """Plan layers with a flat planner: node by node where the topology is hierarchical, else all ranks at once.

    Parameters
    ----------
    loads : ``[L, E]``, of one window
    exact_groups : see `groups_to_nodes`

    Returns
    -------
    ``phy2log [L, R]``
    """
    integers = to_integers(loads)
    # DeepSeek EPLB orders the experts of a single node by group too, which shows wherever loads tie.
    reorder = not exact_groups and topology.num_nodes == 1 < topology.num_groups
    if not (topology.hierarchical or reorder):
        return flat(integers, topology.num_ranks, topology.num_slots)
    by_node = groups_to_nodes(integers, topology, exact=exact_groups)
    sub_loads, experts = split(integers, by_node, topology)
    return join(
        flat(sub_loads, topology.ranks_per_node, topology.slots_per_node), experts, topology.num_nodes
    )


def split_vectors(
    vectors: npt.NDArray[np.float64], groups_by_node: npt.NDArray[np.int64], topology: Topology
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """`split` for vectors ``[L, W, E]``: sub-layers ``[L * N, W, E / N]`` and their experts."""
    by_window, experts = split(vectors.transpose(1, 0, 2), groups_by_node, topology)
    return np.ascontiguousarray(by_window.transpose(1, 0, 2)), experts


def enter(
    phy2log: npt.NDArray[np.int64], experts: npt.NDArray[np.int64], topology: Topology
) -> npt.NDArray[np.int64]:
    """The inverse of `join`: a placement that keeps groups on nodes, as placements of sub-layers."""
    num_layers = len(phy2log)
    by_node = experts.reshape(num_layers, experts.shape[1] * topology.num_nodes)
    place = np.empty_like(by_node)
    size = experts.shape[1]
    np.put_along_axis(
        place, by_node, np.broadcast_to(np.arange(by_node.shape[1]) % size, by_node.shape), axis=1
    )
    shape = (num_layers * topology.num_nodes, topology.slots_per_node)
    return np.take_along_axis(place, phy2log, axis=1).reshape(shape)


def groups_are_on_nodes(
    phy2log: npt.NDArray[np.int64], num_experts: int, topology: Topology
) -> npt.NDArray[np.bool_]:
    """Whether all replicas of every group of a layer are on one node: ``[L]``, for a placement ``[L, R]``."""
    group = phy2log // (num_experts // topology.num_groups)
    node = np.arange(phy2log.shape[1]) // topology.slots_per_node
    present = np.zeros((len(phy2log), topology.num_groups, topology.num_nodes), np.bool_)
    present[np.arange(len(phy2log))[:, None], group, node] = True
    return np.asarray((present.sum(axis=2) == 1).all(axis=1))


def nodes_of_groups(
    holds: npt.NDArray[np.bool_], topology: Topology, *, whole: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Where ranks have their groups.

    Parameters
    ----------
    holds : ``[L, P, E]``, whether a rank holds an expert
    whole : a group is on a node only if all replicas of its experts are; else one replica of each is enough

    Returns
    -------
    groups_by_node : ``[L, G]`` as `groups_to_nodes` returns it
    kept : ``[L]``, whether every node of the layer has its ``G / N`` groups; rows where not mean nothing
    """
    from scipy.optimize import linear_sum_assignment

    num_layers, groups, nodes = len(holds), topology.num_groups, topology.num_nodes
    on_node = holds.reshape(num_layers, nodes, topology.ranks_per_node, -1).any(axis=2)
    by_group = on_node.reshape(num_layers, nodes, groups, -1)
    present: npt.NDArray[np.bool_] = np.asarray(by_group.all(axis=3))
    if whole:
        present &= (by_group.any(axis=3).sum(axis=1) == 1)[:, None, :]
    size = groups // nodes
    order = np.zeros((num_layers, groups), np.int64)
    kept = np.zeros(num_layers, np.bool_)
    for layer in range(num_layers):
        fits = np.repeat(present[layer], size, axis=0)
        _, order[layer] = linear_sum_assignment(fits, maximize=True)
        kept[layer] = fits[np.arange(groups), order[layer]].all()
    return order, kept


def home_of_experts(
    groups_by_node: npt.NDArray[np.int64], topology: Topology, num_experts: int
) -> npt.NDArray[np.int64]:
    """The node of each expert's group ``[L, E]``."""
    nodes = np.repeat(np.arange(topology.num_nodes), topology.num_groups // topology.num_nodes)
    node_of_group = np.empty_like(groups_by_node)
    np.put_along_axis(node_of_group, groups_by_node, np.broadcast_to(nodes, groups_by_node.shape), axis=1)
    return np.repeat(node_of_group, num_experts // topology.num_groups, axis=1)
