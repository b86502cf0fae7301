"""Token shares: how an expert's tokens are split among its replicas, for a placement that is fixed.

With one window the split that minimises the largest rank load is a flow problem. Water-filling one expert at a
time is exact coordinate descent on the sum of squared rank loads, whose minimum over splits also has the smallest
maximum (the loads form a base of a polymatroid; Fujishige, Lexicographically optimal base of a polymatroid with
respect to a weight vector, Mathematics of Operations Research, 1980). A certificate tells when to stop: ranks
that share experts with the busiest one, directly or through others, cannot do better than their mean.

With several windows one split serves all of them, and the sum over windows of the 8th powers of the rank loads is
lowered by moving tokens between two replicas at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..placement import Placement
from ..trace import LoadTrace, check_loads
from .kernel import for_layers, kernel
from .steps import power8
from .windows import to_vectors

FloatArray = npt.NDArray[np.float64]
MAX_SWEEPS = 20_000
TOLERANCE = 8e-7


@kernel
def _fill_expert(x, slots_of, count, slots, taken, loads):
    """Split load ``x`` over the ranks of an expert's slots so that the fullest of those it uses are level."""
    for k in range(count):
        loads[slots_of[k] // slots] -= taken[slots_of[k]]
        taken[slots_of[k]] = 0.0
    # Twins share a rank: only the first slot on a rank is filled.
    ranks = np.empty(count, np.int64)
    known = 0
    for k in range(count):
        r = slots_of[k] // slots
        if known and ranks[known - 1] == r:
            continue
        at = known
        ranks[known] = r
        known += 1
    for i in range(1, known):  # few ranks: insertion sort by load
        r = ranks[i]
        at = i
        while at > 0 and loads[ranks[at - 1]] > loads[r]:
            ranks[at] = ranks[at - 1]
            at -= 1
        ranks[at] = r
    total, level, used = 0.0, 0.0, 0
    while used < known and (used == 0 or loads[ranks[used]] < level):
        total += loads[ranks[used]]
        used += 1
        level = (x + total) / used
    for i in range(used):
        r = ranks[i]
        part = max(level - loads[r], 0.0)
        loads[r] = level
        for k in range(count):
            if slots_of[k] // slots == r:
                taken[slots_of[k]] = part
                break


@kernel
def _excess(item_slots, first, many, slots, taken, loads, reached):
    """The largest rank load over the best that any split can reach, by the certificate of the module's text."""
    reached[:] = False
    top = loads.argmax()
    reached[top] = True
    growing = True
    while growing:
        growing = False
        for m in range(many.size):
            e = many[m]
            inside, outside = False, False
            for k in range(first[e], first[e + 1]):
                s = item_slots[k]
                if reached[s // slots]:
                    inside = inside or taken[s] > 1e-12 * loads[top]
                else:
                    outside = True
            if inside and outside:
                growing = True
                for k in range(first[e], first[e + 1]):
                    reached[item_slots[k] // slots] = True
    total, count = 0.0, 0
    for r in range(loads.size):
        if reached[r]:
            total += loads[r]
            count += 1
    mean = total / count
    return loads[top] / mean - 1.0 if mean > 0 else 0.0


@kernel
def _index(expert_of, num_experts):
    """Slots by expert: where each expert's begin, the slots, and the experts with several."""
    first = np.zeros(num_experts + 1, np.int64)
    for e in expert_of:
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
    item_slots = np.empty(expert_of.size, np.int64)
    for s in range(expert_of.size):
        item_slots[at[expert_of[s]]] = s
        at[expert_of[s]] += 1
    return first, item_slots, many


@kernel
def _fill_layers(first_layer, last_layer, loads, phy2log, num_ranks, shares):
    num_experts = loads.shape[1]
    slots = phy2log.shape[1] // num_ranks
    rank_loads = np.empty(num_ranks, np.float64)
    reached = np.empty(num_ranks, np.bool_)
    for layer in range(first_layer, last_layer):
        x, expert_of, taken = loads[layer], phy2log[layer], shares[layer]
        first, item_slots, many = _index(expert_of, num_experts)
        rank_loads[:] = 0.0
        for s in range(expert_of.size):
            e = expert_of[s]
            taken[s] = x[e] / (first[e + 1] - first[e])
            rank_loads[s // slots] += taken[s]
        for sweep in range(MAX_SWEEPS):
            for m in range(many.size):
                # Forth and back: a chain of ranks settles in fewer sweeps than in one direction alone.
                e = many[m] if sweep % 2 == 0 else many[many.size - 1 - m]
                _fill_expert(
                    x[e],
                    item_slots[first[e] : first[e + 1]],
                    first[e + 1] - first[e],
                    slots,
                    taken,
                    rank_loads,
                )
            if (
                sweep % 8 == 7
                and _excess(item_slots, first, many, slots, taken, rank_loads, reached) < TOLERANCE
            ):
                break
        _to_shares(first, item_slots, taken)


@kernel
def _to_shares(first, item_slots, taken):
    """Tokens to parts of their sum, which beside much larger loads has lost digits of the expert's own."""
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
        _fill_layers, len(phy2log), np.ascontiguousarray(loads, np.float64), phy2log, num_ranks, shares
    )
    return shares


@kernel
def _split_layers(first_layer, last_layer, vectors, phy2log, num_ranks, max_sweeps, shares):
    num_windows, num_experts = vectors.shape[1:]
    slots = phy2log.shape[1] // num_ranks
    loads = np.empty((num_windows, num_ranks), np.float64)
    for layer in range(first_layer, last_layer):
        v, expert_of, share = vectors[layer], phy2log[layer], shares[layer]
        first, item_slots, many = _index(expert_of, num_experts)
        loads[:] = 0.0
        for s in range(expert_of.size):
            for w in range(num_windows):
                loads[w, s // slots] += share[s] * v[w, expert_of[s]]
        for _ in range(max_sweeps):
            largest_move = 0.0
            for e in many:
                for i in range(first[e], first[e + 1]):
                    for j in range(i + 1, first[e + 1]):
                        moved = _balance_pair(v, e, item_slots[i], item_slots[j], slots, share, loads)
                        largest_move = max(largest_move, moved)
            if largest_move < 1e-6:
                break


@kernel
def _balance_pair(v, e, s, t, slots, share, loads):
    """Move share from one replica to another while that lowers the sum of 8th powers; a damped Newton step."""
    p, q = s // slots, t // slots
    if p == q:
        return 0.0
    slope, bend, before = 0.0, 0.0, 0.0
    for w in range(loads.shape[0]):
        x, mine, theirs = v[w, e], loads[w, p], loads[w, q]
        mine6, theirs6 = mine * mine * mine, theirs * theirs * theirs
        mine6, theirs6 = mine6 * mine6, theirs6 * theirs6
        slope += 8.0 * x * (theirs6 * theirs - mine6 * mine)
        bend += 56.0 * x * x * (theirs6 + mine6)
        before += power8(mine) + power8(theirs)
    if bend <= 0.0:
        return 0.0
    step = min(max(-slope / bend, -share[t]), share[s])
    for _ in range(6):
        after = 0.0
        for w in range(loads.shape[0]):
            after += power8(loads[w, p] - step * v[w, e]) + power8(loads[w, q] + step * v[w, e])
        if after < before:
            share[s] -= step
            share[t] += step
            for w in range(loads.shape[0]):
                loads[w, p] -= step * v[w, e]
                loads[w, q] += step * v[w, e]
            return abs(step)
        step *= 0.5
    return 0.0


def split_windows(vectors: FloatArray, phy2log: npt.NDArray[np.int64], num_ranks: int) -> FloatArray:
    """One split for several windows, best on average: it lowers the sum of 8th powers of all rank loads.

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


def split_shares(trace: LoadTrace | npt.ArrayLike, placement: Placement) -> FloatArray:
    """Token shares for a fixed placement: best for one window, best on average for several.

    Shares fitted to little traffic overfit: score them on later windows (``equipoise.rank_loads`` takes them)
    before an engine uses them.

    Parameters
    ----------
    trace : a `LoadTrace`, or counts ``[L, E]`` or ``[W, L, E]``
    placement : of the same layers and experts

    Returns
    -------
    ``shares [L, R]``: the part of its expert's tokens that each slot takes; each expert's sum to 1

    Raises
    ------
    ArgumentError
        if loads are bad or do not fit the placement

    Examples
    --------
    >>> placement = Placement([[0, 1, 0, 2]], num_ranks=2, num_experts=3)
    >>> split_shares([[60.0, 30.0, 10.0]], placement).round(3).tolist()
    [[0.333, 1.0, 0.667, 1.0]]
    """
    counts = trace.counts if isinstance(trace, LoadTrace) else check_loads(trace, "trace", (2, 3))
    counts = counts[None] if counts.ndim == 2 else counts
    expected = (placement.num_layers, placement.num_experts)
    if counts.shape[1:] != expected:
        raise ArgumentError(
            f"trace has [layers, experts] = {list(counts.shape[1:])}, the placement {list(expected)}"
        )
    return split_windows(to_vectors(counts, placement.num_ranks), placement.phy2log, placement.num_ranks)
