"""Planning layers from several windows at once: from nothing, or from the placement that is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..planning.kernel import copy_into, for_layers, kernel
from ..planning.orders import lpt_order
from ..planning.random import DRAW_BITS, draw, mix
from ..planning.replicate import cap_replicas, item_weights, replicate_layer
from .budget import Options
from .state import FloatArray, IntArray, Layers, Trail, empty_trails, hold, mean_largest, new_state, sum_loads
from .walk import part_twins, place_items, search_layer

SMALL_LAYER = 64  # slots up to which a layer is searched from several replica counts
MOST_STARTS = 64
START_WORK = 1024  # starts times slots; all three: tests/policy/test_robust_balance.py, small cases


class Demand(NamedTuple):
    """What replica counts are made from, and by what items are ordered: integers as `to_integers` makes them."""

    counts_from: IntArray
    """``[B, E]``: loads that replica counts are made from"""
    peaks: IntArray
    """``[B, E]``: loads by which items are ordered, heaviest first"""


class Limits(NamedTuple):
    """When the search of a layer ends."""

    max_steps: int
    """swaps and exchanges"""
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
    trail = Trail(
        np.empty((max_steps, 3), np.int64),
        np.zeros(max_steps + 1, np.int64),
        np.zeros(max_steps + 1, np.float64),
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
            if starts > 1 and mean_largest(state.rank_loads) < least * (1.0 - 1e-9):
                least = mean_largest(state.rank_loads)
                copy_into(phy2log[layer], state.phy2log)
            search_layer(state, trail, 0, 0, 1, 0.0)
            largest = mean_largest(state.rank_loads)
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
def _warm_layers(first, last, layers, start, limits, trails, taken):
    """Layers ``first`` to ``last`` from a placement.

    ``layers``: `Layers`. ``start [B, R]``: the placement. ``limits``: `Limits`. ``trails``: `Trail` of all layers,
    written. ``taken [B, 2]``: steps taken, and the first of them that part twins, written.
    """
    for layer in range(first, last):
        state = new_state(layers, layer, start.shape[1])
        hold(state, start[layer])
        trail = Trail(trails.steps[layer], trails.fetched[layer], trails.value[layer])
        trail.fetched[0] = 0
        trail.value[0] = mean_largest(state.rank_loads)
        parted = part_twins(state, trail)
        taken[layer, 0] = search_layer(state, trail, parted, 1, limits.most, limits.min_gain)
        taken[layer, 1] = parted


def search_from(layers: Layers, start: IntArray, limits: Limits) -> tuple[list[Options], IntArray]:
    """The steps from a placement that pay, layer by layer, those that part twins first.

    Parameters
    ----------
    start : ``[B, R]``, the placement

    Returns
    -------
    options : for each layer what every prefix of its steps costs and is worth
    steps : ``[B, K, 3]``, for `apply_steps`
    """
    trails = empty_trails(len(start), limits.max_steps)
    taken = np.empty((len(start), 2), np.int64)
    for_layers(_warm_layers, len(start), layers, start, limits, trails, taken)
    options = [
        Options(
            fetches=fetched[: n + 1],
            regrouped=np.zeros(n + 1, np.int64),
            parted=np.minimum(np.arange(n + 1), parted),
            imbalance=value[: n + 1],
        )
        for fetched, value, (n, parted) in zip(trails.fetched, trails.value, taken, strict=True)
    ]
    return options, trails.steps


@kernel
def _measure_layers(first, last, layers, phy2log, imbalance):
    """Layers ``first`` to ``last`` of a placement ``phy2log [B, R]``.

    ``layers``: `Layers`. ``imbalance [B]`` is written: mean over windows of the largest rank load.
    """
    for layer in range(first, last):
        state = new_state(layers, layer, phy2log.shape[1])
        hold(state, phy2log[layer])
        imbalance[layer] = mean_largest(state.rank_loads)


def measure(layers: Layers, phy2log: IntArray) -> FloatArray:
    """The in-sample imbalance ``[B]`` of a placement ``[B, R]``: mean over windows of the largest rank load."""
    imbalance = np.empty(len(phy2log), np.float64)
    for_layers(_measure_layers, len(phy2log), layers, phy2log, imbalance)
    return imbalance


def apply_steps(start: IntArray, steps: IntArray, counts: Sequence[int]) -> IntArray:
    """The placement after the first ``counts [B]`` steps of each layer."""
    phy2log: IntArray = start.copy()
    for row, layer_steps, count in zip(phy2log, steps, counts, strict=True):
        for slot, other, expert in layer_steps[:count]:
            if other >= 0:
                row[slot], row[other] = row[other], row[slot]
            else:
                row[slot] = expert
    return phy2log
