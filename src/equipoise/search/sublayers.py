"""Layers as the search sees them: whole, with experts anchored to nodes, or one for each node.

Where groups stay on nodes, a layer becomes one sub-layer a node, with the node's own experts, slots and ranks; where
they are anchored, it stays whole and every expert has a node that keeps one of its replicas.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..placement import BoolArray
from ..planning.groups import enter, groups_to_nodes, home_of_experts, join, nodes_of_groups, split_vectors
from ..planning.kernel import for_layers, kernel
from ..planning.scale import to_integers
from ..problem import Held
from ..topology import Topology
from .layers import Demand
from .state import FloatArray, IntArray, Layers

# With so few slots a rank, a replica that turns hot in one window has nothing to hide behind: replica counts are made
# from the largest window of each expert. benchmarks/bench_robust.py, held-out.
PEAKED_SLOTS = 9
WHOLE, ANCHORED, BY_NODE = "whole", "anchored", "by node"
Form = str
"""WHOLE, ANCHORED or BY_NODE."""


@kernel
def _tell_alike(first, last, layers, alike):
    """Layers ``first`` to ``last``: whether all windows, and all speeds, are the same.

    ``layers``: `Layers`. ``alike [B]`` is written.
    """
    vectors, speed = layers.vectors, layers.speed
    for layer in range(first, last):
        alike[layer] = True
        for r in range(speed.shape[1]):
            alike[layer] &= speed[layer, r] == speed[layer, 0]
        for w in range(1, vectors.shape[1]):
            for e in range(vectors.shape[2]):
                alike[layer] &= vectors[layer, w, e] == vectors[layer, 0, e]


@dataclass(frozen=True)
class Sublayers:
    """``B`` layers or sub-layers of ``E`` experts, and the way in and out of them."""

    layers: Layers
    topology: Topology
    """of the whole layers"""
    experts: IntArray | None = None
    """``[B, E]``: the layer's own numbers of a node's experts; ``None`` where layers are whole"""

    @classmethod
    def whole(cls, vectors: FloatArray, topology: Topology, home: IntArray | None = None) -> Sublayers:
        """Whole layers from vectors ``[L, W, E]``, experts tied to the nodes ``home [L, E]`` where given."""
        ranks, speed = topology.num_ranks, _speeds(topology, len(vectors))
        if home is None:
            free = np.full(vectors.shape[::2], -1)
            return cls(Layers(vectors, free, ranks, ranks, speed), topology)
        return cls(Layers(vectors, home, ranks, topology.ranks_per_node, speed), topology)

    @classmethod
    def of_groups(
        cls, vectors: FloatArray, topology: Topology, form: Form, groups: IntArray | None
    ) -> Sublayers:
        """Layers in a form, their groups on the nodes that ``groups [L, G]`` says (see `groups_to_nodes`)."""
        if form == WHOLE:
            return cls.whole(vectors, topology)
        assert groups is not None
        if form == ANCHORED:
            return cls.whole(vectors, topology, home_of_experts(groups, topology, vectors.shape[2]))
        vectors, experts = split_vectors(vectors, groups, topology)
        ranks = topology.ranks_per_node
        speed = _speeds(topology, len(groups)).reshape(-1, ranks)  # [B, P] of the nodes' own ranks
        return cls(Layers(vectors, np.full(experts.shape, -1), ranks, ranks, speed), topology, experts)

    @classmethod
    def fresh(cls, vectors: FloatArray, topology: Topology, form: Form) -> Sublayers:
        """Layers to plan from nothing: groups go where node loads are most even."""
        groups = None
        if form != WHOLE:
            groups = groups_to_nodes(to_integers(vectors.sum(axis=1)), topology, exact=True)
        return cls.of_groups(vectors, topology, form, groups)

    @property
    def num_slots(self) -> int:
        """Slots of a (sub-)layer."""
        return self.layers.num_ranks * self.topology.slots_per_rank

    @property
    def free(self) -> bool:
        """Whether every expert may live anywhere."""
        return bool(self.layers.home[0, 0] < 0)

    @property
    def alike(self) -> BoolArray:
        """Whether a (sub-)layer's windows are all the same, its experts free and its ranks equally fast ``[B]``."""
        alike = np.full(len(self.layers.vectors), self.free)
        if self.free and (self.layers.vectors.shape[1] > 1 or self.topology.rank_speed is not None):
            for_layers(_tell_alike, len(alike), self.layers, alike)
        return alike

    @property
    def demand(self) -> Demand:
        """What replica counts are made from."""
        vectors = self.layers.vectors
        peaks = to_integers(vectors.max(axis=1))
        peaked = self.topology.slots_per_rank <= PEAKED_SLOTS
        return Demand(peaks if peaked else to_integers(vectors.sum(axis=1)), peaks)

    def rows(self, rows: IntArray) -> Sublayers:
        """Some of the layers."""
        found = self.layers
        layers = found._replace(vectors=found.vectors[rows], home=found.home[rows], speed=found.speed[rows])
        return replace(self, layers=layers, experts=None if self.experts is None else self.experts[rows])

    def enter(self, phy2log: IntArray) -> IntArray:
        """A placement ``[L, R]`` that keeps groups where they are, as placements of the (sub-)layers."""
        return phy2log if self.experts is None else enter(phy2log, self.experts, self.topology)

    def leave(self, phy2log: IntArray) -> IntArray:
        """The inverse of `enter`."""
        return phy2log if self.experts is None else join(phy2log, self.experts, self.topology.num_nodes)


def _speeds(topology: Topology, num_layers: int) -> FloatArray:
    """The speed of every rank of every layer ``[L, P]``."""
    if topology.rank_speed is None:
        return np.ones((num_layers, topology.num_ranks))
    return np.tile(topology.speeds, (num_layers, 1))


def kept_groups(held: Held, topology: Topology, form: Form) -> tuple[IntArray | None, BoolArray]:
    """Where ranks have their groups ``[L, G]``, and whether a layer has them where the form needs them ``[L]``."""
    if form == WHOLE:
        return None, np.ones(held.num_layers, np.bool_)
    return nodes_of_groups(held.holds, topology, whole=form == BY_NODE)
