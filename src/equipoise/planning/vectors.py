"""Planning layers from several windows at once: from nothing, or from the placement that is there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .frontier import Options
from .kernel import for_layers, kernel
from .orders import lpt_order
from .random import DRAW_BITS, draw, mix
from .replicate import cap_replicas, item_weights, replicate_layer
from .search import mean_largest, place_vectors, search_layer, separate_vectors, sum_loads

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

FEW_SLOTS = 64
MOST_STARTS = 64
START_WORK = 1024  # starts times slots: small layers are searched from several replica counts
PARTED = 1000.0  # what parting a pair of twins is worth, in imbalance: it comes before any gain


@kernel
def _fresh_layers(
    first, last, vectors, counts_from, peaks, home, ranks_per_node, num_ranks, max_steps, starts, phy2log
):
    num_windows, num_experts = vectors.shape[1:]
    num_slots = phy2log.shape[1]
    slots = num_slots // num_ranks
    wanted = np.empty(num_experts, np.int64)
    logcnt = np.empty(num_experts, np.int64)
    item_expert = np.empty(num_slots, np.int64)
    weight = np.empty(num_slots, np.int64)
    order = np.empty(num_slots, np.int64)
    expert_of = np.empty(num_slots, np.int64)
    loads = np.empty((num_windows, num_ranks), np.float64)
    steps = np.empty((max_steps, 3), np.int64)
    fetched = np.zeros(max_steps + 1, np.int64)
    value = np.zeros(max_steps + 1, np.float64)
    fetches = np.zeros((num_ranks, num_experts), np.int8)
    for layer in range(first, last):
        v, least = vectors[layer], np.inf
        for start in range(starts):
            for e in range(num_experts):
                # Half to twice the load: other counts, which may pack better than the best ones.
                noise = 0.5 + 1.5 * draw(mix(np.uint64(0), start), e) / (1 << DRAW_BITS) if start else 1.0
                wanted[e] = np.int64(counts_from[layer, e] * noise)
            replicate_layer(wanted, num_slots, logcnt, item_expert)
            cap_replicas(wanted, num_ranks, logcnt, item_expert)
            item_weights(peaks[layer], logcnt, item_expert, weight)
            lpt_order(weight, order)
            if home[layer, 0] >= 0:  # experts tied to nodes: one item each before spare ones take their room
                originals = order[order < num_experts]
                spares = order[order >= num_experts]
                order[:num_experts] = originals
                order[num_experts:] = spares
            place_vectors(v, logcnt, item_expert, order, slots, home[layer], ranks_per_node, expert_of, loads)
            separate_vectors(
                v,
                logcnt,
                slots,
                home[layer],
                ranks_per_node,
                fetches,
                expert_of,
                loads,
                steps,
                fetched,
                value,
                0,
            )
            sum_loads(v, logcnt, expert_of, slots, loads)
            if starts > 1 and mean_largest(loads) < least * (1.0 - 1e-9):
                least = mean_largest(loads)
                phy2log[layer] = expert_of
            search_layer(
                v,
                logcnt,
                slots,
                home[layer],
                ranks_per_node,
                fetches,
                0,
                1,
                0.0,
                expert_of,
                loads,
                steps,
                fetched,
                value,
                0,
            )
            largest = mean_largest(loads)
            if (start == 0 and starts == 1) or largest < least * (1.0 - 1e-9):
                least = largest
                phy2log[layer] = expert_of


def plan_fresh(
    vectors: FloatArray,
    counts_from: IntArray,
    peaks: IntArray,
    home: IntArray,
    ranks_per_node: int,
    num_ranks: int,
    num_slots: int,
    max_steps: int,
) -> IntArray:
    """Several windows, from nothing: greedy placement of vectors, then local search.

    A small layer has few swaps and exchanges to choose from and ends in a poor place more often: it is planned
    from several replica counts (drawn from a fixed seed), and the best plan in-sample is kept.

    Parameters
    ----------
    vectors : ``[L, W, E]`` from `to_vectors`
    counts_from : integer loads ``[L, E]`` that replica counts are made from
    peaks : integer loads ``[L, E]`` by which items are ordered, heaviest first
    home : ``[L, E]``, the node that keeps one replica of an expert, -1 for none

    Returns
    -------
    ``phy2log [L, R]``
    """
    phy2log = np.empty((len(vectors), num_slots), np.int64)
    starts = min(MOST_STARTS, START_WORK // num_slots) if num_slots <= FEW_SLOTS else 1
    settings = (ranks_per_node, num_ranks, max_steps, starts)
    for_layers(_fresh_layers, len(vectors), vectors, counts_from, peaks, home, *settings, phy2log)
    return phy2log


@kernel
def _warm_layers(
    first,
    last,
    vectors,
    current,
    home,
    ranks_per_node,
    num_ranks,
    most,
    min_gain,
    steps,
    fetched,
    value,
    taken,
):
    num_windows, num_experts = vectors.shape[1:]
    num_slots = current.shape[1]
    slots = num_slots // num_ranks
    logcnt = np.empty(num_experts, np.int64)
    loads = np.empty((num_windows, num_ranks), np.float64)
    expert_of = np.empty(num_slots, np.int64)
    fetches = np.empty((num_ranks, num_experts), np.int8)
    for layer in range(first, last):
        v = vectors[layer]
        expert_of[:] = current[layer]
        logcnt[:] = 0
        fetches[:] = 1
        for s in range(num_slots):
            logcnt[expert_of[s]] += 1
            fetches[s // slots, expert_of[s]] = 0
        sum_loads(v, logcnt, expert_of, slots, loads)
        fetched[layer, 0] = 0
        value[layer, 0] = mean_largest(loads)
        parted = separate_vectors(
            v,
            logcnt,
            slots,
            home[layer],
            ranks_per_node,
            fetches,
            expert_of,
            loads,
            steps[layer],
            fetched[layer],
            value[layer],
            0,
        )
        taken[layer] = search_layer(
            v,
            logcnt,
            slots,
            home[layer],
            ranks_per_node,
            fetches,
            1,
            most,
            min_gain,
            expert_of,
            loads,
            steps[layer],
            fetched[layer],
            value[layer],
            parted,
        )
        for k in range(1, taken[layer] + 1):
            value[layer, k] -= PARTED * min(k, parted)


def search_from(
    vectors: FloatArray,
    current: IntArray,
    home: IntArray,
    ranks_per_node: int,
    num_ranks: int,
    max_steps: int,
    most: int,
    min_gain: float,
) -> tuple[list[Options], IntArray]:
    """The steps from a placement that pay, layer by layer, those that part twins first.

    Returns
    -------
    options : for each layer the fetches and values of every prefix of its steps
    steps : ``[L, max_steps, 3]``, for `apply_steps`
    """
    num_layers = len(current)
    steps = np.empty((num_layers, max_steps, 3), np.int64)
    fetched = np.empty((num_layers, max_steps + 1), np.int64)
    value = np.empty((num_layers, max_steps + 1), np.float64)
    taken = np.empty(num_layers, np.int64)
    settings = (ranks_per_node, num_ranks, most, min_gain)
    for_layers(_warm_layers, num_layers, vectors, current, home, *settings, steps, fetched, value, taken)
    options = [(f[: n + 1], x[: n + 1]) for f, x, n in zip(fetched, value, taken, strict=True)]
    return options, steps


def apply_steps(current: IntArray, steps: IntArray, counts: Sequence[int]) -> IntArray:
    """The placement after the first ``counts [L]`` steps of each layer."""
    phy2log: IntArray = current.copy()
    for row, layer_steps, count in zip(phy2log, steps, counts, strict=True):
        for slot, other, expert in layer_steps[:count]:
            if other >= 0:
                row[slot], row[other] = row[other], row[slot]
            else:
                row[slot] = expert
    return phy2log
