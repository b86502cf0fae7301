"""A layer whose tokens are split by the load of each batch: rank loads are those of water-filling.

A swap or an exchange changes the split of the ranks that share experts with the ranks concerned, directly or through
others, and of no more: `settle` goes from one to the next for as long as loads change.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..planning.kernel import copy_into, kernel
from ..planning.objective import cost
from ..planning.shares import fill_expert, ranks_of_slots
from .state import FloatArray, IntArray

LEVEL = 1e-3  # of a mean rank load: loads that differ by less are level; benchmarks/bench_split.py


class Flows(NamedTuple):
    """One layer while it is searched: its placement, and the split of every window."""

    vectors: FloatArray
    """``[W, E]``: load of each expert in each window"""
    phy2log: IntArray
    """``[R]``: the expert of each slot"""
    logcnt: IntArray
    """``[E]``: replicas"""
    slots_of: IntArray
    """``[E X]``: slots of each expert in no order, from ``X`` times its number on"""
    rank_of: IntArray
    """``[R]``: the rank of each slot"""
    taken: FloatArray
    """``[W, R]``: load of each slot"""
    rank_loads: FloatArray
    """``[W, P]``"""
    costs: FloatArray
    """``[W]``: what the windows cost"""
    kept_taken: FloatArray
    """``[W, R]``: as it was before the step that is tried"""
    kept_loads: FloatArray
    """``[W, P]``: as they were"""
    new_costs: FloatArray
    """``[W]``: after the step that is tried"""
    queue: IntArray
    """``[E]``: a ring of experts to split anew"""
    queued: np.ndarray
    """``[E]``: whether an expert is in it"""
    slots_per_rank: int
    """``R / P``"""
    room: int
    """``X``: the largest number of replicas that an expert has or may get"""


@kernel
def new_flows(vectors, phy2log, num_ranks):
    """A layer and its split in every window.

    ``vectors [W, E]``: loads of experts. ``phy2log [R]``: experts of slots. ``num_ranks``: ``P``.
    """
    num_windows, num_experts = vectors.shape
    num_slots = phy2log.size
    logcnt = np.zeros(num_experts, np.int64)
    for e in phy2log:
        logcnt[e] += 1
    # No step gives an expert more replicas than there are ranks, but with few experts a plan may begin with more.
    room = max(num_ranks, logcnt.max())
    flows = Flows(
        vectors,
        phy2log.copy(),
        np.zeros(num_experts, np.int64),
        np.empty(num_experts * room, np.int64),
        ranks_of_slots(num_slots, num_ranks),
        np.zeros((num_windows, num_slots), np.float64),
        np.zeros((num_windows, num_ranks), np.float64),
        np.empty(num_windows, np.float64),
        np.empty((num_windows, num_slots), np.float64),
        np.empty((num_windows, num_ranks), np.float64),
        np.empty(num_windows, np.float64),
        np.empty(num_experts, np.int64),
        np.zeros(num_experts, np.bool_),
        num_slots // num_ranks,
        room,
    )
    for s in range(num_slots):
        e = phy2log[s]
        flows.slots_of[e * room + flows.logcnt[e]] = s
        flows.logcnt[e] += 1
    for w in range(num_windows):
        for s in range(num_slots):
            e = phy2log[s]
            flows.taken[w, s] = vectors[w, e] / flows.logcnt[e]
            flows.rank_loads[w, flows.rank_of[s]] += flows.taken[w, s]
        waiting = 0
        for e in range(num_experts):
            waiting = _enqueue(flows, e, waiting)
        settle(flows, w, waiting, 100 * waiting)
        flows.costs[w] = _cost_of(flows.rank_loads[w])
    return flows


@kernel
def _cost_of(loads):
    """What a window costs. ``loads [P]``: rank loads."""
    total = 0.0
    for load in loads:
        total += cost(load)
    return total


@kernel
def worth(rank_loads):
    """What `soft_largest` and `mean_largest` are, ranks being equally fast. ``rank_loads [W, P]``, their mean 1."""
    num_windows, num_ranks = rank_loads.shape
    soft, largest = 0.0, 0.0
    for w in range(num_windows):
        fair, fourth, top = rank_loads[w].mean(), 0.0, 0.0
        for r in range(num_ranks):
            above = max(rank_loads[w, r] - fair, 0.0)
            fourth += above * above * above * above
            top = max(top, rank_loads[w, r])
        soft += fair + np.sqrt(np.sqrt(fourth))
        largest += top
    return soft / num_windows, largest / num_windows


@kernel
def _enqueue(flows, e, waiting):
    """Put expert ``e`` behind the ``waiting`` first of the queue if it has several replicas and is not there yet.

    ``flows``: the layer. Returns how many wait then.
    """
    if flows.logcnt[e] < 2 or flows.queued[e]:
        return waiting
    flows.queued[e] = True
    flows.queue[waiting] = e
    return waiting + 1


@kernel
def enqueue_rank(flows, rank, waiting):
    """`_enqueue` for the experts of a rank. ``flows``: the layer. ``rank``: which. ``waiting``: experts that wait."""
    for s in range(rank * flows.slots_per_rank, (rank + 1) * flows.slots_per_rank):
        waiting = _enqueue(flows, flows.phy2log[s], waiting)
    return waiting


@kernel
def settle(flows, w, waiting, most):
    """Split the experts that wait, and those of ranks whose loads change by it, until loads are level.

    ``flows``: the layer. ``w``: the window. ``waiting``: experts in the queue. ``most``: splits after which to stop;
    what is reached then is a split as well, and later steps go on from it.
    """
    while waiting > 0:
        # The queue is taken in rounds: the experts that a round wakes make the next one.
        for k in range(waiting):
            flows.queued[flows.queue[k]] = False
        round_, waiting = waiting, 0
        experts = flows.queue[:round_].copy()
        for e in experts:
            most -= 1
            begin = e * flows.room
            end, x = begin + flows.logcnt[e], flows.vectors[w, e]
            changed = fill_expert(
                x, flows.slots_of, begin, end, flows.rank_of, flows.taken[w], flows.rank_loads[w]
            )
            if changed > LEVEL and most > 0:
                for k in range(begin, end):
                    waiting = enqueue_rank(flows, flows.rank_of[flows.slots_of[k]], waiting)
        if most <= 0:
            for k in range(waiting):
                flows.queued[flows.queue[k]] = False
            waiting = 0


@kernel
def _keep(flows, w):
    """Remember window ``w`` as it is. ``flows``: the layer."""
    copy_into(flows.kept_taken[w], flows.taken[w])
    copy_into(flows.kept_loads[w], flows.rank_loads[w])


@kernel
def _swap_slots(flows, s, t):
    """Trade the experts of slots ``s`` and ``t``, and nothing else. ``flows``: the layer."""
    a, b = flows.phy2log[s], flows.phy2log[t]
    _rename(flows, a, s, t)
    _rename(flows, b, t, s)
    flows.phy2log[s], flows.phy2log[t] = b, a


@kernel
def _rename(flows, e, s, t):
    """Put slot ``t`` in the place of slot ``s`` among those of expert ``e``. ``flows``: the layer."""
    k = e * flows.room
    while flows.slots_of[k] != s:
        k += 1
    flows.slots_of[k] = t


@kernel
def _give_slot(flows, t, b):
    """Give slot ``t`` to expert ``b``, and nothing else. ``flows``: the layer."""
    a = flows.phy2log[t]
    flows.logcnt[a] -= 1
    _rename(flows, a, t, flows.slots_of[a * flows.room + flows.logcnt[a]])
    flows.slots_of[b * flows.room + flows.logcnt[b]] = t
    flows.logcnt[b] += 1
    flows.phy2log[t] = b


@kernel
def try_step(flows, t, u, b, most, limit):
    """Take a step if it raises the cost of all windows together by less than ``limit``; returns whether it does.

    ``flows``: the layer. ``t``: a slot. ``u``: the slot that it swaps with, or -1: it takes expert ``b``. ``most``:
    splits of a window.
    """
    a, num_ranks = flows.phy2log[t], flows.rank_loads.shape[1]
    if u >= 0:
        _swap_slots(flows, t, u)
        other = u
    else:
        _give_slot(flows, t, b)
        other = flows.slots_of[a * flows.room]
    # No window costs less than level ranks do: windows that are left can gain no more than that.
    change, room = 0.0, 0.0
    for w in range(flows.costs.size):
        room += flows.costs[w] - num_ranks
    seen = 0
    while seen < flows.costs.size and change < room + limit:
        w = seen
        _keep(flows, w)
        back = flows.taken[w, u] if u >= 0 else 0.0
        moved = flows.taken[w, t]
        flows.taken[w, t] = back
        flows.taken[w, other] += moved - back
        flows.rank_loads[w, flows.rank_of[t]] += back - moved
        flows.rank_loads[w, flows.rank_of[other]] += moved - back
        waiting = enqueue_rank(flows, flows.rank_of[t], 0)
        waiting = enqueue_rank(flows, flows.rank_of[other], waiting)
        settle(flows, w, waiting, most)
        flows.new_costs[w] = _cost_of(flows.rank_loads[w])
        change += flows.new_costs[w] - flows.costs[w]
        room -= flows.costs[w] - num_ranks
        seen += 1
    if seen == flows.costs.size and change < limit:
        copy_into(flows.costs, flows.new_costs)
        return True
    for w in range(seen):
        copy_into(flows.taken[w], flows.kept_taken[w])
        copy_into(flows.rank_loads[w], flows.kept_loads[w])
    if u >= 0:
        _swap_slots(flows, t, u)
    else:
        _give_slot(flows, t, a)
    return False
