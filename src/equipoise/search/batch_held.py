"""Placements for batches from what ranks hold: few fetches, each of which has to earn its price.

The walk is that of `batch`, but downhill, with a price on fetches that falls from many times what a fetch has to
earn to just that: steps that gain most for a fetch come first. Every prefix of a walk is an option of its layer, and
options are chosen as those for an even split are (`budget`). After a shift of the traffic a walk ends in a poor
place. Where the plan for an even split, made from nothing, is nearly as good for batches as what it reaches, a plan
for batches made from nothing is an option as well, as a whole.
"""

from __future__ import annotations

import numpy as np

from ..planning.kernel import copy_into, for_layers, kernel
from ..planning.random import mix
from ..planning.relabel import relabel
from ..planning.windows import to_vectors
from ..problem import Held
from ..topology import Topology
from .batch import SPLITS, draw_step, place_for_batches, pushed
from .budget import choose
from .flows import new_flows, try_step, worth
from .fresh import place_fresh
from .layers import Limits
from .state import FloatArray, IntArray
from .sublayers import WHOLE
from .trails import NEAR, RECOUNTED, Trails, trail_of
from .warm import search_held

# All of these: benchmarks/bench_split.py, live re-planning.
TRIES = 2000  # steps tried in a layer
DEAREST = 64.0  # the first price of a fetch, in what one has to earn
STALE = (
    0.9  # of what the plan for an even split leaves above level ranks: a layer that has more is planned anew
)
TWIN = 1e6  # what a fetch would have to earn where no fetches are wanted but those that part twins


def place_from_held(
    windows: FloatArray, held: Held, topology: Topology, limits: Limits, budget: int | None
) -> IntArray:
    """What ranks hold, with the fetches that pay for batches.

    Parameters
    ----------
    windows : ``[W, L, E]``
    held : a complete placement on the ranks of ``topology``
    limits : ``max_steps`` of a layer; ``min_gain`` is what a fetch must take off its imbalance
    budget : most fetches of all layers together

    Returns
    -------
    ``phy2log [L, R]``
    """
    start = _without_twins(windows, held, topology, limits, budget)
    vectors = pushed(to_vectors(windows, topology.num_ranks), topology.num_ranks)
    trails = Trails.empty(start, max(limits.max_steps, topology.num_slots))
    needed = (~held.holds).astype(np.int64)
    for_layers(_walk_layers, len(start), vectors, topology.num_ranks, needed, limits, trails)
    even = place_fresh(windows, topology, WHOLE, limits.max_steps, limits.min_gain)
    rows = np.flatnonzero(_stale(trails, vectors, even, topology.num_ranks))
    fresh = start.copy()
    if rows.size:
        anew = place_for_batches(windows[:, rows], topology, limits.max_steps, limits.min_gain)
        fresh[rows] = relabel(anew, held.phy2log[rows], topology, held.num_experts)
    for_layers(_whole_layers, len(start), vectors, topology.num_ranks, needed, fresh, trails)
    return trails.follow(choose(trails.options(by_largest=budget is not None), budget, limits.min_gain))


def _without_twins(
    windows: FloatArray, held: Held, topology: Topology, limits: Limits, budget: int | None
) -> IntArray:
    """What ranks hold ``[L, R]``, with its twins parted as far as the budget reaches and nothing else moved."""
    if (held.holds.sum(axis=(1, 2)) == topology.num_slots).all():
        return held.phy2log
    few = limits._replace(max_steps=1)
    return search_held(windows, held, topology, WHOLE, few, limits.min_gain).take(budget, TWIN)


def _stale(trails: Trails, vectors: FloatArray, even: IntArray, num_ranks: int) -> np.ndarray:
    """Whether layers are to be planned anew ``[L]``. ``even [L, R]``: the plan for an even split."""
    value = np.empty(len(even), np.float64)
    for_layers(_value_layers, len(even), vectors, num_ranks, even, value)
    found = [
        walk[: done + 1].min()
        for walk, done in zip(trails.value[:, NEAR], trails.taken[:, NEAR], strict=True)
    ]
    return np.asarray(np.array(found) - 1.0 > STALE * (value - 1.0) + 1e-9)


@kernel
def _value_layers(first, last, vectors, num_ranks, phy2log, value):
    """Layers ``first`` to ``last`` of a placement.

    ``vectors [L, W, E]``: loads of experts. ``num_ranks``: ``P``. ``phy2log [L, R]``. ``value [L]`` is written.
    """
    for layer in range(first, last):
        value[layer], _ = worth(new_flows(vectors[layer], phy2log[layer], num_ranks).rank_loads)


@kernel
def _walk_layers(first, last, vectors, num_ranks, needed, limits, trails):
    """Layers ``first`` to ``last``.

    ``vectors [L, W, E]``: loads of experts. ``num_ranks``: ``P``. ``needed [L, P, E]``: 1 where a rank has to fetch
    an expert to hold it. ``limits``: `Limits`. ``trails``: `Trails`, whose first ones are written.
    """
    for layer in range(first, last):
        flows = new_flows(vectors[layer], trails.start[layer], num_ranks)
        trail = trail_of(trails, layer, NEAR)
        trail.fetched[0] = 0
        for s in range(flows.phy2log.size):
            trail.fetched[0] += needed[layer, flows.rank_of[s], flows.phy2log[s]]
        _note(trail, 0, flows.rank_loads)
        trails.taken[layer, NEAR] = _walk(flows, trail, needed[layer], limits.min_gain)


@kernel
def _walk(flows, trail, needed, min_gain):
    """Try steps; returns how many are taken.

    ``flows``: the layer. ``trail``: `Trail`, written. ``needed [P, E]``: see `_walk_layers`. ``min_gain``: what a
    fetch has to take off the layer's imbalance.
    """
    step, state, done = np.empty(3, np.int64), np.uint64(0), 0
    for number in range(TRIES):
        state = mix(state, number)
        draw_step(flows, state, step)
        if step[0] < 0 or done == len(trail.steps):
            continue
        value, _ = worth(flows.rank_loads)
        # Near level ranks what a layer costs above them grows with the square of what its imbalance is above 1.
        above = flows.costs.sum() - flows.rank_loads.size
        a_gain = 2.0 * above / max(value - 1.0, 1e-9)
        price = min_gain * a_gain * DEAREST ** (1.0 - number / TRIES)
        extra = _extra(flows, step, needed)
        if try_step(flows, step[0], step[1], step[2], SPLITS, -price * extra):
            copy_into(trail.steps[done], step)
            trail.fetched[done + 1] = trail.fetched[done] + extra
            done += 1
            _note(trail, done, flows.rank_loads)
    return done


@kernel
def _extra(flows, step, needed):
    """How many more fetches a step makes. ``flows``: the layer. ``step [3]``, ``needed [P, E]``: see `_walk`."""
    p, a = flows.rank_of[step[0]], flows.phy2log[step[0]]
    if step[1] < 0:
        return needed[p, step[2]] - needed[p, a]
    q, b = flows.rank_of[step[1]], flows.phy2log[step[1]]
    return needed[q, a] - needed[p, a] + needed[p, b] - needed[q, b]


@kernel
def _note(trail, done, rank_loads):
    """Write what ``done`` steps are worth, or that they are no option. ``trail``: `Trail`. ``rank_loads [W, P]``."""
    trail.value[done], trail.largest[done] = worth(rank_loads)
    trail.twins[done] = 0
    if done > 0 and trail.largest[done] > trail.largest[0] * (1.0 + 1e-12):
        trail.value[done] = trail.largest[done] = np.inf


@kernel
def _whole_layers(first, last, vectors, num_ranks, needed, fresh, trails):
    """Layers ``first`` to ``last``: another placement as a whole, where there is one.

    ``vectors [L, W, E]``, ``num_ranks``, ``needed [L, P, E]``: see `_walk_layers`. ``fresh [L, R]``: the other ones.
    ``trails``: `Trails`, whose second ones are written.
    """
    for layer in range(first, last):
        trail, done = trail_of(trails, layer, RECOUNTED), 0
        trail.largest[0] = trails.largest[layer, NEAR, 0]
        fetched = 0
        for s in range(fresh.shape[1]):
            fetched += needed[layer, s // (fresh.shape[1] // num_ranks), fresh[layer, s]]
            if fresh[layer, s] != trails.start[layer, s]:
                trail.steps[done, 0], trail.steps[done, 1], trail.steps[done, 2] = s, -1, fresh[layer, s]
                done += 1
                # Half of another placement is none.
                trail.value[done], trail.largest[done] = np.inf, np.inf
                trail.fetched[done], trail.twins[done] = 0, 0
        trails.taken[layer, RECOUNTED] = done
        if done > 0:
            trail.fetched[done] = fetched
            _note(trail, done, new_flows(vectors[layer], fresh[layer], num_ranks).rank_loads)
