"""Placements made for tokens that are split by the load of each batch.

The search sees the rank loads of water-filling, in windows pushed away from their mean: what traffic has done it may
do half as much again. It starts from the plan for an even split, draws a step that concerns a rank that is level with
the busiest one, and takes it if it lowers the objective, or raises it by less than a limit that falls to nothing
(threshold accepting; Dueck and Scheuer, Journal of Computational Physics 90, 1990). Ranks that share experts
are level at the optimum: these, and no others, have a price in the dual of the split.
"""

from __future__ import annotations

import numpy as np

from ..metrics import imbalance, rank_loads
from ..placement import Placement
from ..planning.kernel import copy_into, for_layers, kernel
from ..planning.random import draw, mix
from ..planning.shares import water_fill
from ..planning.windows import to_vectors
from ..topology import Topology
from .flows import LEVEL, new_flows, try_step
from .fresh import place_fresh
from .state import FloatArray, IntArray
from .sublayers import WHOLE

# All of these: benchmarks/bench_split.py.
PUSH = 1.5  # times the deviation of a window from the mean of all
TRIES = 3000  # steps tried in a layer
SPLITS = 80  # of a window, for a step that is tried
WARMTH = 0.02  # the first limit, in what the layer costs above level ranks
LEAST_WIN = (
    1e-5  # of an imbalance, in all windows left out together: an optimum is known to within 8e-7 in each
)
FOLDS = 2  # of cross-validation; with three windows each is left out once, since one alone shows no deviation


def place_for_batches(windows: FloatArray, topology: Topology, max_steps: int, least: float) -> IntArray:
    """The plan for an even split, or in each layer the searched one where that wins under cross-validation.

    Every other window (of up to three, each in turn) is left out, both plans are made from the rest and scored on
    those under the best split of each; then the other way round. A layer whose searched plans are not better on
    average keeps the plan for an even split, and so do all layers of one window, of which none can be left out.

    Parameters
    ----------
    windows : ``[W, L, E]``
    max_steps, least : see `place_fresh`

    Returns
    -------
    ``phy2log [L, R]``
    """
    result = place_fresh(windows, topology, WHOLE, max_steps, least)
    folds = len(windows) if len(windows) <= 3 else FOLDS
    if folds < 2 or topology.slots_per_rank * topology.num_ranks == windows.shape[2]:
        return result
    gain = np.zeros(windows.shape[1])
    for fold in range(folds):
        left_out = np.arange(len(windows)) % folds == fold
        even = place_fresh(windows[~left_out], topology, WHOLE, max_steps, least)
        searched = _searched(windows[~left_out], even, topology)
        for window in windows[left_out]:
            gain += _at_best(window, even, topology) - _at_best(window, searched, topology)
    wins = np.flatnonzero(gain > LEAST_WIN)
    if wins.size:
        result[wins] = _searched(windows[:, wins], result[wins], topology)
    return result


def _at_best(window: FloatArray, phy2log: IntArray, topology: Topology) -> FloatArray:
    """Imbalance ``[L]`` of one window ``[L, E]`` under its best split."""
    shares = water_fill(window, phy2log, topology.num_ranks)
    return imbalance(rank_loads(window, Placement(phy2log, topology.num_ranks, window.shape[1]), shares))


def _searched(windows: FloatArray, phy2log: IntArray, topology: Topology) -> IntArray:
    """A placement ``[L, R]`` searched from another one."""
    vectors = pushed(to_vectors(windows, topology.num_ranks), topology.num_ranks)
    found: IntArray = phy2log.copy()
    for_layers(_search_layers, len(found), vectors, topology.num_ranks, found)
    return found


def pushed(vectors: FloatArray, num_ranks: int) -> FloatArray:
    """Windows ``[L, W, E]`` pushed away from their mean: ``[L, W, E]``, mean rank load 1 in each."""
    mean = vectors.mean(axis=1, keepdims=True)
    away = np.maximum(mean + PUSH * (vectors - mean), 0.0)
    sums = away.sum(axis=2, keepdims=True)
    return np.asarray(np.divide(away * num_ranks, sums, out=np.zeros_like(away), where=sums > 0))


@kernel
def _search_layers(first, last, vectors, num_ranks, phy2log):
    """Layers ``first`` to ``last``.

    ``vectors [L, W, E]``: loads of experts. ``num_ranks``: ``P``. ``phy2log [L, R]``: where to start; overwritten.
    """
    step = np.empty(3, np.int64)
    for layer in range(first, last):
        flows = new_flows(vectors[layer], phy2log[layer], num_ranks)
        least = flows.costs.sum()
        # Draws do not depend on the number of the layer: permuted layers have permuted plans.
        state = np.uint64(0)
        for number in range(TRIES):
            above = flows.costs.sum() - flows.costs.size * num_ranks
            state = mix(state, number)
            draw_step(flows, state, step)
            if step[0] < 0:
                continue
            limit = WARMTH * (1.0 - number / TRIES) * max(above, 0.0)
            if try_step(flows, step[0], step[1], step[2], SPLITS, limit) and flows.costs.sum() < least:
                least = flows.costs.sum()
                copy_into(phy2log[layer], flows.phy2log)


@kernel
def _below(state, item, size):
    """The draw number ``item``, from 0 up to below ``size``. ``state``: of the generator."""
    return draw(state, item) % size


@kernel
def draw_step(flows, state, step):
    """Draw a step that makes no twins and concerns a rank that is level with the busiest of a window, mostly.

    ``flows``: the layer. ``state``: of the generator. ``step [3]`` is written: (slot, other slot, -1) for a swap,
    (slot, -1, expert) for an exchange, the first -1 for none.
    """
    size, phy2log, logcnt = flows.slots_per_rank, flows.phy2log, flows.logcnt
    num_windows, num_ranks = flows.rank_loads.shape
    step[0], step[1], step[2] = -1, -1, -1
    p = _below(state, 0, num_ranks)
    if _below(state, 1, 4) < 3:
        p = _level_rank(flows.rank_loads[_below(state, 2, num_windows)], p)
    kind = _below(state, 3, 4)
    s = p * size + _below(state, 4, size)
    t = _below(state, 5, phy2log.size)
    if kind < 2:  # a swap
        a, b = phy2log[s], phy2log[t]
        if s // size != t // size and not _holds(flows, t // size, a) and not _holds(flows, p, b):
            step[0], step[1] = s, t
        return
    # An expert of the rank gets a replica elsewhere, or a spare replica of the rank gives way.
    b = phy2log[s] if kind == 2 else _below(state, 6, logcnt.size)
    u = t if kind == 2 else s
    if logcnt[phy2log[u]] > 1 and logcnt[b] < num_ranks and not _holds(flows, u // size, b):
        step[0], step[2] = u, b


@kernel
def _level_rank(loads, start):
    """The first rank from ``start`` on that is level with the busiest. ``loads [P]``: of ranks."""
    largest = loads.max() - LEVEL
    for k in range(loads.size):
        if loads[(start + k) % loads.size] >= largest:
            return (start + k) % loads.size
    return start


@kernel
def _holds(flows, rank, expert):
    """Whether ``rank`` holds ``expert``. ``flows``: the layer."""
    for s in range(rank * flows.slots_per_rank, (rank + 1) * flows.slots_per_rank):
        if flows.phy2log[s] == expert:
            return True
    return False
