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
BETWEEN_PROOFS = 8  # sweeps after which the certificate is asked whether that is enough
TOLERANCE = 8e-7  # of the largest rank load; tests/planning/test_shares.py compares with linear programming


@kernel
def fill_expert(x, slots, begin, end, rank_of, taken, rank_loads):
    """Split load ``x`` over the ranks of an expert's slots so that the fullest of those it uses are level.

    ``slots [N]``: from ``begin`` to ``end`` those of the expert. ``rank_of [R]``: ranks of slots. ``taken [R]``,
    tokens of slots, and ``rank_loads [P]`` are changed. Returns the largest change of a slot.
    """
    if end - begin == 2 and rank_of[slots[begin]] != rank_of[slots[begin + 1]]:
        return _fill_two(x, slots[begin], slots[begin + 1], rank_of, taken, rank_loads)
    before, order = np.empty(end - begin, np.float64), np.empty(end - begin, np.int64)
    for k in range(begin, end):
        s = slots[k]
        before[k - begin] = taken[s]
        rank_loads[rank_of[s]] -= taken[s]
        taken[s] = 0.0
    known = _by_rank_load(slots, begin, end, rank_of, rank_loads, order)
    total, level, used = 0.0, 0.0, 0
    while used < known and (used == 0 or rank_loads[rank_of[order[used]]] < level):
        total += rank_loads[rank_of[order[used]]]
        used += 1
        level = (x + total) / used
    for i in range(used):
        s = order[i]
        taken[s] = max(level - rank_loads[rank_of[s]], 0.0)
        rank_loads[rank_of[s]] = level
    largest = 0.0
    for k in range(begin, end):
        largest = max(largest, abs(taken[slots[k]] - before[k - begin]))
    return largest


@kernel
def _by_rank_load(slots, begin, end, rank_of, rank_loads, order):
    """Slots in the order of their ranks' loads, of twins the first alone; returns how many.

    ``slots [N]``: from ``begin`` to ``end`` those of an expert. ``rank_of [R]``: ranks of slots. ``rank_loads [P]``.
    ``order [X]`` is written.
    """
    known = 0
    for k in range(begin, end):
        s, at = slots[k], known
        for i in range(known):
            if rank_of[order[i]] == rank_of[s]:
                at = -1
        if at < 0:
            continue
        while at > 0 and rank_loads[rank_of[order[at - 1]]] > rank_loads[rank_of[s]]:  # few: insertion sort
            order[at] = order[at - 1]
            at -= 1
        order[at] = s
        known += 1
    return known


@kernel
def _fill_two(x, s, t, rank_of, taken, rank_loads):
    """`fill_expert` for two slots ``s`` and ``t`` on two ranks, which most experts that are split have.

    ``x``: the expert's load. ``rank_of [R]``: ranks of slots. ``taken [R]`` and ``rank_loads [P]`` are changed.
    """
    p, q, before = rank_of[s], rank_of[t], taken[s]
    mine, other = rank_loads[p] - before, rank_loads[q] - taken[t]
    low, high = min(mine, other), max(mine, other)
    level = x + low
    if high < level:
        level = (x + (low + high)) / 2
    # Without branches, which a processor would guess wrongly half of the time.
    more, less = max(level - low, 0.0), max(level - high, 0.0)
    first = mine <= other
    taken[s] = more if first else less
    taken[t] = less if first else more
    rank_loads[p] = level if first else max(level, high)
    rank_loads[q] = max(level, high) if first else level
    return abs(taken[s] - before)


@kernel
def excess(item_slots, first, many, rank_of, taken, rank_loads, reached):
    """The largest rank load over the best that any split can reach, by the certificate of the module's text.

    ``item_slots [R]``, ``first [E + 1]``, ``many [M]``: see `slots_by_expert`. ``rank_of [R]``: ranks of
    slots. ``taken [R]``: tokens of slots. ``rank_loads [P]``: their sums. ``reached [P]``: scratch.
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
                if reached[rank_of[s]]:
                    inside = inside or taken[s] > 1e-12 * rank_loads[top]
                else:
                    outside = True
            if inside and outside:
                growing = True
                for k in range(first[e], first[e + 1]):
                    reached[rank_of[item_slots[k]]] = True
    total, count = 0.0, 0
    for r in range(rank_loads.size):
        if reached[r]:
            total += rank_loads[r]
            count += 1
    mean = total / count
    return rank_loads[top] / mean - 1.0 if mean > 0 else 0.0


@kernel
def slots_by_expert(phy2log, num_experts):
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
def ranks_of_slots(num_slots, num_ranks):
    """The rank of each slot ``[R]``. ``num_slots``: ``R``. ``num_ranks``: ``P``."""
    rank_of = np.empty(num_slots, np.int64)
    for s in range(num_slots):
        rank_of[s] = s // (num_slots // num_ranks)
    return rank_of


@kernel
def split_evenly(x, first, phy2log, rank_of, taken, rank_loads):
    """An even split of one layer.

    ``x [E]``: loads of experts. ``first [E + 1]``: see `slots_by_expert`. ``phy2log [R]``, ``rank_of [R]``: experts
    and ranks of slots. ``taken [R]``, tokens of slots, and ``rank_loads [P]`` are written.
    """
    rank_loads[:] = 0.0
    for s in range(phy2log.size):
        e = phy2log[s]
        taken[s] = x[e] / (first[e + 1] - first[e])
        rank_loads[rank_of[s]] += taken[s]


@kernel
def _fill_layers(first_layer, last_layer, expert_loads, phy2log, num_ranks, max_sweeps, shares):
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
        split_evenly(x, first, phy2log[layer], rank_of, taken, rank_loads)
        for sweep in range(max_sweeps):
            for m in range(many.size):
                # Forth and back: a chain of ranks settles in fewer sweeps than in one direction alone.
                e = many[m] if sweep % 2 == 0 else many[many.size - 1 - m]
                fill_expert(x[e], item_slots, first[e], first[e + 1], rank_of, taken, rank_loads)
            if sweep % BETWEEN_PROOFS == BETWEEN_PROOFS - 1 and (
                excess(item_slots, first, many, rank_of, taken, rank_loads, reached) < TOLERANCE
            ):
                break
        to_shares(first, item_slots, taken)


@kernel
def to_shares(first, item_slots, taken):
    """Tokens to parts of their sum, which beside much larger loads has lost digits of the expert's own.

    ``first [E + 1]``, ``item_slots [R]``: see `slots_by_expert`. ``taken [R]``: tokens of slots, then shares.
    """
    for e in range(first.size - 1):
        total = 0.0
        for k in range(first[e], first[e + 1]):
            total += taken[item_slots[k]]
        for k in range(first[e], first[e + 1]):
            s = item_slots[k]
            taken[s] = taken[s] / total if total > 0 else 1.0 / (first[e + 1] - first[e])


def water_fill(loads: npt.NDArray[Any], phy2log: npt.NDArray[np.int64], num_ranks: int) -> FloatArray:
    """The split of one window's tokens that minimises the largest rank load of every layer.

    Parameters
    ----------
    loads : ``[L, E]``, not negative
    phy2log : ``[L, R]``

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
        MAX_SWEEPS,
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
        first, item_slots, many = slots_by_expert(expert_of, num_experts)
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
