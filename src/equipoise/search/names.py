"""Names of ranks: experts that are hit together share a node, and no rank load changes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..planning.groups import pairings
from ..planning.kernel import for_layers, kernel
from ..planning.traffic import pair_shares
from ..topology import Topology
from .state import FloatArray, IntArray

LEAST_GAIN = 1e-9  # of all pairs: what differs by less is rounding


class Names(NamedTuple):
    """What names of ranks mean."""

    node_of_rank: IntArray
    """``[P]``"""
    speed: FloatArray
    """``[P]``: only names of one speed are traded"""
    ways: IntArray
    """``[K, P]``: the node of each rank in all ways to share ranks among nodes; none where there are too many"""


def name_ranks(phy2log: IntArray, pair_counts: FloatArray, topology: Topology) -> IntArray:
    """The same placement with its ranks named so that experts that are hit together share a node.

    Ranks of one speed trade names; what a rank holds stays together, so no rank load changes. Where nodes are even
    and ranks can be shared among them in at most 6,000 ways, the best way is taken; else swaps of two names lead on.
    Where nothing gains, names stay as they are.

    Parameters
    ----------
    phy2log : ``[L, R]``
    pair_counts : ``[L, E, E]``

    Returns
    -------
    ``[L, R]``
    """
    ranks = topology.num_ranks
    ways = pairings(ranks, topology.num_nodes) if topology.even and topology.rank_speed is None else None
    names = Names(
        np.array(topology.nodes),
        np.array(topology.speeds),
        np.empty((0, ranks), np.int64) if ways is None else ways,
    )
    order = np.tile(np.arange(ranks), (len(phy2log), 1))
    for_layers(_name_layers, len(order), phy2log, pair_shares(pair_counts), names, order)
    held = phy2log.reshape(len(phy2log), ranks, -1)
    return np.take_along_axis(held, order[:, :, None], axis=1).reshape(phy2log.shape)


@kernel
def _ties(phy2log, pairs, tie):
    """How many pairs of experts two ranks share, replicas by their part: ``tie [P, P]`` is written.

    ``phy2log [R]``: experts of slots. ``pairs [E, E]``. Sums run in one order, whatever the processor.
    """
    slots = phy2log.size // tie.shape[0]
    logcnt = np.zeros(pairs.shape[0], np.int64)
    for e in phy2log:
        logcnt[e] += 1
    tie[:] = 0.0
    for s in range(phy2log.size):
        for t in range(phy2log.size):
            a, b = phy2log[s], phy2log[t]
            tie[s // slots, t // slots] += pairs[a, b] / (logcnt[a] * logcnt[b])


@kernel
def _best_way(tie, ways, named):
    """Share ranks among nodes in the best of ``ways [K, P]`` for ``tie [P, P]``; ``named [P]`` changes if that gains.

    The first way is how they are shared without names.
    """
    best, best_way, first = 0.0, 0, 0.0
    for k in range(ways.shape[0]):
        worth = 0.0
        for p in range(named.size):
            for q in range(p):
                if ways[k, p] == ways[k, q]:
                    worth += tie[p, q]
        first = worth if k == 0 else first
        if worth > best:
            best, best_way = worth, k
    if best > first + LEAST_GAIN:
        at = 0
        for node in range(named.size):
            for p in range(named.size):
                if ways[best_way, p] == node:
                    named[at] = p
                    at += 1


@kernel
def _trade_names(tie, names, named):
    """Trade names of two ranks while that gains, the best trade each time.

    ``tie [P, P]``. ``names``: `Names`. ``named [P]``, the rank under each name, is changed.
    """
    node_of_rank, speed, num_ranks = names.node_of_rank, names.speed, named.size
    near = np.empty((num_ranks, node_of_rank[num_ranks - 1] + 1), np.float64)
    for _ in range(num_ranks * num_ranks):
        near[:] = 0.0
        for p in range(num_ranks):
            for q in range(num_ranks):
                if p != q:
                    near[p, node_of_rank[q]] += tie[named[p], named[q]]
        best, best_p, best_q = LEAST_GAIN, -1, -1
        for p in range(num_ranks):
            for q in range(p):
                m, n = node_of_rank[p], node_of_rank[q]
                if m == n or speed[p] != speed[q]:
                    continue
                gain = near[p, n] + near[q, m] - near[p, m] - near[q, n] - 2.0 * tie[named[p], named[q]]
                if gain > best:
                    best, best_p, best_q = gain, p, q
        if best_p < 0:
            break
        named[best_p], named[best_q] = named[best_q], named[best_p]


@kernel
def _name_layers(first, last, phy2log, pairs, names, order):
    """Layers ``first`` to ``last`` of ``phy2log [L, R]``: name ranks for ``pairs [L, E, E]``.

    ``names``: `Names`. ``order [L, P]``, the rank under each name, is changed.
    """
    tie = np.empty((order.shape[1], order.shape[1]), np.float64)
    for layer in range(first, last):
        _ties(phy2log[layer], pairs[layer], tie)
        if names.ways.shape[0]:
            _best_way(tie, names.ways, order[layer])
        else:
            _trade_names(tie, names, order[layer])
