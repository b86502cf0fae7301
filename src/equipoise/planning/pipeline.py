"""The one-window pipeline that `greedy`, `chunked` and `ensemble` are settings of.

Replicate, order the items of a layer in one way or many, pack each order, keep the packing with the smallest largest
rank load, part its twins, refine it by swaps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..topology import Topology
from .groups import plan_by_node
from .kernel import copy_into, for_layers, kernel
from .orders import candidate_order, candidate_state, lpt_order
from .pack import UNREACHED, pack_chunked, pack_greedy, scatter
from .refine import collect, has_avoidable_twins, rank_of_members, refine_layer, separate_layer
from .replicate import item_weights, largest_load, replicate_layer
from .scale import to_integers

IntArray = npt.NDArray[np.int64]


class Recipe(NamedTuple):
    """The settings that tell one policy of this pipeline from another."""

    kinds: IntArray
    """``[C]``: the kind of each candidate order, as `candidate_order` numbers them"""
    noise: float
    """of noisy orders: weights are multiplied by a number uniform in [1 - noise, 1 + noise)"""
    chunked: bool
    """pack chunk by chunk (`pack_chunked`) instead of item by item (`pack_greedy`)"""
    max_swaps: int
    """refining swaps for a layer"""


class Packing(NamedTuple):
    """One layer on its way through the stages. Items are replicas; ``R`` of them, ``S`` on each of ``P`` ranks."""

    logcnt: IntArray
    """``[E]``"""
    item_expert: IntArray
    """``[R]``: the expert of each item"""
    weight: IntArray
    """``[R]``: the load of each item"""
    lpt: IntArray
    """``[R]``: items, heaviest first"""
    order: IntArray
    """``[R]``: items in a candidate's order"""
    rank_of: IntArray
    """``[R]``: the rank of each item in the packing that is kept"""
    tried: IntArray
    """``[R]``: the same in the packing that is tried"""
    members: IntArray
    """``[P, S]``: the items of each rank, heaviest first"""
    rank_loads: IntArray
    """``[P]``"""
    room: IntArray
    """``[P]``: scratch, places left or filled"""


@kernel
def new_packing(num_experts, num_slots, num_ranks):
    """Room for one layer: ``num_experts`` ``E``, ``num_slots`` ``R``, ``num_ranks`` ``P``."""
    return Packing(
        np.empty(num_experts, np.int64),
        np.empty(num_slots, np.int64),
        np.empty(num_slots, np.int64),
        np.empty(num_slots, np.int64),
        np.empty(num_slots, np.int64),
        np.empty(num_slots, np.int64),
        np.empty(num_slots, np.int64),
        np.empty((num_ranks, num_slots // num_ranks), np.int64),
        np.empty(num_ranks, np.int64),
        np.empty(num_ranks, np.int64),
    )


@kernel
def write_slots(packing, phy2log):
    """The packing that is kept, as experts of slots ``phy2log [R]``. ``packing``: the layer."""
    ranks = packing.rank_loads.size
    scatter(packing.lpt, packing.rank_of, packing.item_expert, ranks, phy2log, packing.room)


@kernel
def _keep_best(packing, recipe, seed, layer):
    """Pack every candidate order and keep the packing with the smallest largest rank load.

    ``packing``: the layer, its items weighed and sorted. ``recipe``: `Recipe`. ``seed``, ``layer``: of the draws.
    """
    num_ranks, order = packing.rank_loads.size, packing.order
    best = UNREACHED
    for candidate in range(recipe.kinds.size):
        state = candidate_state(seed, layer, candidate)
        candidate_order(recipe.kinds[candidate], state, packing.weight, packing.lpt, recipe.noise, order)
        # A candidate that reaches the best so far cannot win: equals go to the earlier one.
        if recipe.chunked:
            largest = pack_chunked(
                order, packing.weight, num_ranks, packing.tried, packing.rank_loads, packing.room
            )
        else:
            largest = pack_greedy(order, packing.weight, num_ranks, best, packing.tried, packing.room)
        if largest < best:
            best = largest
            copy_into(packing.rank_of, packing.tried)


@kernel
def _mend(packing, max_swaps):
    """Part the twins of the packing that is kept, and refine it by ``max_swaps`` swaps. ``packing``: the layer."""
    weight, item_expert, members = packing.weight, packing.item_expert, packing.members
    collect(packing.lpt, packing.rank_of, weight, members, packing.rank_loads, packing.room)
    separate_layer(weight, item_expert, members, packing.rank_loads)
    refine_layer(weight, item_expert, max_swaps, members, packing.rank_loads)
    rank_of_members(members, packing.rank_of)


@kernel
def _pack_layers(first, last, expert_loads, num_ranks, recipe, seed, phy2log):
    """Layers ``first`` to ``last`` of ``expert_loads [L, E]`` (integers) by a recipe.

    ``num_ranks``: ``P``. ``recipe``: `Recipe`, or ``None`` for one packing in LPT order, left as it is. ``seed``: of
    the draws. ``phy2log [L, R]`` is written.
    """
    num_slots = phy2log.shape[1]
    packing = new_packing(expert_loads.shape[1], num_slots, num_ranks)
    for layer in range(first, last):
        replicate_layer(expert_loads[layer], num_slots, packing.logcnt, packing.item_expert)
        if recipe is None and num_slots == num_ranks:  # nothing to balance: slots in the order of the awards
            copy_into(phy2log[layer], packing.item_expert)
            continue
        item_weights(expert_loads[layer], packing.logcnt, packing.item_expert, packing.weight)
        lpt_order(packing.weight, packing.lpt)
        if recipe is None:  # Numba leaves the other branch out, so that greedy compiles in half the time
            pack_greedy(packing.lpt, packing.weight, num_ranks, UNREACHED, packing.rank_of, packing.room)
        else:
            _keep_best(packing, recipe, seed, layer)
            _mend(packing, recipe.max_swaps)
        write_slots(packing, phy2log[layer])


def pack_layers(
    loads: npt.NDArray[Any], topology: Topology, recipe: Recipe | None, seed: int, *, exact_groups: bool
) -> IntArray:
    """Plan layers by a recipe: node by node where the topology is hierarchical, else all ranks at once.

    Parameters
    ----------
    loads : ``[L, E]``, of one window
    recipe : ``None`` for one packing in LPT order, left as it is
    seed : of the candidate orders
    exact_groups : see `groups_to_nodes`

    Returns
    -------
    ``phy2log [L, R]``
    """

    def flat(expert_loads: IntArray, num_ranks: int, num_slots: int) -> IntArray:
        phy2log = np.empty((len(expert_loads), num_slots), np.int64)
        for_layers(_pack_layers, len(expert_loads), expert_loads, num_ranks, recipe, seed, phy2log)
        return phy2log

    return plan_by_node(loads, topology, flat, exact_groups=exact_groups)


@kernel
def _take_better(first, last, expert_loads, other, num_ranks, ranks_per_node, phy2log):
    """Layers ``first`` to ``last``: take those of ``other [L, R]`` that are better and have no avoidable twins.

    ``expert_loads [L, E]``: integers. ``num_ranks``: ``P``. ``ranks_per_node``: see `has_avoidable_twins`. ``phy2log
    [L, R]`` is changed.
    """
    num_slots = phy2log.shape[1]
    logcnt = np.empty(expert_loads.shape[1], np.int64)
    weight = np.empty(num_slots, np.int64)
    slots = np.arange(num_slots).reshape(num_ranks, num_slots // num_ranks)
    for layer in range(first, last):
        largest = largest_load(expert_loads[layer], phy2log[layer], num_ranks, logcnt, weight)
        less = largest_load(expert_loads[layer], other[layer], num_ranks, logcnt, weight) < largest
        if less and not has_avoidable_twins(other[layer], slots, ranks_per_node):
            copy_into(phy2log[layer], other[layer])


def better_layers(
    loads: npt.NDArray[Any], topology: Topology, phy2log: IntArray, other: IntArray
) -> IntArray:
    """Of two plans the better one of each layer, of equals the first; one with avoidable twins is no better.

    Parameters
    ----------
    loads : ``[L, E]``, of one window
    phy2log : ``[L, R]``, without avoidable twins
    other : ``[L, R]``

    Returns
    -------
    ``phy2log [L, R]``
    """
    result: IntArray = phy2log.copy()
    ranks = topology.ranks_per_node if topology.hierarchical else topology.num_ranks
    for_layers(_take_better, len(result), to_integers(loads), other, topology.num_ranks, ranks, result)
    return result
