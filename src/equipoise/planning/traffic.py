"""Counting token routes: pairs of experts, and what ranks and nodes send each other."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .kernel import kernel

IntArray = npt.NDArray[np.int64]


class Served(NamedTuple):
    """Placements of some layers, and where tokens come from."""

    log2phy: IntArray
    """``[B, E, X]``: slots of each expert"""
    logcnt: IntArray
    """``[B, E]``: replicas"""
    slots_per_rank: int
    """``R / P``"""
    node_of_rank: IntArray
    """``[P]``"""
    rank_of_token: IntArray
    """``[tokens]``"""


class Sent(NamedTuple):
    """What the tokens of some layers make of it; counted up from zero."""

    tokens: IntArray
    """``[B]``: tokens that hit an expert"""
    ranks: IntArray
    """``[B, P, P]``: tokens that came from one rank and were served by an expert on another, each once"""
    nodes: IntArray
    """``[B, N, N]``: the same for nodes"""


def pair_shares(pair_counts: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Pair counts ``[L, E, E]`` of different experts alone, as shares of their layer's sum."""
    pairs = np.array(pair_counts, dtype=np.float64)
    every = np.arange(pairs.shape[1])
    pairs[:, every, every] = 0.0
    total = pairs.sum(axis=(1, 2), keepdims=True)
    return np.asarray(np.divide(pairs, total, out=pairs, where=total > 0))


@kernel
def distinct(row, found):
    """The different experts of one token, in order: ``row [k]`` into ``found [k]``, -1 left out. Returns how many."""
    count = 0
    for e in row:
        known = e < 0
        for i in range(count):
            known = known or found[i] == e
        if not known:
            found[count] = e
            count += 1
    return count


@kernel
def pair_layers(first, last, topk, pairs):
    """Layers ``first`` to ``last``: tokens of ``topk [B, tokens, k]`` that hit two experts, into ``pairs [B, E, E]``.

    These are zero before. On the diagonal stand tokens that hit the expert.
    """
    experts = np.empty(topk.shape[2], np.int64)
    for layer in range(first, last):
        table = pairs[layer]
        for token in range(topk.shape[1]):
            count = distinct(topk[layer, token], experts)
            for i in range(count):
                for j in range(i, count):
                    table[min(experts[i], experts[j]), max(experts[i], experts[j])] += 1
        for a in range(table.shape[0]):
            for b in range(a):
                table[a, b] = table[b, a]


@kernel
def send_layers(first, last, topk, served, sent):
    """Layers ``first`` to ``last``: where the tokens of ``topk [B, tokens, k]`` go.

    The n-th token that hits an expert goes to replica n of it, in turn. ``served``: `Served`. ``sent``: `Sent`, which
    is written.
    """
    experts = np.empty(topk.shape[2], np.int64)
    turn = np.empty(served.logcnt.shape[1], np.int64)
    on_rank = np.empty(served.node_of_rank.size, np.int64)  # the last token that was there
    on_node = np.empty(sent.nodes.shape[1], np.int64)
    for layer in range(first, last):
        turn[:], on_rank[:], on_node[:] = 0, -1, -1
        for token in range(topk.shape[1]):
            count = distinct(topk[layer, token], experts)
            sent.tokens[layer] += count > 0
            source = served.rank_of_token[token]
            for i in range(count):
                e = experts[i]
                rank = served.log2phy[layer, e, turn[e]] // served.slots_per_rank
                turn[e] = turn[e] + 1 if turn[e] + 1 < served.logcnt[layer, e] else 0
                if on_rank[rank] != token:
                    on_rank[rank] = token
                    sent.ranks[layer, source, rank] += 1
                node = served.node_of_rank[rank]
                if on_node[node] != token:
                    on_node[node] = token
                    sent.nodes[layer, served.node_of_rank[source], node] += 1
