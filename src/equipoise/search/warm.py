"""Placements from what ranks hold: every step that pays, and which of them to take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..planning.relabel import relabel
from ..problem import Held
from ..topology import Topology
from .budget import Options, choose, hull
from .fresh import place_fresh, planned_vectors
from .layers import Limits, apply_steps, measure, search_from
from .state import FloatArray, IntArray
from .sublayers import Form, Sublayers, kept_groups


@dataclass(frozen=True)
class Search:
    """What a search from the current placement found."""

    options: list[Options]
    """of each searched (sub-)layer, then of each rebuilt layer"""
    sublayers: Sublayers
    """the layers that were searched"""
    start: IntArray
    """``[B, R]``: where their search began"""
    steps: IntArray
    """``[B, K, 3]``"""
    searched: IntArray
    """numbers of the layers that were searched"""
    rebuilt: IntArray
    """numbers of the layers whose groups are not where they belong: planned from nothing"""
    fresh: IntArray
    """``[len(rebuilt), R]``: their plans"""
    held: IntArray
    """``[L, R]``: what ranks hold now"""

    def take(self, budget: int | None, min_gain: float = 0.0) -> IntArray:
        """The placement ``phy2log [L, R]`` for a budget of fetches, or with all steps that gain enough."""
        counts = choose(self.options, budget, min_gain)
        result: IntArray = self.held.copy()
        result[self.searched] = self.sublayers.leave(
            apply_steps(self.start, self.steps, counts[: len(self.start)])
        )
        for layer, row, count in zip(self.rebuilt, self.fresh, counts[len(self.start) :], strict=True):
            if count:
                result[layer] = row
        return result

    @property
    def most(self) -> int:
        """Fetches of the search when every step that lowers its layer's value is taken."""
        return sum(int(options.fetches[hull(options)[-1]]) for options in self.options)


def search_held(
    windows: FloatArray, held: Held, topology: Topology, form: Form, limits: Limits, least: float
) -> Search:
    """Search every layer from what its ranks hold.

    Layers whose groups are not where the form needs them are planned from nothing.

    Parameters
    ----------
    windows : ``[W, L, E]``
    held : a complete placement on the ranks of ``topology``
    least : see `place_fresh`
    """
    vectors = planned_vectors(windows, topology)
    groups, kept = kept_groups(held, topology, form)
    searched, rebuilt = np.flatnonzero(kept), np.flatnonzero(~kept)
    sublayers = Sublayers.of_groups(
        vectors[searched], topology, form, None if groups is None else groups[searched]
    )
    start = sublayers.enter(held.phy2log[searched])
    options, steps = search_from(sublayers.layers, start, limits)
    fresh = held.phy2log[rebuilt]
    if rebuilt.size:
        fresh = place_fresh(windows[:, rebuilt], topology, form, limits.max_steps, least)
        fresh = relabel(fresh, held.phy2log[rebuilt], topology, held.num_experts)
        options += _rebuilt_options(vectors[rebuilt], held.layers(rebuilt), fresh, topology)
    return Search(options, sublayers, start, steps, searched, rebuilt, fresh, held.phy2log)


def _rebuilt_options(vectors: FloatArray, held: Held, fresh: IntArray, topology: Topology) -> list[Options]:
    """For each layer ``[B, R]``: leave it as it is, or take the fresh plan whole."""
    layers = Sublayers.whole(vectors, topology).layers
    imbalance = np.stack([measure(layers, held.phy2log), measure(layers, fresh)], axis=1)
    new = Held(fresh, topology.num_ranks, held.num_experts).holds
    fetches = (new & ~held.holds).sum(axis=(1, 2))
    parted = new.sum(axis=(1, 2)) - held.holds.sum(
        axis=(1, 2)
    )  # fewer twins, more different experts on ranks
    return [
        Options(
            fetches=np.array([0, fetches[layer]]),
            regrouped=np.array([0, 1]),
            parted=np.array([0, parted[layer]]),
            imbalance=imbalance[layer],
        )
        for layer in range(len(fresh))
    ]
