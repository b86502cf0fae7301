"""Communication as a measure: to how many ranks and nodes tokens go under a placement, and what is sent.

A token is sent once to every rank that serves one of its experts, from the rank that it came from. Where routes do
not tell that rank, tokens are dealt to the ranks in turn. The n-th token that hits an expert goes to replica n of it,
in turn, which is the even split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..metrics import slot_matrix
from ..placement import Placement
from ..planning.kernel import for_layers, num_threads
from ..planning.traffic import Sent, Served, pair_layers, pair_shares, send_layers
from ..routes import PairCounts, Routes
from ..topology import Topology

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
MAX_RANKS = 1024  # what ranks send each other is a matrix for each layer


@dataclass(frozen=True, eq=False)
class Communication:
    """Where the tokens of recorded routes go under a placement."""

    tokens: IntArray
    """tokens that hit an expert ``[L]``"""
    sends: IntArray
    """``[L, P, P]``: tokens that came from rank ``i`` and are served by rank ``j``, each once; what stays on its rank
    is on the diagonal"""
    node_sends: IntArray
    """``[L, N, N]``: the same for nodes"""

    @property
    def ranks_per_token(self) -> FloatArray:
        """Different ranks that serve a token, on average ``[L]``."""
        return np.asarray(self.sends.sum(axis=(1, 2)) / np.maximum(self.tokens, 1))

    @property
    def nodes_per_token(self) -> FloatArray:
        """Different nodes that serve a token, on average ``[L]``."""
        return np.asarray(self.node_sends.sum(axis=(1, 2)) / np.maximum(self.tokens, 1))

    def sent(self, token_bytes: float = 1.0) -> FloatArray:
        """Bytes that leave their rank, all tokens together ``[L]``: one way, as much comes back."""
        return _off_diagonal(self.sends) * token_bytes

    def sent_between_nodes(self, token_bytes: float = 1.0) -> FloatArray:
        """Bytes that leave their node, sent to another one once, whatever its ranks ``[L]``."""
        return _off_diagonal(self.node_sends) * token_bytes

    def as_dict(self) -> dict[str, Any]:
        """Means over layers, and each layer's numbers, for JSON."""
        return {
            "tokens": self.tokens.tolist(),
            "mean_ranks_per_token": float(self.ranks_per_token.mean()),
            "mean_nodes_per_token": float(self.nodes_per_token.mean()),
            "ranks_per_token": self.ranks_per_token.tolist(),
            "nodes_per_token": self.nodes_per_token.tolist(),
            "sent": self.sent().tolist(),
            "sent_between_nodes": self.sent_between_nodes().tolist(),
        }


@dataclass(frozen=True, eq=False)
class Together:
    """What pair counts say of a placement: how many pairs of a token's experts live on one rank, on one node."""

    on_rank: FloatArray
    """share of all pairs ``[L]``; 1 where there are none"""
    on_node: FloatArray
    """share of all pairs ``[L]``"""
    top_k: int | None
    """experts per token, where known"""

    def ranks_per_token(self) -> tuple[FloatArray, FloatArray] | None:
        """Ranks of a token at least and at most ``[L]``, without replicas; ``None`` where top-k is not known."""
        return _between(self.on_rank, self.top_k)

    def nodes_per_token(self) -> tuple[FloatArray, FloatArray] | None:
        """The same for nodes."""
        return _between(self.on_node, self.top_k)

    def as_dict(self) -> dict[str, Any]:
        """Means over layers, and each layer's numbers, for JSON."""
        return {
            "mean_pairs_on_one_rank": float(self.on_rank.mean()),
            "mean_pairs_on_one_node": float(self.on_node.mean()),
            "pairs_on_one_rank": self.on_rank.tolist(),
            "pairs_on_one_node": self.on_node.tolist(),
        }


def _off_diagonal(sends: IntArray) -> FloatArray:
    staying = np.trace(sends, axis1=1, axis2=2)
    return np.asarray(sends.sum(axis=(1, 2)) - staying, dtype=np.float64)


def _between(share: FloatArray, top_k: int | None) -> tuple[FloatArray, FloatArray] | None:
    """Places that a token of ``top_k`` experts has at least and at most if this share of its pairs is in one place.

    With ``q`` such pairs it has at least ``k - q`` places: each pair joins two of its experts at most. It has at most
    ``k - 2 q / k``: all ``k`` experts in one place are ``k (k - 1) / 2`` pairs and ``k - 1`` places less, and fewer
    experts in one place cost less pairs a place.
    """
    if top_k is None:
        return None
    pairs = share * top_k * (top_k - 1) / 2
    return np.maximum(1.0, top_k - pairs), np.asarray(top_k - 2.0 * pairs / top_k)


def communication(routes: Routes, placement: Placement, topology: Topology) -> Communication:
    """Where the tokens of ``routes`` go under a placement.

    Parameters
    ----------
    routes : of the placement's layers and experts
    placement : of the topology's ranks
    topology : ranks and nodes

    Raises
    ------
    ArgumentError
        if these do not fit each other, or there are more than 1,024 ranks

    Examples
    --------
    >>> placement = Placement([[0, 1, 2, 3]], num_ranks=4, num_experts=4)
    >>> found = communication(Routes([[[0, 1], [0, 2]]], 4), placement, Topology(4, 1, num_nodes=2))
    >>> found.ranks_per_token.tolist(), found.nodes_per_token.tolist()
    ([2.0], [1.5])
    """
    _check(routes, placement, topology)
    if topology.num_ranks > MAX_RANKS:
        raise ArgumentError(f"{topology.num_ranks} ranks are too many for a matrix of what they send")
    ranks, nodes, layers = topology.num_ranks, topology.num_nodes, routes.num_layers
    source = np.arange(routes.num_tokens) % ranks if routes.rank_of_token is None else routes.rank_of_token
    if source.max() >= ranks:
        raise ArgumentError(f"routes have tokens of rank {source.max()}, the topology {ranks} ranks")
    sent = Sent(
        np.zeros(layers, np.int64),
        np.zeros((layers, ranks, ranks), np.int64),
        np.zeros((layers, nodes, nodes), np.int64),
    )
    slots, node_of_rank = placement.slots_per_rank, np.array(topology.nodes)
    for part in _parts(layers):
        served = Served(placement.log2phy[part], placement.logcnt[part], slots, node_of_rank, source)
        topk = routes.topk[part].astype(np.int32)
        for_layers(send_layers, len(topk), topk, served, Sent(*(each[part] for each in sent)))
    return Communication(*sent)


def count_pairs(routes: Routes, *, every: int = 1) -> PairCounts:
    """How often two experts were hit by the same token.

    Parameters
    ----------
    routes : of any number of tokens
    every : count one token of so many, the first one and each that follows at that distance: a sample

    Examples
    --------
    >>> count_pairs(Routes([[[0, 1], [1, 2]]], 3)).counts.tolist()
    [[[1, 1, 0], [1, 2, 1], [0, 1, 1]]]
    """
    if every < 1:
        raise ArgumentError(f"every must be at least 1, got {every}")
    pairs = np.zeros((routes.num_layers, routes.num_experts, routes.num_experts), np.int64)
    for part in _parts(routes.num_layers):
        topk = routes.topk[part, ::every].astype(np.int32)
        for_layers(pair_layers, len(topk), topk, pairs[part])
    return PairCounts(pairs, routes.top_k, layers=routes.layers)


def together(pairs: PairCounts, placement: Placement, topology: Topology) -> Together:
    """How many pairs of a token's experts live on one rank, and on one node.

    Without replicas these are the shares that routes would show. With replicas, they are what is expected where the
    replicas of two experts are chosen independently, each evenly.

    Raises `ArgumentError` if these do not fit each other.

    Examples
    --------
    >>> placement = Placement([[0, 1, 2, 3]], num_ranks=4, num_experts=4)
    >>> pairs = count_pairs(Routes([[[0, 1], [0, 2]]], 4))
    >>> together(pairs, placement, Topology(4, 1, num_nodes=2)).on_node.tolist()
    [0.5]
    """
    _check(pairs, placement, topology)
    part, by_rank = pair_shares(pairs.counts), slot_matrix(placement)
    node_of_rank = np.array(topology.nodes)[:, None] == np.arange(topology.num_nodes)
    some = part.any(axis=(1, 2))
    on_rank, on_node = (
        np.where(some, np.einsum("lep,lep->l", held, part @ held), 1.0)
        for held in (by_rank, by_rank @ node_of_rank)
    )
    return Together(on_rank, on_node, pairs.top_k)


def where_tokens_go(
    routes: Routes | PairCounts | None, placement: Placement, topology: Topology
) -> Communication | Together | None:
    """What is known of where tokens go: nothing without routes, or on other ranks than those of the topology."""
    if routes is None or placement.num_ranks != topology.num_ranks:
        return None
    if isinstance(routes, Routes):
        return communication(routes, placement, topology)
    return together(routes, placement, topology)


def _parts(num_layers: int) -> list[slice]:
    """As many layers at a time as there are threads: of these alone there is a wide copy."""
    size = num_threads()
    return [slice(first, first + size) for first in range(0, num_layers, size)]


def _check(routes: Routes | PairCounts, placement: Placement, topology: Topology) -> None:
    wanted, found = (placement.num_layers, placement.num_experts), (routes.num_layers, routes.num_experts)
    if wanted != found:
        raise ArgumentError(f"routes have (layers, experts) = {found}, the placement {wanted}")
    if placement.num_ranks != topology.num_ranks:
        raise ArgumentError(
            f"the placement has {placement.num_ranks} ranks, the topology {topology.num_ranks}"
        )
