"""The slot of every routed token, on nodes that the token visits anyway."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..errors import ArgumentError
from ..placement import IntArray, Placement
from ..planning.kernel import copy_into, for_layers, kernel
from ..planning.tensors import is_tensor, like
from ..topology import Topology
from .maps import to_experts
from .slots import assign

ROUNDS = 2  # a third took off less than 0.01 nodes a token in benchmarks/bench_near.py


class Replicas(NamedTuple):
    """Where the experts of some layers are."""

    log2phy: IntArray
    """``[L, E, X]``: slots of each expert"""
    logcnt: IntArray
    """``[L, E]``: replicas"""
    place_of_slot: IntArray
    """``[R]``: the node of a slot; its rank where there is one node"""


class Batch(NamedTuple):
    """The routed tokens of one layer, expert by expert."""

    order: IntArray
    """``[N]``: entries of ``topk``, each expert's in the order in which they stand"""
    first: IntArray
    """``[E + 1]``: where those of each expert begin"""
    token: IntArray
    """``[N]``: the token of each entry"""
    visits: IntArray
    """``[T, N]``: how many experts of a token are served in each place"""


def assign_near(topk: Any, shares: Any, placement: Placement, topology: Topology) -> Any:
    """The slot that serves each routed token, by shares, and on nodes that the token visits anyway.

    As many tokens go to each slot as with `assign`, so rank loads are the same; which tokens of an expert go to which
    of its replicas is chosen. Experts that live on one node decide which nodes a token visits. Then the tokens of
    each other expert, one expert after the other, take a replica on a node that they visit, those first that visit
    one of its nodes alone, and the rest fill what is left. A second round sees what the first one chose. In no layer
    do tokens visit more nodes than with `assign`. With one node, the same is done for ranks.

    Parameters
    ----------
    topk : ``[T, K]`` with a placement of one layer, else ``[L, T, K]``: experts of tokens, -1 for none (padding). An
        array, or a torch tensor on the processor: those of one batch, of all ranks or of one's own
    shares : ``[L, R]``, see `assign`; evenly where None
    placement : of the same layers
    topology : of the placement's ranks

    Returns
    -------
    int64 in the shape of ``topk``: slots, -1 for none. An array, or a tensor

    Raises
    ------
    ArgumentError
        if arguments do not fit each other, a share is negative or not a number, or a tensor is on another device

    Examples
    --------
    >>> placement = Placement([[0, 1, 2, 1]], num_ranks=2, num_experts=3)
    >>> assign([[2, 1], [0, 1]], None, placement).tolist()
    [[2, 1], [0, 3]]
    >>> assign_near([[2, 1], [0, 1]], None, placement, Topology(2, 2, num_nodes=2)).tolist()
    [[2, 3], [0, 1]]
    """
    if not isinstance(placement, Placement) or (is_tensor(topk) and topk.device.type != "cpu"):
        raise ArgumentError(
            "assign_near takes a Placement and works on the processor: copy topk there, or use assign"
        )
    if not isinstance(topology, Topology):
        raise ArgumentError(f"topology must be a Topology, got {type(topology).__name__}")
    if topology.num_ranks != placement.num_ranks:
        raise ArgumentError(
            f"the placement has {placement.num_ranks} ranks, the topology {topology.num_ranks}: use its own topology"
        )
    array = to_experts(topk)
    slots = assign(array, shares, placement)
    rank_of_slot = np.arange(placement.num_slots) // placement.slots_per_rank
    places = np.array(topology.nodes)[rank_of_slot] if topology.num_nodes > 1 else rank_of_slot
    replicas = Replicas(placement.log2phy, placement.logcnt, places)
    rows = np.ascontiguousarray(array, np.int64).reshape(placement.num_layers, -1)
    token = np.arange(rows.shape[1]) // max(array.shape[-1], 1)
    found = slots.reshape(rows.shape)
    for_layers(_near_layers, len(rows), rows, token, replicas, found)
    return like(topk, found.reshape(array.shape))


@kernel
def _near_layers(first, last, topk, token, replicas, slots):
    """Layers ``first`` to ``last``: tokens of an expert trade its replicas so that they visit fewer places.

    ``topk [L, N]``: experts, -1 for none. ``token [N]``: of each entry. ``replicas``: `Replicas`. ``slots [L, N]`` is
    changed.
    """
    places, num_tokens = replicas.place_of_slot, token[token.size - 1] + 1 if token.size else 0
    num_experts, num_places = replicas.logcnt.shape[1], places[places.size - 1] + 1
    visits = np.empty((num_tokens, num_places), np.int64)
    begin, order = np.empty(num_experts + 1, np.int64), np.empty(token.size, np.int64)
    batch, found = Batch(order, begin, token, visits), np.empty(token.size, np.int64)
    for layer in range(first, last):
        log2phy, logcnt = replicas.log2phy[layer], replicas.logcnt[layer]
        _sort_entries(topk[layer], batch)
        _count_visits(batch, slots[layer], places)
        before = _visited(visits)
        copy_into(found, slots[layer])
        for e in range(num_experts):
            if _several(log2phy[e], logcnt[e], places):
                _add_visits(batch, e, found, places, -1)
        for turn in range(ROUNDS):
            for e in range(num_experts):
                if _several(log2phy[e], logcnt[e], places):
                    if turn > 0:
                        _add_visits(batch, e, found, places, -1)
                    _regroup(batch, e, log2phy[e, : logcnt[e]], places, found)
                    _add_visits(batch, e, found, places, 1)
        if _visited(visits) < before:
            copy_into(slots[layer], found)


@kernel
def _sort_entries(topk, batch):
    """Entries by expert, in the order in which they stand. ``topk [N]``. ``batch``: `Batch`, changed."""
    first = batch.first
    first[:] = 0
    for e in topk:
        if e >= 0:
            first[e + 1] += 1
    for e in range(first.size - 1):
        first[e + 1] += first[e]
    at = first.copy()
    for i in range(topk.size):
        if topk[i] >= 0:
            batch.order[at[topk[i]]] = i
            at[topk[i]] += 1


@kernel
def _count_visits(batch, slots, places):
    """``visits`` from nothing. ``batch``: `Batch`. ``slots [N]``: of entries. ``places [R]``: of slots."""
    batch.visits[:] = 0
    for e in range(batch.first.size - 1):
        _add_visits(batch, e, slots, places, 1)


@kernel
def _add_visits(batch, e, slots, places, sign):
    """Count the visits of expert ``e`` in, or out with ``sign`` -1.

    ``batch``: `Batch`. ``slots [N]``: of entries. ``places [R]``: of slots.
    """
    for j in range(batch.first[e], batch.first[e + 1]):
        i = batch.order[j]
        batch.visits[batch.token[i], places[slots[i]]] += sign


@kernel
def _visited(visits):
    """Places that tokens visit, all together. ``visits [T, N]``."""
    found = 0
    for t in range(visits.shape[0]):
        for n in range(visits.shape[1]):
            found += visits[t, n] > 0
    return found


@kernel
def _several(slots_of, count, places):
    """Whether the ``count`` slots of an expert, ``slots_of [X]``, are in several places. ``places [R]``: of slots."""
    for k in range(1, count):
        if places[slots_of[k]] != places[slots_of[0]]:
            return True
    return False


@kernel
def _regroup(batch, e, slots_of, places, slots):
    """Deal the tokens of expert ``e`` to its slots anew, as many to each as it has.

    ``batch``: `Batch`, without the visits of the expert. ``slots_of [X]``: its slots. ``places [R]``: of slots.
    ``slots [N]``: of entries, changed.
    """
    left = np.zeros(slots_of.size, np.int64)
    for j in range(batch.first[e], batch.first[e + 1]):
        i = batch.order[j]
        for k in range(slots_of.size):
            left[k] += slots[i] == slots_of[k]
        slots[i] = -1
    _take(batch, e, slots_of, places, left, slots, True)
    _take(batch, e, slots_of, places, left, slots, False)
    k = 0
    for j in range(batch.first[e], batch.first[e + 1]):
        i = batch.order[j]
        if slots[i] < 0:
            while left[k] == 0:
                k += 1
            slots[i] = slots_of[k]
            left[k] -= 1


@kernel
def _take(batch, e, slots_of, places, left, slots, alone):
    """Each slot takes tokens that visit its place, as many as are ``left [X]`` to it, which changes.

    ``batch``: `Batch`, without the visits of expert ``e``. ``slots_of [X]``: its slots. ``places [R]``: of slots.
    ``slots [N]``: of entries, -1 where none took it. ``alone``: only tokens that visit the place of no other slot.
    """
    for k in range(slots_of.size):
        for j in range(batch.first[e], batch.first[e + 1]):
            if left[k] == 0:
                break
            i = batch.order[j]
            visits = batch.visits[batch.token[i]]
            if slots[i] >= 0 or visits[places[slots_of[k]]] == 0:
                continue
            others = 0
            for q in range(slots_of.size):
                others += q != k and visits[places[slots_of[q]]] > 0
            if alone and others > 0:
                continue
            slots[i] = slots_of[k]
            left[k] -= 1
