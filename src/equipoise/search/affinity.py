"""Experts that are hit together nearer each other, by swaps that balance pays for, or that cost nothing.

What is raised is the number of pairs of a token's experts that live in one place, a node, or a rank where there is
one node: what a partition of a graph keeps inside its parts (Kernighan and Lin, An efficient heuristic procedure for
partitioning graphs, Bell System Technical Journal 49, 1970). With a cap on the objective alone a search ends at
once: from a plan that is balanced well, each single swap costs. So pairs get a price, and swaps lower the objective
less the price of the pairs that are in one place (a Lagrangian relaxation; Everett, Generalized Lagrange multiplier
method, Operations Research 11, 1963). The price rises, pairs come together and balance suffers; then it falls again,
and balance is mended with what costs fewest pairs. Of all placements on the way, the one under the cap with most
pairs in one place is kept.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..planning.kernel import copy_into, for_layers, kernel
from ..planning.objective import cost
from ..planning.traffic import pair_shares
from ..topology import Topology
from .names import LEAST_GAIN
from .state import BURDEN, FloatArray, IntArray, Layers, hold, may_swap, new_state, refresh_rank
from .steps import swap

# Prices of as many pairs as chance brings to one place, as multiples of the objective that a layer has at first;
# benchmarks/bench_affinity.py. Dearer pairs cost more balance on other tokens than they are worth; who sets a cap
# beyond 1.1 wants them.
LEAST_PRICE, MOST_PRICE, RISE = 1.0 / 128.0, 1.0, 2.0
PRICE_OF_CAP = 10.0
MOST_PASSES = 20  # over the slots at one price
OBJECTIVE, GAINED, KEPT = 0, 1, 2


class Terms(NamedTuple):
    """What pairs in one place may cost."""

    prices: FloatArray
    """``[K]``: of all pairs, as multiples of the objective that a layer has at first"""
    cap: float
    """of the objective, the same multiple"""


class Ties(NamedTuple):
    """What trades of one layer are judged by, beside its `State`."""

    pairs: FloatArray
    """``[E, E]``: shares of all pairs"""
    place_of_rank: IntArray
    """``[P]``: the node of a rank; its own number where there is one node"""
    near: FloatArray
    """``[E, N]``: pairs of each expert with what each place holds, replicas by their part"""
    burden: FloatArray
    """``[R]``: that of each slot's rank"""


@kernel
def _new_ties(pairs, place_of_rank, state):
    """Room for what a layer's trades are judged by.

    ``pairs [E, E]``. ``place_of_rank [P]``. ``state``: the layer.
    """
    near = np.empty((pairs.shape[0], place_of_rank[place_of_rank.size - 1] + 1), np.float64)
    burden = np.empty(state.phy2log.size, np.float64)
    for s in range(burden.size):
        burden[s] = state.speeds[BURDEN, s // state.slots_per_rank]
    return Ties(pairs, place_of_rank, near, burden)


@kernel
def _count_near(state, ties):
    """``near`` from nothing. ``state``: the layer. ``ties``: `Ties`."""
    near = ties.near
    near[:] = 0.0
    for s in range(state.phy2log.size):
        e, place = state.phy2log[s], ties.place_of_rank[s // state.slots_per_rank]
        for a in range(near.shape[0]):
            near[a, place] += ties.pairs[a, e] / state.logcnt[e]


@kernel
def _rises(state, ties, s):
    """What a swap of slot ``s`` with each other one adds to the objective, into the scratch space ``scan [R]``.

    ``state``: the layer. ``ties``: `Ties`. Loops run over slots and do not reduce over them, so they may be
    vectorised. For slots of one rank the numbers mean nothing.
    """
    p, slots, rise = s // state.slots_per_rank, state.slots_per_rank, state.scan
    for t in range(rise.size):
        rise[t] = -state.rank_costs[p] - state.rank_costs[t // slots]
    mine = ties.burden[s]
    for w in range(state.rank_loads.shape[0]):
        load, x = state.rank_loads[w, p], state.slot_loads[w, s]
        row, around = state.slot_loads[w], state.around[w]
        for t in range(rise.size):
            more = x - row[t]
            rise[t] += mine * cost(load - more) + ties.burden[t] * cost(around[t] + more)


@kernel
def _best_trade(state, ties, price, s):
    """The slot to swap slot ``s`` with: where the objective less ``price`` times the pairs in one place falls most.

    ``state``: the layer. ``ties``: `Ties`. Returns the slot, -1 for none, and the pairs that come together.
    """
    phy2log, logcnt, slots, near = state.phy2log, state.logcnt, state.slots_per_rank, ties.near
    p, a = s // slots, phy2log[s]
    m = ties.place_of_rank[p]
    _rises(state, ties, s)
    best, best_t, best_gain = -price * LEAST_GAIN, -1, 0.0
    for q in range(ties.place_of_rank.size):
        if p == q:
            continue
        n = ties.place_of_rank[q]
        mine = (near[a, n] - near[a, m]) / logcnt[a]
        for t in range(q * slots, (q + 1) * slots):
            b, gain = phy2log[t], 0.0
            if m != n:
                both = ties.pairs[a, b] / (logcnt[a] * logcnt[b])
                gain = mine + (near[b, m] - near[b, n]) / logcnt[b] - 2.0 * both
            value = state.scan[t] - price * gain
            if value < best and may_swap(state, s, t):
                best, best_t, best_gain = value, t, gain
    return best_t, best_gain


@kernel
def _trade(state, ties, s, t):
    """Swap slots ``s`` and ``t`` of two ranks; returns what that adds to the objective.

    ``state``: the layer. ``ties``: `Ties`, which follow.
    """
    p, q, a, b = s // state.slots_per_rank, t // state.slots_per_rank, state.phy2log[s], state.phy2log[t]
    m, n, before = ties.place_of_rank[p], ties.place_of_rank[q], state.rank_costs[p] + state.rank_costs[q]
    swap(state, s, t)
    refresh_rank(state, p)
    refresh_rank(state, q)
    if m != n:
        for e in range(ties.near.shape[0]):
            x = ties.pairs[e, a] / state.logcnt[a] - ties.pairs[e, b] / state.logcnt[b]
            ties.near[e, m] -= x
            ties.near[e, n] += x
    return state.rank_costs[p] + state.rank_costs[q] - before


@kernel
def _pass(state, ties, look, price, limit, sums, kept):
    """Trade each slot that is to be looked at, where that is worth it; returns whether any was.

    ``state``: the layer. ``ties``: `Ties`. ``look [R]``: slots whose rank has changed since nothing was found for
    them. ``price``: of all pairs. ``limit``: of the objective. ``sums [3]``: OBJECTIVE, pairs GAINED since the start,
    and those of what is KEPT. ``kept [R]``: the placement with most of them under the limit.
    """
    traded, slots = False, state.slots_per_rank
    for s in range(look.size):
        if not look[s]:
            continue
        t, gain = _best_trade(state, ties, price, s)
        if t < 0:
            look[s] = False
            continue
        traded = True
        sums[OBJECTIVE] += _trade(state, ties, s, t)
        sums[GAINED] += gain
        for rank in (s // slots, t // slots):
            look[rank * slots : (rank + 1) * slots] = True
        if sums[GAINED] > sums[KEPT] and sums[OBJECTIVE] <= limit:
            sums[KEPT] = sums[GAINED]
            copy_into(kept, state.phy2log)
    return traded


@kernel
def _tie_layer(state, ties, terms, phy2log):
    """Trade at one price after the other, and keep what brings most pairs together under the cap.

    ``state``: the layer. ``ties``: `Ties`. ``terms``: `Terms`. ``phy2log [R]`` is changed.
    """
    hold(state, phy2log)
    sums = np.array([0.0, 0.0, LEAST_GAIN])
    for rank in range(ties.place_of_rank.size):
        refresh_rank(state, rank)
        sums[OBJECTIVE] += state.rank_costs[rank]
    # A layer without load has no objective to lose.
    unit, limit = sums[OBJECTIVE] if sums[OBJECTIVE] > 0.0 else 1.0, terms.cap * sums[OBJECTIVE]
    look = np.empty(phy2log.size, np.bool_)
    for price in terms.prices:
        _count_near(state, ties)  # anew: sums of changes round
        look[:] = True
        for _ in range(MOST_PASSES):
            if not _pass(state, ties, look, price * unit, limit, sums, phy2log):
                break


@kernel
def _tie_layers(first, last, layers, pairs, place_of_rank, terms, phy2log):
    """Layers ``first`` to ``last``: bring pairs together under a cap.

    ``layers``: `Layers`. ``pairs [B, E, E]``. ``place_of_rank [P]``. ``terms``: `Terms`. ``phy2log [B, R]`` is
    changed.
    """
    for layer in range(first, last):
        state = new_state(layers, layer, phy2log.shape[1])
        _tie_layer(state, _new_ties(pairs[layer], place_of_rank, state), terms, phy2log[layer])


def _prices(cap: float, num_places: int) -> FloatArray:
    """Prices of all pairs ``[K]``, up to the highest that a cap is worth and down again."""
    prices = [LEAST_PRICE]
    while prices[-1] * RISE <= max(MOST_PRICE, PRICE_OF_CAP * (cap - 1.0)):
        prices.append(prices[-1] * RISE)
    return num_places * np.array(prices + prices[::-1])


def bring_together(
    layers: Layers, phy2log: IntArray, pair_counts: FloatArray, topology: Topology, cap: float
) -> IntArray:
    """Swap experts so that those that are hit together share a node, or a rank where there is one node.

    No new twins; no layer has fewer pairs in one place, or a higher objective than ``cap`` times what it was.

    Parameters
    ----------
    layers : whole layers, as they were planned
    phy2log : ``[L, R]``
    pair_counts : ``[L, E, E]``
    cap : at least 1; with 1, pairs come together at no cost

    Returns
    -------
    ``[L, R]``
    """
    places = np.array(topology.nodes if topology.num_nodes > 1 else range(topology.num_ranks))
    result: IntArray = phy2log.copy()
    terms = Terms(_prices(cap, int(places[-1]) + 1), float(cap))
    for_layers(_tie_layers, len(result), layers, pair_shares(pair_counts), places, terms, result)
    return result
