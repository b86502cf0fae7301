"""Experts that are hit together near each other: names of ranks that are free, and swaps that cost some balance.

Both raise the number of pairs of a token's experts that live in one place, a node, or a rank where there is one node.
The sum over places is what a partition of a graph keeps inside its parts; it is raised by swaps as Kernighan and Lin
do (An efficient heuristic procedure for partitioning graphs, Bell System Technical Journal 49, 1970), the best one
each time and none that loses.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..planning.groups import pairings
from ..planning.kernel import copy_into, for_layers, kernel
from ..planning.objective import cost
from ..planning.traffic import pair_shares
from ..topology import Topology
from .state import BURDEN, FloatArray, IntArray, Layers, hold, may_swap, new_state, refresh_rank
from .steps import swap

LEAST_GAIN = 1e-9  # of all pairs: what differs by less is rounding


class Names(NamedTuple):
    """What names of ranks mean."""

    node_of_rank: IntArray
    """``[P]``"""
    speed: FloatArray
    """``[P]``: only names of one speed are traded"""
    ways: IntArray
    """``[K, P]``: the node of each rank in all ways to share ranks among nodes; none where there are too many"""


def name_ranks(phy2log: IntArray, pair_counts: FloatArray, topology: Topology) -> IntArray:
    """The same placement with its ranks named so that experts that are hit together share a node.

    Ranks of one speed trade names; what a rank holds stays together, so no rank load changes. Where nodes are even
    and ranks can be shared among them in at most 6,000 ways, the best way is taken; else swaps of two names lead on.
    Where nothing gains, names stay as they are.

    Parameters
    ----------
    phy2log : ``[L, R]``
    pair_counts : ``[L, E, E]``

    Returns
    -------
    ``[L, R]``
    """
    ranks = topology.num_ranks
    ways = pairings(ranks, topology.num_nodes) if topology.even and topology.rank_speed is None else None
    names = Names(
        np.array(topology.nodes),
        np.array(topology.speeds),
        np.empty((0, ranks), np.int64) if ways is None else ways,
    )
    order = np.tile(np.arange(ranks), (len(phy2log), 1))
    for_layers(_name_layers, len(order), phy2log, pair_shares(pair_counts), names, order)
    held = phy2log.reshape(len(phy2log), ranks, -1)
    return np.take_along_axis(held, order[:, :, None], axis=1).reshape(phy2log.shape)


@kernel
def _ties(phy2log, pairs, tie):
    """How many pairs of experts two ranks share, replicas by their part: ``tie [P, P]`` is written.

    ``phy2log [R]``: experts of slots. ``pairs [E, E]``. Sums run in one order, whatever the processor.
    """
    slots = phy2log.size // tie.shape[0]
    logcnt = np.zeros(pairs.shape[0], np.int64)
    for e in phy2log:
        logcnt[e] += 1
    tie[:] = 0.0
    for s in range(phy2log.size):
        for t in range(phy2log.size):
            a, b = phy2log[s], phy2log[t]
            tie[s // slots, t // slots] += pairs[a, b] / (logcnt[a] * logcnt[b])


@kernel
def _best_way(tie, ways, named):
    """Share ranks among nodes in the best of ``ways [K, P]`` for ``tie [P, P]``; ``named [P]`` changes if that gains.

    The first way is how they are shared without names.
    """
    best, best_way, first = 0.0, 0, 0.0
    for k in range(ways.shape[0]):
        worth = 0.0
        for p in range(named.size):
            for q in range(p):
                if ways[k, p] == ways[k, q]:
                    worth += tie[p, q]
        first = worth if k == 0 else first
        if worth > best:
            best, best_way = worth, k
    if best > first + LEAST_GAIN:
        at = 0
        for node in range(named.size):
            for p in range(named.size):
                if ways[best_way, p] == node:
                    named[at] = p
                    at += 1


@kernel
def _trade_names(tie, names, named):
    """Trade names of two ranks while that gains, the best trade each time.

    ``tie [P, P]``. ``names``: `Names`. ``named [P]``, the rank under each name, is changed.
    """
    node_of_rank, speed, num_ranks = names.node_of_rank, names.speed, named.size
    near = np.empty((num_ranks, node_of_rank[num_ranks - 1] + 1), np.float64)
    for _ in range(num_ranks * num_ranks):
        near[:] = 0.0
        for p in range(num_ranks):
            for q in range(num_ranks):
                if p != q:
                    near[p, node_of_rank[q]] += tie[named[p], named[q]]
        best, best_p, best_q = LEAST_GAIN, -1, -1
        for p in range(num_ranks):
            for q in range(p):
                m, n = node_of_rank[p], node_of_rank[q]
                if m == n or speed[p] != speed[q]:
                    continue
                gain = near[p, n] + near[q, m] - near[p, m] - near[q, n] - 2.0 * tie[named[p], named[q]]
                if gain > best:
                    best, best_p, best_q = gain, p, q
        if best_p < 0:
            break
        named[best_p], named[best_q] = named[best_q], named[best_p]


@kernel
def _name_layers(first, last, phy2log, pairs, names, order):
    """Layers ``first`` to ``last`` of ``phy2log [L, R]``: name ranks for ``pairs [L, E, E]``.

    ``names``: `Names`. ``order [L, P]``, the rank under each name, is changed.
    """
    tie = np.empty((order.shape[1], order.shape[1]), np.float64)
    for layer in range(first, last):
        _ties(phy2log[layer], pairs[layer], tie)
        if names.ways.shape[0]:
            _best_way(tie, names.ways, order[layer])
        else:
            _trade_names(tie, names, order[layer])


@kernel
def _near_layer(pairs, state, place_of_rank, near):
    """Pairs of each expert with what each place holds, replicas by their part: ``near [E, N]``.

    ``pairs [E, E]``. ``state``: the layer. ``place_of_rank [P]``.
    """
    near[:] = 0.0
    for s in range(state.phy2log.size):
        e, place = state.phy2log[s], place_of_rank[s // state.slots_per_rank]
        for a in range(near.shape[0]):
            near[a, place] += pairs[a, e] / state.logcnt[e]


@kernel
def _best_tie(state, pairs, near, place_of_rank, room):
    """The swap of slots in two places that gains most pairs while the objective rises by ``room`` at most.

    ``state``: the layer. ``pairs [E, E]``. ``near [E, N]``: see `_near_layer`. ``place_of_rank [P]``. Returns the
    slots, -1 for none.
    """
    phy2log, logcnt, slots, burden = state.phy2log, state.logcnt, state.slots_per_rank, state.speeds[BURDEN]
    best, best_s, best_t = LEAST_GAIN, -1, -1
    for s in range(phy2log.size):
        p, a = s // slots, phy2log[s]
        m = place_of_rank[p]
        for t in range(s):
            q, b = t // slots, phy2log[t]
            n = place_of_rank[q]
            if m == n:
                continue
            gain = (near[a, n] - near[a, m]) / logcnt[a] + (near[b, m] - near[b, n]) / logcnt[b]
            gain -= 2.0 * pairs[a, b] / (logcnt[a] * logcnt[b])
            if gain <= best:
                continue
            rise = -state.rank_costs[p] - state.rank_costs[q]
            for w in range(state.rank_loads.shape[0]):
                x = state.slot_loads[w, s] - state.slot_loads[w, t]
                rise += burden[p] * cost(state.rank_loads[w, p] - x) + burden[q] * cost(
                    state.rank_loads[w, q] + x
                )
            if rise <= room and may_swap(state, s, t):
                best, best_s, best_t = gain, s, t
    return best_s, best_t


@kernel
def _tie_layers(first, last, layers, pairs, place_of_rank, cap, phy2log):
    """Layers ``first`` to ``last``: swap slots while more pairs come together and the objective stays under a cap.

    ``layers``: `Layers`. ``pairs [B, E, E]``. ``place_of_rank [P]``. ``cap``: of the objective, as a multiple of what
    it is at first. ``phy2log [B, R]`` is changed.
    """
    num_experts = pairs.shape[1]
    near = np.empty((num_experts, place_of_rank[place_of_rank.size - 1] + 1), np.float64)
    for layer in range(first, last):
        state = new_state(layers, layer, phy2log.shape[1])
        hold(state, phy2log[layer])
        total = 0.0
        for r in range(place_of_rank.size):
            refresh_rank(state, r)
            total += state.rank_costs[r]
        limit = cap * total
        for _ in range(4 * phy2log.shape[1]):
            _near_layer(pairs[layer], state, place_of_rank, near)
            s, t = _best_tie(state, pairs[layer], near, place_of_rank, limit - total)
            if s < 0:
                break
            p, q = s // state.slots_per_rank, t // state.slots_per_rank
            total -= state.rank_costs[p] + state.rank_costs[q]
            swap(state, s, t)
            refresh_rank(state, p)
            refresh_rank(state, q)
            total += state.rank_costs[p] + state.rank_costs[q]
        copy_into(phy2log[layer], state.phy2log)


def bring_together(
    layers: Layers, phy2log: IntArray, pair_counts: FloatArray, topology: Topology, cap: float
) -> IntArray:
    """Swap experts so that those that are hit together share a node, or a rank where there is one node.

    The best swap each time, of those that leave the objective of a layer at or under ``cap`` times what it was, and
    no new twins; until none brings more pairs together.

    Parameters
    ----------
    layers : whole layers, as they were planned
    phy2log : ``[L, R]``
    pair_counts : ``[L, E, E]``
    cap : at least 1; with 1 no layer gets a higher objective

    Returns
    -------
    ``[L, R]``
    """
    places = np.array(topology.nodes if topology.num_nodes > 1 else range(topology.num_ranks))
    result: IntArray = phy2log.copy()
    for_layers(_tie_layers, len(result), layers, pair_shares(pair_counts), places, float(cap), result)
    return result
