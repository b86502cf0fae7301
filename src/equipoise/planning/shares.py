"""Token shares: how an expert's tokens are split among its replicas, for a placement that is fixed.

With one window the split that minimises the largest rank load is a flow problem. Water-filling one expert at a
time is exact coordinate descent on the sum of squared rank loads, whose minimum over splits also has the smallest
maximum (the loads form a base of a polymatroid; Fujishige, Lexicographically optimal base of a polymatroid with
respect to a weight vector, Mathematics of Operations Research, 1980). A certificate tells when to stop: ranks
that share experts with the busiest one, directly or through others, cannot do better than their mean.

With several windows one split serves all of them, and the objective of the search (`objective`) is lowered by
moving tokens between two replicas at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .kernel import for_layers, kernel
from .objective import bend, cost, slope

FloatArray = npt.NDArray[np.float64]
MAX_SWEEPS = 20_000  # a chain of ranks needs many; benchmarks/bench_shares.py has the slowest layers
TOLERANCE = 8e-7  # of the largest rank load; tests/planning/test_shares.py compares with linear programming


@kernel
def _fill_expert(x, slots_of, count, slots_per_rank, taken, rank_loads):
    """Split load ``x`` over the ranks of an expert's slots so that the fullest of those it uses are level.

    ``slots_of [count]``: the ``count`` slots of the expert. ``slots_per_rank``: ``S``. ``taken [R]``, tokens of
    slots, and ``rank_loads [P]`` are changed.
    """
    for k in range(count):
        rank_loads[slots_of[k] // slots_per_rank] -= taken[slots_of[k]]
        taken[slots_of[k]] = 0.0
    # Twins share a rank: only the first slot on a rank is filled.
    ranks = np.empty(count, np.int64)
    known = 0
    for k in range(count):
        r = slots_of[k] // slots_per_rank
        if known and ranks[known - 1] == r:
            continue
        at = known
        ranks[known] = r
        known += 1
    for i in range(1, known):  # few ranks: insertion sort by load
        r = ranks[i]
        at = i
        while at > 0 and rank_loads[ranks[at - 1]] > rank_loads[r]:
            ranks[at] = ranks[at - 1]
            at -= 1
        ranks[at] = r
    total, level, used = 0.0, 0.0, 0
    while used < known and (used == 0 or rank_loads[ranks[used]] < level):
        total += rank_loads[ranks[used]]
        used += 1
        level = (x + total) / used
    for i in range(used):
        r = ranks[i]
        part = max(level - rank_loads[r], 0.0)
        rank_loads[r] = level
        for k in range(count):
            if slots_of[k] // slots_per_rank == r:
                taken[slots_of[k]] = part
                break


@kernel
def _excess(item_slots, first, many, slots_per_rank, taken, rank_loads, reached):
    """The largest rank load over the best that any split can reach, by the certificate of the module's text.

    ``item_slots [R]``, ``first [E + 1]``, ``many [M]``: see `_index`. ``slots_per_rank``: ``S``. ``taken [R]``:
    tokens of slots. ``rank_loads [P]``: their sums. ``reached [P]``: scratch.
    """
    reached[:] = False
    top = rank_loads.argmax()
    reached[top] = True
    growing = True
    while growing:
        growing = False
        for m in range(many.size):
            e = many[m]
            inside, outside = False, False
            for k in range(first[e], first[e + 1]):
                s = item_slots[k]
                if reached[s // slots_per_rank]:
                    inside = inside or taken[s] > 1e-12 * rank_loads[top]
                else:
                    outside = True
            if inside and outside:
                growing = True
                for k in range(first[e], first[e + 1]):
                    reached[item_slots[k] // slots_per_rank] = True
    total, count = 0.0, 0
    for r in range(rank_loads.size):
        if reached[r]:
            total += rank_loads[r]
            count += 1
    mean = total / count
    return rank_loads[top] / mean - 1.0 if mean > 0 else 0.0


@kernel
def _index(phy2log, num_experts):
    """Slots by expert: where each expert's begin, the slots, and the experts with several.

    ``phy2log [R]``: experts of slots. ``num_experts``: ``E``. Returns ``first [E + 1]``, ``item_slots [R]``, ``many
    [M]``.
    """
    first = np.zeros(num_experts + 1, np.int64)
    for e in phy2log:
        first[e + 1] += 1
    several = 0
    for e in range(num_experts):
        several += first[e + 1] > 1
    many = np.empty(several, np.int64)
    several = 0
    for e in range(num_experts):
        if first[e + 1] > 1:
            many[several] = e
            several += 1
        first[e + 1] += first[e]
    at = first[:-1].copy()
    item_slots = np.empty(phy2log.size, np.int64)
    for s in range(phy2log.size):
        item_slots[at[phy2log[s]]] = s
        at[phy2log[s]] += 1
    return first, item_slots, many


@kernel
def _fill_layers(first_layer, last_layer, expert_loads, phy2log, num_ranks, max_sweeps, shares):
    """Layers ``first_layer`` to ``last_layer``, swept until the certificate holds.

    ``expert_loads [L, E]``: not negative. ``phy2log [L, R]``: experts of slots. ``num_ranks``: ``P``.
    ``max_sweeps``: at most so many. ``shares [L, R]`` is written.
    """
    num_experts = expert_loads.shape[1]
    slots_per_rank = phy2log.shape[1] // num_ranks
    rank_loads = np.empty(num_ranks, np.float64)
    reached = np.empty(num_ranks, np.bool_)
    for layer in range(first_layer, last_layer):
        x, slot_experts, taken = expert_loads[layer], phy2log[layer], shares[layer]
        first, item_slots, many = _index(slot_experts, num_experts)
        rank_loads[:] = 0.0
        for s in range(slot_experts.size):
            e = slot_experts[s]
            taken[s] = x[e] / (first[e + 1] - first[e])
            rank_loads[s // slots_per_rank] += taken[s]
        for sweep in range(max_sweeps):
            for m in range(many.size):
                # Forth and back: a chain of ranks settles in fewer sweeps than in one direction alone.
                e = many[m] if sweep % 2 == 0 else many[many.size - 1 - m]
                _fill_expert(
                    x[e],
                    item_slots[first[e] : first[e + 1]],
                    first[e + 1] - first[e],
                    slots_per_rank,
                    taken,
                    rank_loads,
                )
            if (
                sweep % 8 == 7
                and _excess(item_slots, first, many, slots_per_rank, taken, rank_loads, reached) < TOLERANCE
            ):
                break
        _to_shares(first, item_slots, taken)


@kernel
def _to_shares(first, item_slots, taken):
    """Tokens to parts of their sum, which beside much larger loads has lost digits of the expert's own.

    ``first [E + 1]``, ``item_slots [R]``: see `_index`. ``taken [R]``: tokens of slots, then shares.
    """
    for e in range(first.size - 1):
        total = 0.0
        for k in range(first[e], first[e + 1]):
            total += taken[item_slots[k]]
        for k in range(first[e], first[e + 1]):
            s = item_slots[k]
            taken[s] = taken[s] / total if total > 0 else 1.0 / (first[e + 1] - first[e])


def water_fill(
    loads: npt.NDArray[Any], phy2log: npt.NDArray[np.int64], num_ranks: int, sweeps: int = MAX_SWEEPS
) -> FloatArray:
    """The split of one window's tokens that minimises the largest rank load of every layer.

    Parameters
    ----------
    loads : ``[L, E]``, not negative
    phy2log : ``[L, R]``
    sweeps : passes over the experts after which to stop short of it; nobody waits for the optimum of a batch

    Returns
    -------
    ``shares [L, R]``: the part of its expert's tokens that each slot takes; each expert's sum to 1. The largest
    rank load is within 8e-7 of the optimum. Experts without load are split evenly.
    """
    shares = np.empty(phy2log.shape, np.float64)
    for_layers(
        _fill_layers,
        len(phy2log),
        np.ascontiguousarray(loads, np.float64),
        phy2log,
        num_ranks,
        sweeps,
        shares,
    )
    return shares


@kernel
def _split_layers(first_layer, last_layer, vectors, phy2log, num_ranks, max_sweeps, shares):
    """Layers ``first_layer`` to ``last_layer``, improved pair by pair.

    ``vectors [L, W, E]``: loads of experts. ``phy2log [L, R]``: experts of slots. ``num_ranks``: ``P``.
    ``max_sweeps``: at most so many. ``shares [L, R]`` is changed.
    """
    num_windows, num_experts = vectors.shape[1:]
    slots_per_rank = phy2log.shape[1] // num_ranks
    rank_loads = np.empty((num_windows, num_ranks), np.float64)
    for layer in range(first_layer, last_layer):
        layer_vectors, expert_of, share = vectors[layer], phy2log[layer], shares[layer]
        first, item_slots, many = _index(expert_of, num_experts)
        rank_loads[:] = 0.0
        for s in range(expert_of.size):
            for w in range(num_windows):
                rank_loads[w, s // slots_per_rank] += share[s] * layer_vectors[w, expert_of[s]]
        for _ in range(max_sweeps):
            largest_move = 0.0
            for e in many:
                for i in range(first[e], first[e + 1]):
                    for j in range(i + 1, first[e + 1]):
                        moved = _balance_pair(
                            layer_vectors, e, item_slots[i], item_slots[j], slots_per_rank, share, rank_loads
                        )
                        largest_move = max(largest_move, moved)
            if largest_move < 1e-6:
                break


@kernel
def _balance_pair(vectors, e, s, t, slots_per_rank, share, rank_loads):
    """Move share from one replica to another while that lowers the objective; a damped Newton step.

    ``vectors [W, E]``: loads of experts. ``e``: the expert. ``s``, ``t``: its slots. ``slots_per_rank``: ``S``.
    ``share [R]`` and ``rank_loads [W, P]`` are changed. Returns the share moved.
    """
    p, q = s // slots_per_rank, t // slots_per_rank
    if p == q:
        return 0.0
    down, curve, before = 0.0, 0.0, 0.0
    for w in range(rank_loads.shape[0]):
        x, mine, theirs = vectors[w, e], rank_loads[w, p], rank_loads[w, q]
        down += x * (slope(theirs) - slope(mine))
        curve += bend(mine, theirs, x)
        before += cost(mine) + cost(theirs)
    if curve <= 0.0:
        return 0.0
    step = min(max(-down / curve, -share[t]), share[s])
    for _ in range(6):
        after = 0.0
        for w in range(rank_loads.shape[0]):
            after += cost(rank_loads[w, p] - step * vectors[w, e]) + cost(
                rank_loads[w, q] + step * vectors[w, e]
            )
        if after < before:
            share[s] -= step
            share[t] += step
            for w in range(rank_loads.shape[0]):
                rank_loads[w, p] -= step * vectors[w, e]
                rank_loads[w, q] += step * vectors[w, e]
            return abs(step)
        step *= 0.5
    return 0.0


def split_windows(vectors: FloatArray, phy2log: npt.NDArray[np.int64], num_ranks: int) -> FloatArray:
    """One split for several windows, best on average: it lowers the search's objective of all rank loads.

    Parameters
    ----------
    vectors : ``[L, W, E]`` from `to_vectors`
    phy2log : ``[L, R]``

    Returns
    -------
    ``shares [L, R]``, never worse on that sum than water-filling of the mean window
    """
    shares = water_fill(vectors.mean(axis=1), phy2log, num_ranks)
    if vectors.shape[1] > 1:
        for_layers(_split_layers, len(phy2log), vectors, phy2log, num_ranks, 200, shares)
    return shares
