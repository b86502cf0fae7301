"""A few sweeps of water-filling along a forest: the split of a batch, which nobody waits for much longer.

Ranks are joined by the experts that they share. A breadth-first forest over the ranks orders the experts: each hangs
from the rank through which it was reached, its parent. A sweep goes from the leaves to the roots and back, and fills
the ranks of each expert up to one level (exact coordinate descent, see `shares`). The first way in looks further:
ranks are filled up to the mean of their tree, and the rest is handed on to the parent, so that what leaves lack or
have too much reaches the root at once. Where every expert can hand on what it has to, that levels a tree, as
elimination from the leaves solves a system of equations on one (Parter, SIAM Review 3, 1961).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .kernel import for_layers, kernel
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


class Forest(NamedTuple):
    """The experts of one layer that several ranks share, from the roots on."""

    experts: IntArray
    """``[M]``"""
    first: IntArray
    """``[M + 1]``: where the slots of each begin"""
    slots: IntArray
    """``[N]``: of each expert one slot on each of its ranks, its parent's first"""
    root: IntArray
    """``[P]``: the rank that the tree of each rank grew from"""


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
        np.full(num_ranks, -1, np.int64),
    )
    queue = np.empty(num_ranks, np.int64)
    begin, grown = shared.argmax(), 0
    for k in range(num_ranks):
        rank = (begin + k) % num_ranks
        if forest.root[rank] < 0:
            forest.root[rank] = queue[0] = rank
            grown = _grow_tree(forest, grown, queue, waits, layer)
    return forest


@kernel
def _grow_tree(forest, grown, queue, waits, layer):
    """One tree more; returns how many experts the forest has then.

    ``forest``: of ``grown`` experts. ``queue [P]``: begins with the tree's root. ``waits [E]``: whether an expert is
    shared and hangs nowhere yet. ``layer``: see `grow_forest`.
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
                if forest.root[r] < 0:
                    forest.root[r] = queue[0]
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
def _hand_on(x, forest, m, level, rank_of, taken, rank_loads):
    """Fill the ranks of an expert up to ``level``, one after the other; the first, its parent, takes the rest.

    ``x``: the expert's load. ``forest``: `Forest`. ``m``: the expert's number there. ``rank_of [R]``: ranks of slots.
    ``taken [R]``, tokens of slots, and ``rank_loads [P]`` are changed.
    """
    rest = x
    for k in range(forest.first[m] + 1, forest.first[m + 1]):
        s = forest.slots[k]
        rank = rank_of[s]
        rank_loads[rank] -= taken[s]
        taken[s] = min(max(level - rank_loads[rank], 0.0), rest)
        rank_loads[rank] += taken[s]
        rest -= taken[s]
    parent = forest.slots[forest.first[m]]
    rank_loads[rank_of[parent]] += rest - taken[parent]
    taken[parent] = rest


@kernel
def _means_of_trees(root, rank_loads):
    """Mean rank load of each tree, at its root: ``[P]``. ``root [P]``, ``rank_loads [P]``."""
    total, count = np.zeros(root.size, np.float64), np.zeros(root.size, np.float64)
    for r in range(root.size):
        total[root[r]] += rank_loads[r]
        count[root[r]] += 1.0
    return total / np.maximum(count, 1.0)


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
        for sweep in range(max_sweeps):
            if sweep == 0:
                _first_sweep(x, forest, slots, taken, rank_loads)
            else:
                _fill_inwards(x, forest, rank_of, taken, rank_loads)
                _fill_outwards(x, forest, rank_of, taken, rank_loads)
            if sweep % BETWEEN_PROOFS == BETWEEN_PROOFS - 1 and (
                excess(item_slots, first, many, rank_of, taken, rank_loads, reached) < TOLERANCE
            ):
                break
        to_shares(first, item_slots, taken)


@kernel
def _first_sweep(x, forest, layer, taken, rank_loads):
    """Hand on and fill; where that leaves a rank busier than an even split does, fill and nothing else.

    ``x [E]``: loads of experts. ``forest``: `Forest`. ``layer``: see `grow_forest`. ``taken [R]``, tokens of slots,
    and ``rank_loads [P]`` are those of an even split, and changed.
    """
    phy2log, first, _, rank_of = layer
    largest = rank_loads.max()
    _fold_twins(forest, layer, taken)
    _hand_inwards(x, forest, rank_of, taken, rank_loads)
    _fill_outwards(x, forest, rank_of, taken, rank_loads)
    if rank_loads.max() > largest * (1.0 + ROUNDING):
        split_evenly(x, first, phy2log, rank_of, taken, rank_loads)
        _fold_twins(forest, layer, taken)
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
    means = _means_of_trees(forest.root, rank_loads)
    for m in range(forest.experts.size - 1, -1, -1):
        level = means[forest.root[rank_of[forest.slots[forest.first[m]]]]]
        _hand_on(x[forest.experts[m]], forest, m, level, rank_of, taken, rank_loads)


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
def _list_forests(first_layer, last_layer, phy2log, num_experts, experts, parents, trees):
    """The forests of layers ``first_layer`` to ``last_layer``.

    ``phy2log [L, R]``: experts of slots. ``num_experts``: ``E``. ``experts [L, M]``, ``parents [L, M]`` and ``trees
    [L, P]`` are written, see `forests`.
    """
    num_ranks = trees.shape[1]
    rank_of = ranks_of_slots(phy2log.shape[1], num_ranks)
    for layer in range(first_layer, last_layer):
        first, item_slots, _ = slots_by_expert(phy2log[layer], num_experts)
        forest = grow_forest((phy2log[layer], first, item_slots, rank_of), num_ranks)
        number = np.full(num_ranks, -1, np.int64)
        found = 0
        for m in range(forest.experts.size):
            experts[layer, m] = forest.experts[m]
            parents[layer, m] = rank_of[forest.slots[forest.first[m]]]
            root = forest.root[parents[layer, m]]
            if number[root] < 0:
                number[root] = found
                found += 1
        for r in range(num_ranks):
            trees[layer, r] = number[forest.root[r]]


def forests(
    phy2log: npt.NDArray[np.int64], num_ranks: int, num_experts: int
) -> tuple[IntArray, IntArray, IntArray]:
    """The order in which `sweep_batch` goes over experts, for those who sweep elsewhere.

    Returns
    -------
    experts : ``[L, M]``, those that several ranks share, from the roots on; -1 behind the last. There can be ``M``,
        the smaller of ``E`` and ``R - E``
    parents : ``[L, M]``, the rank that each hangs from; 0 behind the last
    trees : ``[L, P]``, the number of each rank's tree; -1 for a rank that shares no expert
    """
    num_layers, num_slots = phy2log.shape
    experts = np.full((num_layers, min(num_experts, num_slots - num_experts)), -1, np.int64)
    parents, trees = np.zeros_like(experts), np.empty((num_layers, num_ranks), np.int64)
    for_layers(_list_forests, num_layers, phy2log, num_experts, experts, parents, trees)
    return experts, parents, trees


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
