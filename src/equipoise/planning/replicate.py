"""Replica counts: how many slots each expert gets.

Giving the next replica to the expert with the largest load per replica is the Adams divisor method; it minimises
the largest load per replica (Balinski and Young, Fair Representation, 1982).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .kernel import for_layers, kernel


@kernel
def _sift_down(keys, experts, size, at):
    """Restore the heap below position ``at``: the largest key first, of equals the lowest expert.

    ``keys [E]``, ``experts [E]``: the heap. ``size``: its length.
    """
    key, expert = keys[at], experts[at]
    child = 2 * at + 1
    while child < size:
        right = child + 1
        if right < size and (
            keys[right] > keys[child] or (keys[right] == keys[child] and experts[right] < experts[child])
        ):
            child = right
        if keys[child] < key or (keys[child] == key and experts[child] > expert):
            break
        keys[at], experts[at] = keys[child], experts[child]
        at = child
        child = 2 * at + 1
    keys[at], experts[at] = key, expert


@kernel
def replicate_layer(expert_loads, num_slots, logcnt, item_expert):
    """Counts of one layer, and the expert of each item: one item an expert, then replicas as awarded.

    Ties go to the lowest expert number, as in DeepSeek EPLB; experts without load share what is left evenly.

    ``expert_loads [E]``: not negative. ``num_slots``: ``R``. ``logcnt [E]`` and ``item_expert [R]`` are written.
    """
    num_experts = expert_loads.size
    keys = np.empty(num_experts, np.float64)
    experts = np.empty(num_experts, np.int64)
    for e in range(num_experts):
        logcnt[e] = 1
        item_expert[e] = e
        keys[e] = expert_loads[e] if expert_loads[e] > 0 else -1.0
        experts[e] = e
    if num_slots == num_experts:
        return
    for at in range(num_experts // 2 - 1, -1, -1):
        _sift_down(keys, experts, num_experts, at)
    for item in range(num_experts, num_slots):
        e = experts[0]
        logcnt[e] += 1
        item_expert[item] = e
        keys[0] = expert_loads[e] / logcnt[e] if expert_loads[e] > 0 else -np.float64(logcnt[e])
        _sift_down(keys, experts, num_experts, 0)


@kernel
def cap_replicas(expert_loads, num_ranks, logcnt, item_expert):
    """Hand replicas beyond one a rank to the experts with the largest load per replica that have room for more.

    A rank that holds an expert twice takes twice its even share, so more replicas than ranks help nobody; they
    stay only where every expert has as many.

    ``expert_loads [E]``: integers. ``num_ranks``: ``P``. ``logcnt [E]`` and ``item_expert [R]`` are changed.
    """
    num_experts = logcnt.size
    for item in range(num_experts, item_expert.size):
        a = item_expert[item]
        if logcnt[a] <= num_ranks:
            continue
        b = -1
        for e in range(num_experts):
            if logcnt[e] < num_ranks and (b < 0 or expert_loads[e] * logcnt[b] > expert_loads[b] * logcnt[e]):
                b = e
        if b < 0:
            return
        item_expert[item] = b
        logcnt[a] -= 1
        logcnt[b] += 1


@kernel
def item_weights(expert_loads, logcnt, item_expert, weight):
    """The load of each item under an even split, rounded to an integer.

    ``expert_loads [E]``: integers. ``logcnt [E]``: replicas. ``item_expert [R]``: expert of each item. ``weight [R]``
    is written.
    """
    for i in range(item_expert.size):
        e = item_expert[i]
        weight[i] = np.int64(np.rint(expert_loads[e] / logcnt[e]))


@kernel
def largest_load(expert_loads, phy2log, num_ranks, logcnt, weight):
    """The largest rank load of a placement of one layer, of the same weights as `item_weights`.

    ``expert_loads [E]``: integers. ``phy2log [R]``: the expert of each slot. ``num_ranks``: ``P``. ``logcnt [E]`` and
    ``weight [R]``: scratch.
    """
    logcnt[:] = 0
    for e in phy2log:
        logcnt[e] += 1
    item_weights(expert_loads, logcnt, phy2log, weight)
    slots = phy2log.size // num_ranks
    largest = np.int64(0)
    for first in range(0, phy2log.size, slots):
        largest = max(largest, weight[first : first + slots].sum())
    return largest


@kernel
def _replicate_layers(first, last, expert_loads, num_slots, logcnt, item_expert):
    """Layers ``first`` to ``last`` of ``expert_loads [L, E]``.

    ``num_slots``: ``R``. ``logcnt [L, E]`` and ``item_expert [L, R]`` are written.
    """
    for layer in range(first, last):
        replicate_layer(expert_loads[layer], num_slots, logcnt[layer], item_expert[layer])


def replicate(loads: npt.NDArray[Any], num_slots: int) -> npt.NDArray[np.int64]:
    """Replica counts that minimise the largest load per replica, every expert having at least one.

    Parameters
    ----------
    loads : ``[L, E]``, not negative
    num_slots : ``R``, at least ``E``

    Returns
    -------
    ``logcnt [L, E]``, each row summing to ``R``
    """
    num_layers, num_experts = loads.shape
    logcnt = np.empty((num_layers, num_experts), np.int64)
    item_expert = np.empty((num_layers, num_slots), np.int64)
    for_layers(_replicate_layers, num_layers, loads, num_slots, logcnt, item_expert)
    return logcnt
