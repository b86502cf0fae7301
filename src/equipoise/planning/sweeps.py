"""A few sweeps of water-filling along a forest: the split of a batch, which nobody waits for much longer.

Ranks are joined by the experts that they share. A breadth-first forest over the ranks orders the experts: each hangs
from the rank through which it was reached, its parent. A sweep goes from the leaves to the roots and back, and fills
the ranks of each expert up to one level (exact coordinate descent, see `shares`). The first two look further: on
their way in ranks are filled up to the mean of their part of the forest, and the rest is handed on to the parent, so
that what leaves lack or have too much reaches the root at once. A part ends where tokens cannot pass: at a rank that
is busier than its parent and has no tokens left to give of the expert that it hangs from, or the other way round.
Where every expert can hand on what it has to, the first way in levels a tree, as elimination from the leaves solves a
system of equations on one (Parter, SIAM Review 3, 1961); where one cannot, the second knows it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .kernel import copy_into, for_layers, kernel
from .shares import (
    BETWEEN_PROOFS,
    TOLERANCE,
    FloatArray,
    excess,
    fill_expert,
    ranks_of_slots,
    slots_by_expert,
    split_evenly,
    to_shares,
)

IntArray = npt.NDArray[np.int64]
ROUNDING = 1e-13
"""By which a largest rank load may rise: devices add in another order, and have to decide alike"""
NOTHING = 1e-12
"""Of the largest rank load: fewer tokens are none, and ranks that differ by less are level, for the same reason"""
HANDING = 2
"""Sweeps that hand on; a third one gains as often as it loses: benchmarks/bench_split.py"""


class Forest(NamedTuple):
    """The experts of one layer that several ranks share, from the roots on."""

    experts: IntArray
    """``[M]``"""
    first: IntArray
    """``[M + 1]``: where the slots of each begin"""
    slots: IntArray
    """``[N]``: of each expert one slot on each of its ranks, its parent's first"""


@kernel
def grow_forest(layer, num_ranks):
    """The forest of one layer; it begins at the rank that shares most of its slots.

    ``layer``: experts of slots ``[R]``, ``first [E + 1]`` and ``item_slots [R]`` of `slots_by_expert`, ranks of slots
    ``[R]``. ``num_ranks``: ``P``.
    """
    phy2log, first, item_slots, rank_of = layer
    waits = np.zeros(first.size - 1, np.bool_)
    shared = np.zeros(num_ranks, np.int64)
    for s in range(phy2log.size):
        e = phy2log[s]
        waits[e] = rank_of[item_slots[first[e]]] != rank_of[item_slots[first[e + 1] - 1]]
        shared[rank_of[s]] += waits[e]
    forest = Forest(
        np.empty(waits.sum(), np.int64),
        np.zeros(waits.sum() + 1, np.int64),
        np.empty(phy2log.size, np.int64),
    )
    queue, reached = np.empty(num_ranks, np.int64), np.zeros(num_ranks, np.bool_)
    begin, grown = shared.argmax(), 0
    for k in range(num_ranks):
        rank = (begin + k) % num_ranks
        if not reached[rank]:
            reached[rank] = True
            queue[0] = rank
            grown = _grow_tree(forest, grown, queue, reached, waits, layer)
    return forest


@kernel
def _grow_tree(forest, grown, queue, reached, waits, layer):
    """One tree more; returns how many experts the forest has then.

    ``forest``: of ``grown`` experts. ``queue [P]``: begins with the tree's root. ``reached [P]``: whether a rank is
    in a tree. ``waits [E]``: whether an expert is shared and hangs nowhere yet. ``layer``: see `grow_forest`.
    """
    phy2log, first, item_slots, rank_of = layer
    size = phy2log.size // queue.size
    at, found = 0, 1
    while at < found:
        rank = queue[at]
        at += 1
        for s in range(rank * size, (rank + 1) * size):
            e = phy2log[s]
            if not waits[e]:
                continue
            waits[e] = False
            forest.experts[grown] = e
            end = _hang(forest, forest.first[grown], s, item_slots[first[e] : first[e + 1]], rank_of)
            for k in range(forest.first[grown], end):
                r = rank_of[forest.slots[k]]
                if not reached[r]:
                    reached[r] = True
                    queue[found] = r
                    found += 1
            grown += 1
            forest.first[grown] = end
    return grown


@kernel
def _hang(forest, at, s, slots_of, rank_of):
    """Write the slots of an expert, ``s`` first and one a rank, from ``at`` on; returns where they end.

    ``forest``: they are written there. ``slots_of [X]``: all of them, in order, so that twins stand side by side.
    ``rank_of [R]``: ranks of slots.
    """
    forest.slots[at] = s
    at += 1
    for k in range(slots_of.size):
        rank = rank_of[slots_of[k]]
        if rank != rank_of[s] and (k == 0 or rank != rank_of[slots_of[k - 1]]):
            forest.slots[at] = slots_of[k]
            at += 1
    return at


@kernel
def _hand_on(x, forest, m, levels, rank_of, taken, rank_loads):
    """Fill the ranks of an expert up to their levels, one after the other; the first, its parent, takes the rest.

    ``x``: the expert's load. ``forest``: `Forest`. ``m``: the expert's number there. ``levels [P]``: of ranks.
    ``rank_of [R]``: ranks of slots. ``taken [R]``, tokens of slots, and ``rank_loads [P]`` are changed.
    """
    rest = x
    for k in range(forest.first[m] + 1, forest.first[m + 1]):
        s = forest.slots[k]
        rank = rank_of[s]
        rank_loads[rank] -= taken[s]
        taken[s] = min(max(levels[rank] - rank_loads[rank], 0.0), rest)
        rank_loads[rank] += taken[s]
        rest -= taken[s]
    parent = forest.slots[forest.first[m]]
    rank_loads[rank_of[parent]] += rest - taken[parent]
    taken[parent] = rest


@kernel
def _part_forest(forest, rank_of, taken, rank_loads):
    """The part of each rank, by the number of the rank nearest the root in it: ``[P]``.

    ``forest``: `Forest`. ``rank_of [R]``: ranks of slots. ``taken [R]``: tokens of slots. ``rank_loads [P]``.
    """
    part = np.full(rank_loads.size, -1, np.int64)
    nothing = NOTHING * rank_loads.max()
    for m in range(forest.experts.size):
        s = forest.slots[forest.first[m]]
        parent = rank_of[s]
        if part[parent] < 0:
            part[parent] = parent
        for k in range(forest.first[m] + 1, forest.first[m + 1]):
            t = forest.slots[k]
            rank = rank_of[t]
            if part[rank] >= 0:
                continue
            high = taken[t] <= nothing and rank_loads[rank] > rank_loads[parent] + nothing
            low = taken[s] <= nothing and rank_loads[rank] < rank_loads[parent] - nothing
            part[rank] = rank if high or low else part[parent]
    return part


@kernel
def _means_of_parts(part, rank_loads):
    """Mean rank load of each rank's part: ``[P]``. ``part [P]``: see `_part_forest`. ``rank_loads [P]``."""
    total, count = np.zeros(part.size, np.float64), np.zeros(part.size, np.float64)
    for r in range(part.size):
        total[part[r]] += rank_loads[r]
        count[part[r]] += 1.0
    means = np.empty(part.size, np.float64)
    for r in range(part.size):
        means[r] = total[part[r]] / count[part[r]]
    return means


@kernel
def _sweep_layers(first_layer, last_layer, expert_loads, phy2log, num_ranks, max_sweeps, shares):
    """Layers ``first_layer`` to ``last_layer``, swept until the certificate holds.

    ``expert_loads [L, E]``: not negative. ``phy2log [L, R]``: experts of slots. ``num_ranks``: ``P``.
    ``max_sweeps``: at most so many. ``shares [L, R]`` is written.
    """
    rank_of = ranks_of_slots(phy2log.shape[1], num_ranks)
    rank_loads = np.empty(num_ranks, np.float64)
    reached = np.empty(num_ranks, np.bool_)
    for layer in range(first_layer, last_layer):
        x, taken = expert_loads[layer], shares[layer]
        first, item_slots, many = slots_by_expert(phy2log[layer], x.size)
        slots = (phy2log[layer], first, item_slots, rank_of)
        forest = grow_forest(slots, num_ranks)
        split_evenly(x, first, phy2log[layer], rank_of, taken, rank_loads)
        if max_sweeps > 0:
            _fold_twins(forest, slots, taken)
        for sweep in range(max_sweeps):
            if sweep < HANDING:
                _hand_and_fill(x, forest, rank_of, taken, rank_loads, sweep > 0)
            else:
                _fill_inwards(x, forest, rank_of, taken, rank_loads)
                _fill_outwards(x, forest, rank_of, taken, rank_loads)
            if sweep % BETWEEN_PROOFS == BETWEEN_PROOFS - 1 and (
                excess(item_slots, first, many, rank_of, taken, rank_loads, reached) < TOLERANCE
            ):
                break
        to_shares(first, item_slots, taken)


@kernel
def _hand_and_fill(x, forest, rank_of, taken, rank_loads, inwards):
    """Hand on, then fill; where that leaves a rank busier than the busiest before, fill and nothing else.

    ``x [E]``: loads of experts. ``forest``: `Forest`. ``rank_of [R]``: ranks of slots. ``taken [R]``, tokens of
    slots, and ``rank_loads [P]`` are changed. ``inwards``: whether to fill inwards as well after handing on.
    """
    largest, kept, kept_loads = rank_loads.max(), taken.copy(), rank_loads.copy()
    _hand_inwards(x, forest, rank_of, taken, rank_loads)
    if inwards:
        _fill_inwards(x, forest, rank_of, taken, rank_loads)
    _fill_outwards(x, forest, rank_of, taken, rank_loads)
    if rank_loads.max() > largest * (1.0 + ROUNDING):
        copy_into(taken, kept)
        copy_into(rank_loads, kept_loads)
        _fill_inwards(x, forest, rank_of, taken, rank_loads)
        _fill_outwards(x, forest, rank_of, taken, rank_loads)


@kernel
def _fold_twins(forest, layer, taken):
    """Give what an expert's slots on one rank have to the first of them, which is the one in the forest.

    ``forest``: `Forest`. ``layer``: see `grow_forest`. ``taken [R]``, tokens of slots, is changed.
    """
    _, first, item_slots, rank_of = layer
    for e in forest.experts:
        head = item_slots[first[e]]
        for k in range(first[e] + 1, first[e + 1]):
            s = item_slots[k]
            if rank_of[s] != rank_of[head]:
                head = s
                continue
            taken[head] += taken[s]
            taken[s] = 0.0


@kernel
def _hand_inwards(x, forest, rank_of, taken, rank_loads):
    """`_hand_on` from the leaves to the roots.

    ``x [E]``: loads of experts. ``forest``: `Forest`. ``rank_of [R]``: ranks of slots. ``taken [R]``, tokens of
    slots, and ``rank_loads [P]`` are changed.
    """
    levels = _means_of_parts(_part_forest(forest, rank_of, taken, rank_loads), rank_loads)
    for m in range(forest.experts.size - 1, -1, -1):
        _hand_on(x[forest.experts[m]], forest, m, levels, rank_of, taken, rank_loads)


@kernel
def _fill_inwards(x, forest, rank_of, taken, rank_loads):
    """`fill_expert` from the leaves to the roots. Arguments: see `_hand_inwards`.

    ``x [E]``, ``forest``, ``rank_of [R]``; ``taken [R]`` and ``rank_loads [P]`` are changed.
    """
    first = forest.first
    for m in range(forest.experts.size - 1, -1, -1):
        fill_expert(x[forest.experts[m]], forest.slots, first[m], first[m + 1], rank_of, taken, rank_loads)


@kernel
def _fill_outwards(x, forest, rank_of, taken, rank_loads):
    """`fill_expert` from the roots to the leaves. Arguments: see `_hand_inwards`.

    ``x [E]``, ``forest``, ``rank_of [R]``; ``taken [R]`` and ``rank_loads [P]`` are changed.
    """
    first = forest.first
    for m in range(forest.experts.size):
        fill_expert(x[forest.experts[m]], forest.slots, first[m], first[m + 1], rank_of, taken, rank_loads)


@kernel
def _list_forests(first_layer, last_layer, phy2log, num_ranks, num_experts, experts, parents):
    """The forests of layers ``first_layer`` to ``last_layer``.

    ``phy2log [L, R]``: experts of slots. ``num_ranks``: ``P``. ``num_experts``: ``E``. ``experts [L, M]`` and
    ``parents [L, M]`` are written, see `forests`.
    """
    rank_of = ranks_of_slots(phy2log.shape[1], num_ranks)
    for layer in range(first_layer, last_layer):
        first, item_slots, _ = slots_by_expert(phy2log[layer], num_experts)
        forest = grow_forest((phy2log[layer], first, item_slots, rank_of), num_ranks)
        for m in range(forest.experts.size):
            experts[layer, m] = forest.experts[m]
            parents[layer, m] = rank_of[forest.slots[forest.first[m]]]


def forests(phy2log: npt.NDArray[np.int64], num_ranks: int, num_experts: int) -> tuple[IntArray, IntArray]:
    """The order in which `sweep_batch` goes over experts, for those who sweep elsewhere.

    Returns
    -------
    experts : ``[L, M]``, those that several ranks share, from the roots on; -1 behind the last. There can be ``M``,
        the smaller of ``E`` and ``R - E``
    parents : ``[L, M]``, the rank that each hangs from; 0 behind the last
    """
    num_layers, num_slots = phy2log.shape
    experts = np.full((num_layers, min(num_experts, num_slots - num_experts)), -1, np.int64)
    parents = np.zeros_like(experts)
    for_layers(_list_forests, num_layers, phy2log, num_ranks, num_experts, experts, parents)
    return experts, parents


def sweep_batch(
    loads: npt.NDArray[Any], phy2log: npt.NDArray[np.int64], num_ranks: int, sweeps: int
) -> FloatArray:
    """The split of one batch after some sweeps.

    Parameters
    ----------
    loads : ``[L, E]``, not negative
    phy2log : ``[L, R]``
    sweeps : at most so many; 0 is an even split

    Returns
    -------
    ``shares [L, R]``: the part of its expert's tokens that each slot takes; each expert's sum to 1. Experts without
    load are split evenly.
    """
    shares = np.empty(phy2log.shape, np.float64)
    expert_loads = np.ascontiguousarray(loads, np.float64)
    for_layers(_sweep_layers, len(phy2log), expert_loads, phy2log, num_ranks, sweeps, shares)
    return shares
