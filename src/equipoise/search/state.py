"""A layer in the search, and the steps that the search takes, as kernels see them.

Letters: ``W`` windows, ``E`` experts, ``P`` ranks, ``R`` slots, ``B`` layers, ``K`` steps. Loads of experts, slots
and ranks are multiples of the window's mean rank load.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..planning.kernel import copy_into, kernel
from ..planning.objective import burden, cost

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
SPEED, PACE, BURDEN = 0, 1, 2
LANES = 4  # windows that bounds of swaps are added up for at once


class Layers(NamedTuple):
    """The layers that a search is asked to place."""

    vectors: FloatArray
    """``[B, W, E]``: load of each expert in each window"""
    home: IntArray
    """``[B, E]``: the node that keeps one replica of an expert, -1 for none"""
    num_ranks: int
    """``P``"""
    ranks_per_node: int
    """ranks of a node, where ``home`` names nodes"""
    speed: FloatArray
    """``[B, P]``: speed of each rank, a multiple of the mean speed"""


class Partners(NamedTuple):
    """What slots trade places well, and what the swaps of one rank gain at most (`search.partners`)."""

    offsets: FloatArray
    """``[R, W', LANES]``: load of each slot less half the load of its rank in each window; ``W'`` is ``W / LANES``
    rounded up, and what is behind the windows is 0"""
    offset: FloatArray
    """``[R]``: the sum of these over windows"""
    by_offset: IntArray
    """``[R]``: these sums as integers with the slot behind them, in order"""
    rank: IntArray
    """``[R]``: the rank of each slot"""
    level: FloatArray
    """``[P]``: what swaps with each rank gain if they leave both level, -inf for the rank itself"""
    fall: FloatArray
    """``[P, W', LANES]``: what they gain less, for the square of what the slots' offsets differ by in a window"""
    least: FloatArray
    """``[P]``: the same for the square of what the sums differ by, at least"""
    found: IntArray
    """``[R]``: scratch, slots"""


class State(NamedTuple):
    """One layer while it is searched: its placement, what follows from it, and scratch space."""

    vectors: FloatArray
    """``[W, E]``: load of each expert in each window"""
    home: IntArray
    """``[E]``: the node that keeps one replica of an expert, -1 for none"""
    logcnt: IntArray
    """``[E]``: replicas"""
    phy2log: IntArray
    """``[R]``: the expert of each slot"""
    rank_loads: FloatArray
    """``[W, P]``"""
    fetches: npt.NDArray[np.int8]
    """``[P, E]``: 1 where a rank has to fetch an expert to hold it, 0 where it holds it already"""
    rank_costs: FloatArray
    """``[P]``: each rank's part of the objective"""
    slot_loads: FloatArray
    """``[W, R]``: load of each slot"""
    around: FloatArray
    """``[W, R]``: load of each slot's rank"""
    scan: FloatArray
    """``[R]``: scratch of `search.affinity`"""
    partners: Partners
    """what `best_swap` finds partners by"""
    work: FloatArray
    """``[4, max(R, P)]``: scratch of `best_exchange`"""
    slots_per_rank: int
    """``R / P``"""
    ranks_per_node: int
    """ranks of a node, where ``home`` names nodes"""
    speeds: FloatArray
    """``[3, P]``: of each rank its SPEED, a multiple of the mean speed, its PACE, one over that, and its BURDEN, what
    its costs are multiplied by"""
    total_speed: float
    """the sum of speeds"""


class Trail(NamedTuple):
    """The steps taken from a placement, and what each prefix of them costs and is worth.

    Step ``k`` is (slot, other slot, -1) for a swap, (slot, -1, expert) for an exchange.
    """

    steps: IntArray
    """``[K, 3]``"""
    fetched: IntArray
    """``[K + 1]``: fetches of the first ``k`` steps"""
    value: FloatArray
    """``[K + 1]``: `soft_largest` after the first ``k`` steps"""
    largest: FloatArray
    """``[K + 1]``: `mean_largest` after the first ``k`` steps"""
    twins: IntArray
    """``[K + 1]``: twins after the first ``k`` steps"""


@kernel
def bounded(trail, most):
    """The same trail with room for ``most`` steps in all. ``trail``: its beginning is shared."""
    return Trail(trail.steps[:most], trail.fetched, trail.value, trail.largest, trail.twins)


@kernel
def new_state(layers, layer, num_slots):
    """The state of one layer, with room for all that follows from a placement; no placement yet.

    ``layers``: `Layers`. ``layer``: which of them. ``num_slots``: ``R``.
    """
    vectors, num_ranks, speed = layers.vectors[layer], layers.num_ranks, layers.speed[layer]
    num_windows, num_experts = vectors.shape
    speeds, total_speed = np.empty((3, num_ranks), np.float64), 0.0
    for r in range(num_ranks):
        speeds[SPEED, r], speeds[PACE, r], speeds[BURDEN, r] = speed[r], 1.0 / speed[r], burden(speed[r])
        total_speed += speed[r]
    lanes = (num_windows + LANES - 1) // LANES
    return State(
        vectors,
        layers.home[layer],
        np.empty(num_experts, np.int64),
        np.empty(num_slots, np.int64),
        np.empty((num_windows, num_ranks), np.float64),
        np.zeros((num_ranks, num_experts), np.int8),
        np.empty(num_ranks, np.float64),
        np.empty((num_windows, num_slots), np.float64),
        np.empty((num_windows, num_slots), np.float64),
        np.empty(num_slots, np.float64),
        Partners(
            np.zeros((num_slots, lanes, LANES), np.float64),
            np.empty(num_slots, np.float64),
            np.empty(num_slots, np.int64),
            np.repeat(np.arange(num_ranks), num_slots // num_ranks),
            np.empty(num_ranks, np.float64),
            np.zeros((num_ranks, lanes, LANES), np.float64),
            np.empty(num_ranks, np.float64),
            np.empty(num_slots, np.int64),
        ),
        np.empty((4, max(num_slots, num_ranks)), np.float64),
        num_slots // num_ranks,
        layers.ranks_per_node,
        speeds,
        total_speed,
    )


@kernel
def hold(state, phy2log):
    """Put a placement into a layer that is held now: every other expert of a rank is a fetch.

    ``state``: the layer. ``phy2log [R]``: the expert of each slot.
    """
    put(state, phy2log)
    state.fetches[:] = 1
    for s in range(phy2log.size):
        state.fetches[s // state.slots_per_rank, phy2log[s]] = 0


@kernel
def put(state, phy2log):
    """Put a placement into a layer; what is a fetch stays as it is.

    ``state``: the layer. ``phy2log [R]``: the expert of each slot.
    """
    copy_into(state.phy2log, phy2log)
    state.logcnt[:] = 0
    for s in range(phy2log.size):
        state.logcnt[phy2log[s]] += 1
    sum_loads(state)


@kernel
def sum_loads(state):
    """Rank loads of the placement, from nothing. ``state``: the layer."""
    vectors, logcnt, rank_loads = state.vectors, state.logcnt, state.rank_loads
    rank_loads[:] = 0.0
    for s in range(state.phy2log.size):
        e = state.phy2log[s]
        for w in range(rank_loads.shape[0]):
            rank_loads[w, s // state.slots_per_rank] += vectors[w, e] / logcnt[e]


@kernel
def refresh_rank(state, rank):
    """What follows from a rank's slots and load: its cost, and the copies for each slot that scans read in a row.

    ``state``: the layer. ``rank``: which rank has changed.
    """
    vectors, logcnt, rank_loads = state.vectors, state.logcnt, state.rank_loads
    total = 0.0
    for w in range(rank_loads.shape[0]):
        for s in range(rank * state.slots_per_rank, (rank + 1) * state.slots_per_rank):
            e = state.phy2log[s]
            state.slot_loads[w, s] = vectors[w, e] / logcnt[e]
            state.around[w, s] = rank_loads[w, rank]
        total += cost(rank_loads[w, rank])
    state.rank_costs[rank] = total * state.speeds[BURDEN, rank]


@kernel
def on_rank(expert, phy2log, first, count):
    """Whether one of ``count`` slots from slot ``first`` on holds ``expert``. ``phy2log [R]``: experts of slots."""
    for s in range(first, first + count):
        if phy2log[s] == expert:
            return True
    return False


@kernel
def holds(state, rank, expert):
    """Whether ``rank`` holds ``expert``. ``state``: the layer."""
    return on_rank(expert, state.phy2log, rank * state.slots_per_rank, state.slots_per_rank)


@kernel
def twin(state, slot):
    """Whether another slot of the rank of ``slot`` holds the same expert. ``state``: the layer."""
    phy2log, slots = state.phy2log, state.slots_per_rank
    first = slot // slots * slots
    for s in range(first, first + slots):
        if s != slot and phy2log[s] == phy2log[slot]:
            return True
    return False


@kernel
def count_twins(state):
    """Replicas that share a rank with another one of their expert, the first of each left out.

    ``state``: the layer.
    """
    phy2log, slots = state.phy2log, state.slots_per_rank
    found = 0
    for s in range(phy2log.size):
        if state.logcnt[phy2log[s]] > 1 and on_rank(phy2log[s], phy2log, s // slots * slots, s % slots):
            found += 1
    return found


@kernel
def may_leave(state, expert, rank):
    """Whether ``expert`` may leave ``rank``: not if this is its last replica on the node that it is tied to.

    ``state``: the layer.
    """
    node = state.home[expert]
    if node < 0 or rank // state.ranks_per_node != node:
        return True
    found = 0
    slots_of_node = state.ranks_per_node * state.slots_per_rank
    for s in range(node * slots_of_node, (node + 1) * slots_of_node):
        if state.phy2log[s] == expert:
            found += 1
    return found > 1


@kernel
def may_swap(state, s, t):
    """Whether slots ``s`` and ``t`` of two ranks may trade experts: no new twin, no expert torn from its node.

    ``state``: the layer.
    """
    p, q = s // state.slots_per_rank, t // state.slots_per_rank
    a, b = state.phy2log[s], state.phy2log[t]
    if a == b or (holds(state, q, a) and not twin(state, s)) or (holds(state, p, b) and not twin(state, t)):
        return False
    if p // state.ranks_per_node == q // state.ranks_per_node:
        return True
    return may_leave(state, a, p) and may_leave(state, b, q)


@kernel
def largest_time(loads, pace):
    """The largest time of a rank: ``loads [P]`` times ``pace [P]``."""
    largest = 0.0
    for r in range(loads.size):
        largest = max(largest, loads[r] * pace[r])
    return largest


@kernel
def fair_time(loads, total_speed):
    """What all ranks take if times are equal: the sum of ``loads [P]`` over ``total_speed``, that of speeds."""
    total = 0.0
    for load in loads:
        total += load
    return total / total_speed


@kernel
def mean_largest(state):
    """The mean over windows of the largest time of a rank: the layer's in-sample imbalance. ``state``: the layer."""
    rank_loads, pace = state.rank_loads, state.speeds[PACE]
    total = 0.0
    for w in range(rank_loads.shape[0]):
        total += largest_time(rank_loads[w], pace)
    return total / rank_loads.shape[0]


@kernel
def soft_largest(state):
    """The mean over windows of the fair time and the 4-norm of what ranks take beyond it. ``state``: the layer.

    By this, steps are weighed against fetches. It is close to the largest time of a rank, but sees no gain in a step
    that lowers the largest one of a window and leaves others just below: the next window finds one of these.
    """
    rank_loads, pace = state.rank_loads, state.speeds[PACE]
    num_windows, num_ranks = rank_loads.shape
    total = 0.0
    for w in range(num_windows):
        fair = fair_time(rank_loads[w], state.total_speed)
        fourth = 0.0
        for r in range(num_ranks):
            above = max(rank_loads[w, r] * pace[r] - fair, 0.0)
            fourth += above * above * above * above
        total += fair + np.sqrt(np.sqrt(fourth))
    return total / num_windows
