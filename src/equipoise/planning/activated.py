"""One replica for every expert that a batch hits, so that the rank with the most of them has few.

In decode a rank's time is that of reading the weights of its activated experts, however few tokens they have. METRO
(Yu et al., arXiv 2512.09277) therefore serves each hit expert at one replica, on the rank with the fewest activated
experts. In which order decides what that reaches: here experts come from the leaves of the placement's forest to its
roots (`sweeps`), and those still to come count on each of their ranks with their part. A few sweeps then let each
expert choose again.

The optimum is that of a semi-matching (Harvey, Ladner, Lovász, Tamir, Journal of Algorithms 59, 2006): as long as a
path of experts leads from the busiest rank to one with two less, each of them moves on by one rank.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .kernel import for_layers, kernel
from .shares import ranks_of_slots, slots_by_expert
from .sweeps import Forest, grow_forest

IntArray = npt.NDArray[np.int64]
ONE = 1 << 20
"""an activated expert, in the integers in which ranks are compared: parts of one are the same on every device"""


class _Layer(NamedTuple):
    """One layer as experts choose in it."""

    forest: Forest
    first: IntArray
    """``[E + 1]``: where the slots of each expert begin"""
    item_slots: IntArray
    """``[R]``: slots, expert by expert"""
    rank_of: IntArray
    """``[R]``: ranks of slots"""


@kernel
def _activate_layers(first_layer, last_layer, hit, phy2log, num_ranks, sweeps, slots):
    """Layers ``first_layer`` to ``last_layer``: the slot that serves each hit expert.

    ``hit [L, B, E]``: whether a batch hits an expert. ``phy2log [L, R]``: experts of slots. ``num_ranks``: ``P``.
    ``sweeps``: how often all choose again, -1 for the optimum. ``slots [L, B, E]`` is written, -1 where not hit.
    """
    rank_of = ranks_of_slots(phy2log.shape[1], num_ranks)
    loads, waiting = np.empty(num_ranks, np.int64), np.empty(num_ranks, np.int64)
    for layer in range(first_layer, last_layer):
        first, item_slots, _ = slots_by_expert(phy2log[layer], hit.shape[2])
        forest = grow_forest((phy2log[layer], first, item_slots, rank_of), num_ranks)
        rows = _Layer(forest, first, item_slots, rank_of)
        for b in range(hit.shape[1]):
            chosen = slots[layer, b]
            _begin(hit[layer, b], rows, chosen, loads, waiting)
            for _ in range(max(sweeps, 0) + 1):
                _choose(rows, chosen, loads, waiting)
            if sweeps < 0:
                while _relieve(rows, chosen, loads):
                    pass


@kernel
def _begin(hit, layer, chosen, loads, waiting):
    """Every hit expert at its first slot; those of several ranks wait.

    ``hit [E]``. ``layer``: `_Layer`. ``chosen [E]``, ``loads [P]``, experts that have chosen, and ``waiting [P]``,
    parts of those that have not, both in `ONE`, are written. One that waits is marked by ``-2 - slot``.
    """
    loads[:], waiting[:] = 0, 0
    for e in range(hit.size):
        s = layer.item_slots[layer.first[e]]
        chosen[e] = s if hit[e] else -1
        loads[layer.rank_of[s]] += ONE if hit[e] else 0
    forest = layer.forest
    for m in range(forest.experts.size):
        e = forest.experts[m]
        if hit[e]:
            loads[layer.rank_of[chosen[e]]] -= ONE
            chosen[e] = -2 - chosen[e]
            begin, end = forest.first[m], forest.first[m + 1]
            for k in range(begin, end):
                waiting[layer.rank_of[forest.slots[k]]] += ONE // (end - begin)


@kernel
def _choose(layer, chosen, loads, waiting):
    """Let every hit expert of several ranks choose, from the leaves to the roots; of equal ranks the first.

    ``layer``: `_Layer`. ``chosen [E]``, ``loads [P]`` and ``waiting [P]`` are changed, see `_begin`.
    """
    forest, rank_of = layer.forest, layer.rank_of
    for m in range(forest.experts.size - 1, -1, -1):
        e = forest.experts[m]
        if chosen[e] == -1:
            continue
        begin, end = forest.first[m], forest.first[m + 1]
        if chosen[e] >= 0:
            loads[rank_of[chosen[e]]] -= ONE
        else:
            for k in range(begin, end):
                waiting[rank_of[forest.slots[k]]] -= ONE // (end - begin)
        best = forest.slots[begin]
        for k in range(begin + 1, end):
            s = forest.slots[k]
            here, there = (
                loads[rank_of[s]] + waiting[rank_of[s]],
                loads[rank_of[best]] + waiting[rank_of[best]],
            )
            if here < there or (here == there and s < best):
                best = s
        chosen[e] = best
        loads[rank_of[best]] += ONE


@kernel
def _relieve(layer, chosen, loads):
    """Move the experts of a shortest path from the busiest rank to one with two less; whether there was one.

    ``layer``: `_Layer`. ``chosen [E]`` and ``loads [P]`` are changed, see `_begin`.
    """
    forest, rank_of = layer.forest, layer.rank_of
    start = loads.argmax()
    by = np.full(loads.size, -1, np.int64)  # the expert through which a rank was reached
    to = np.empty(loads.size, np.int64)  # the slot that it has there
    queue = np.empty(loads.size, np.int64)
    queue[0], at, found = start, 0, 1
    while at < found:
        rank = queue[at]
        at += 1
        for m in range(forest.experts.size):
            e = forest.experts[m]
            if chosen[e] < 0 or rank_of[chosen[e]] != rank:
                continue
            for k in range(forest.first[m], forest.first[m + 1]):
                r = rank_of[forest.slots[k]]
                if r == start or by[r] >= 0:
                    continue
                by[r], to[r], queue[found] = e, forest.slots[k], r
                found += 1
                if loads[r] <= loads[start] - 2 * ONE:
                    loads[start] -= ONE
                    loads[r] += ONE
                    while r != start:
                        before = rank_of[chosen[by[r]]]
                        chosen[by[r]] = to[r]
                        r = before
                    return True
    return False


def activate(hit: npt.NDArray[Any], phy2log: IntArray, num_ranks: int, sweeps: int) -> IntArray:
    """The slot that serves each expert of batches.

    Parameters
    ----------
    hit : ``[B, L, E]``, whether a batch hits an expert
    phy2log : ``[L, R]``
    num_ranks : ``P``
    sweeps : how often all experts of several ranks choose again; -1 for the optimum, the smallest largest number of
        activated experts of a rank

    Returns
    -------
    ``[B, L, E]``: slots, -1 where an expert is not hit. Of twins on a rank the first.
    """
    by_layer = np.ascontiguousarray(np.moveaxis(hit, 0, 1), np.bool_)
    slots = np.empty(by_layer.shape, np.int64)
    for_layers(_activate_layers, len(phy2log), by_layer, phy2log, num_ranks, sweeps, slots)
    return np.moveaxis(slots, 1, 0)
