"""Planning layers from several windows at once: from nothing, or from the placement that is there."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..planning.kernel import copy_into, for_layers, kernel
from ..planning.orders import lpt_order
from ..planning.random import DRAW_BITS, draw, mix
from ..planning.replicate import cap_replicas, item_weights, replicate_layer
from .budget import best_option
from .state import (
    FloatArray,
    IntArray,
    Layers,
    Trail,
    bounded,
    count_twins,
    hold,
    mean_largest,
    new_state,
    put,
    soft_largest,
    sum_loads,
)
from .trails import NEAR, RECOUNTED, TRAILS, Trails, follow_option, options_of, trail_of
from .walk import part_twins, place_items, recount_layer, search_layer

SMALL_LAYER = 64  # slots up to which a layer is searched from several replica counts
MOST_STARTS = 64
START_WORK = 1024  # starts times slots; all three: tests/policy/test_robust_balance.py, small cases
# The share of spare replicas that must belong to other experts for the second trail to be worth its time.
# benchmarks/bench_robust.py, replays of domain shifts.
STALE = 0.1
MOST_ROUNDS = 8  # of settling a layer; later ones find nothing: benchmarks/bench_robust.py, in-sample


class Demand(NamedTuple):
    """What replica counts are made from, and by what items are ordered: integers as `to_integers` makes them."""

    counts_from: IntArray
    """``[B, E]``: loads that replica counts are made from"""
    peaks: IntArray
    """``[B, E]``: loads by which items are ordered, heaviest first"""


class Limits(NamedTuple):
    """When the search of a layer ends."""

    max_steps: int
    """swaps and exchanges, those that part twins not counted"""
    most: int
    """fetches"""
    min_gain: float
    """what a fetch must take off the layer's imbalance"""


@kernel
def _fresh_layers(first, last, layers, demand, max_steps, starts, phy2log):
    """Layers ``first`` to ``last`` from nothing.

    ``layers``: `Layers`. ``demand``: `Demand`. ``max_steps``: steps of a search. ``starts``: replica counts tried.
    ``phy2log [B, R]`` is written.
    """
    num_slots, num_experts = phy2log.shape[1], layers.vectors.shape[2]
    item_expert = np.empty(num_slots, np.int64)
    order = np.empty(num_slots, np.int64)
    wanted = np.empty(num_experts, np.int64)
    room = max_steps + num_slots  # steps that part twins are not counted
    trail = Trail(
        np.empty((room, 3), np.int64),
        np.zeros(room + 1, np.int64),
        np.zeros(room + 1, np.float64),
        np.zeros(room + 1, np.float64),
        np.zeros(room + 1, np.int64),
    )
    for layer in range(first, last):
        state, least = new_state(layers, layer, num_slots), np.inf
        for start in range(starts):
            for e in range(num_experts):
                # Half to twice the load: other counts, which may pack better than the best ones.
                noise = 0.5 + 1.5 * draw(mix(np.uint64(0), start), e) / (1 << DRAW_BITS) if start else 1.0
                wanted[e] = np.int64(demand.counts_from[layer, e] * noise)
            _place_counts(state, wanted, demand.peaks[layer], item_expert, order)
            part_twins(state, trail)
            sum_loads(state)
            if starts > 1 and mean_largest(state) < least * (1.0 - 1e-9):
                least = mean_largest(state)
                copy_into(phy2log[layer], state.phy2log)
            search_layer(state, bounded(trail, max_steps), 0, 0, 1, 0.0)
            largest = mean_largest(state)
            if (start == 0 and starts == 1) or largest < least * (1.0 - 1e-9):
                least = largest
                copy_into(phy2log[layer], state.phy2log)


@kernel
def _place_counts(state, wanted, peaks, item_expert, order):
    """Replica counts for the loads ``wanted [E]``, their items placed greedily, heaviest of ``peaks [E]`` first.

    ``state``: the layer. ``item_expert [R]`` and ``order [R]`` are scratch.
    """
    num_experts, num_ranks = wanted.size, state.rank_loads.shape[1]
    weight = np.empty(order.size, np.int64)
    replicate_layer(wanted, order.size, state.logcnt, item_expert)
    cap_replicas(wanted, num_ranks, state.logcnt, item_expert)
    item_weights(peaks, state.logcnt, item_expert, weight)
    lpt_order(weight, order)
    if state.home[0] >= 0:  # experts tied to nodes: one item each before spare ones take their room
        at = 0
        for spare in range(2):
            for item in order:
                if (item >= num_experts) == spare:
                    weight[at] = item
                    at += 1
        copy_into(order, weight)
    place_items(state, item_expert, order)


def plan_fresh(layers: Layers, demand: Demand, num_slots: int, max_steps: int) -> IntArray:
    """Several windows, from nothing: greedy placement of vectors, then local search.

    A small layer has few swaps and exchanges to choose from and ends in a poor place more often: it is planned
    from several replica counts (drawn from a fixed seed), and the best plan in-sample is kept.

    Returns
    -------
    ``phy2log [B, R]``
    """
    phy2log = np.empty((len(layers.vectors), num_slots), np.int64)
    starts = min(MOST_STARTS, START_WORK // num_slots) if num_slots <= SMALL_LAYER else 1
    for_layers(_fresh_layers, len(phy2log), layers, demand, max_steps, starts, phy2log)
    return phy2log


@kernel
def _warm_layers(first, last, layers, demand, limits, rounds, trails):
    """Layers ``first`` to ``last`` from a placement.

    ``layers``: `Layers`. ``demand``: `Demand`. ``limits``: `Limits`. ``rounds``: how often the best option is taken
    at once and searched from; 0 to leave the choice to others. ``trails``: `Trails`, written; their start only where
    options are taken.
    """
    num_slots = trails.start.shape[1]
    for layer in range(first, last):
        state = new_state(layers, layer, num_slots)
        wanted = _wanted_counts(demand.counts_from[layer], num_slots, layers.num_ranks)
        _search_held(state, wanted, demand.peaks[layer], limits, trails, layer)
        for taken in range(rounds):
            options = options_of(trails, layer)
            for k in range(options.fetches.size):
                options.imbalance[k] += limits.min_gain * options.fetches[k]
            pick = best_option(options)
            if pick:
                follow_option(trails, layer, pick, trails.start[layer])
            if not pick or taken + 1 == rounds:
                break
            _search_held(state, wanted, demand.peaks[layer], limits, trails, layer)


@kernel
def _search_held(state, wanted, peaks, limits, trails, layer):
    """Both trails of one layer from its placement.

    ``state``: the layer. ``wanted [E]``: replica counts of a plan from nothing. ``peaks [E]``: see `Demand`.
    ``limits``: `Limits`. ``trails``: `Trails`. ``layer``: its number there.
    """
    hold(state, trails.start[layer])
    near, recounted = trail_of(trails, layer, NEAR), trail_of(trails, layer, RECOUNTED)
    near.fetched[0] = 0
    near.value[0] = soft_largest(state)
    near.largest[0] = mean_largest(state)
    near.twins[0] = count_twins(state)
    parted = part_twins(state, near)
    without_twins = state.phy2log.copy()
    trails.taken[layer, NEAR] = search_layer(
        state, bounded(near, parted + limits.max_steps), parted, 1, limits.most, limits.min_gain
    )
    trails.taken[layer, RECOUNTED] = 0
    put(state, without_twins)
    spare = without_twins.size - wanted.size
    if np.abs(wanted - state.logcnt).sum() // 2 > STALE * spare:
        _begin_alike(recounted, near, parted)
        recounted = bounded(recounted, parted + limits.max_steps)
        done = recount_layer(state, recounted, parted, wanted, peaks)
        done = search_layer(state, recounted, done, 1, limits.most, limits.min_gain)
        trails.taken[layer, RECOUNTED] = done
    for which in range(TRAILS):
        _leave_out_worse(trail_of(trails, layer, which), parted, trails.taken[layer, which])


@kernel
def _wanted_counts(expert_loads, num_slots, num_ranks):
    """Replica counts of a plan from nothing.

    ``expert_loads [E]``: integers. ``num_slots``: ``R``. ``num_ranks``: ``P``.
    """
    logcnt = np.empty(expert_loads.size, np.int64)
    item_expert = np.empty(num_slots, np.int64)
    replicate_layer(expert_loads, num_slots, logcnt, item_expert)
    cap_replicas(expert_loads, num_ranks, logcnt, item_expert)
    return logcnt


@kernel
def _begin_alike(trail, other, count):
    """Begin ``trail`` with the first ``count`` steps of the trail ``other``."""
    for k in range(count):
        copy_into(trail.steps[k], other.steps[k])
    for k in range(count + 1):
        trail.fetched[k], trail.twins[k] = other.fetched[k], other.twins[k]
        trail.value[k], trail.largest[k] = other.value[k], other.largest[k]


@kernel
def _leave_out_worse(trail, parted, taken):
    """Leave out prefixes whose largest rank loads are higher than they were when twins had been parted.

    ``trail``: of ``taken`` steps, the first ``parted`` of which part twins.
    """
    for k in range(parted + 1, taken + 1):
        if trail.largest[k] > trail.largest[parted] * (1.0 + 1e-12):
            trail.value[k] = trail.largest[k] = np.inf


def search_from(layers: Layers, demand: Demand, start: IntArray, limits: Limits) -> Trails:
    """The steps from a placement that pay, layer by layer, those that part twins first.

    No option leaves the largest rank loads of a (sub-)layer, averaged over windows, higher than they are once its
    twins are parted.

    Parameters
    ----------
    start : ``[B, R]``, the placement
    limits : of each trail
    """
    trails = Trails.empty(start, limits.max_steps + start.shape[1])
    for_layers(_warm_layers, len(start), layers, demand, limits, 0, trails)
    return trails


def settle(layers: Layers, demand: Demand, phy2log: IntArray, limits: Limits) -> None:
    """Make all moves that would earn their gain if this plan were the current one.

    Parameters
    ----------
    phy2log : ``[B, R]``, changed
    limits : of each search from there; ``min_gain`` is what a fetch must earn
    """
    trails = Trails.empty(phy2log, limits.max_steps + phy2log.shape[1])
    for_layers(_warm_layers, len(phy2log), layers, demand, limits, MOST_ROUNDS, trails)


@kernel
def _measure_layers(first, last, layers, phy2log, imbalance):
    """Layers ``first`` to ``last`` of a placement ``phy2log [B, R]``.

    ``layers``: `Layers`. ``imbalance [B]`` is written: mean over windows of the largest rank load.
    """
    for layer in range(first, last):
        state = new_state(layers, layer, phy2log.shape[1])
        hold(state, phy2log[layer])
        imbalance[layer] = mean_largest(state)


def measure(layers: Layers, phy2log: IntArray) -> FloatArray:
    """The in-sample imbalance ``[B]`` of a placement ``[B, R]``: mean over windows of the largest rank load."""
    imbalance = np.empty(len(phy2log), np.float64)
    for_layers(_measure_layers, len(phy2log), layers, phy2log, imbalance)
    return imbalance
