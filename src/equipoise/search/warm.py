"""Placements from what ranks hold: every step that pays, and which of them to take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..planning.relabel import relabel
from ..problem import Held
from ..topology import Topology
from .budget import Options, choose, worthwhile
from .fresh import place_fresh, planned_vectors
from .layers import Limits, measure, search_from
from .state import FloatArray, IntArray
from .sublayers import Form, Sublayers, kept_groups
from .trails import Trails


@dataclass(frozen=True)
class Search:
    """What a search from the current placement found."""

    sublayers: Sublayers
    """the layers that were searched"""
    trails: Trails
    """theirs"""
    searched: IntArray
    """numbers of the layers that were searched"""
    rebuilt: IntArray
    """numbers of the layers whose groups are not where they belong: planned from nothing"""
    fresh: IntArray
    """``[len(rebuilt), R]``: their plans"""
    rebuilding: list[Options]
    """of each of them: leave it as it is, or take its plan"""
    held: IntArray
    """``[L, R]``: what ranks hold now"""

    def take(self, budget: int | None, min_gain: float = 0.0) -> IntArray:
        """The placement ``phy2log [L, R]`` for a budget of fetches, or with all steps that gain enough.

        Parameters
        ----------
        budget : most fetches of all layers together; a larger one is never worse by the largest rank loads of
            (sub-)layers, averaged over windows and added up
        min_gain : what each fetch must take off the imbalance, with a budget too
        """
        # Without a budget, plans are weighed by what holds on later traffic (`soft_largest`).
        picks = choose(self._options(by_largest=budget is not None), budget, min_gain)
        num_searched = len(self.trails.start)
        result: IntArray = self.held.copy()
        result[self.searched] = self.sublayers.leave(self.trails.follow(picks[:num_searched]))
        for layer, row, pick in zip(self.rebuilt, self.fresh, picks[num_searched:], strict=True):
            if pick:
                result[layer] = row
        return result

    @property
    def most(self) -> int:
        """Fetches of the search when every step that lowers its layer's value is taken."""
        every = self._options(by_largest=True)
        return sum(int(options.fetches[worthwhile(options)[-1]]) for options in every)

    def _options(self, *, by_largest: bool) -> list[Options]:
        """Those of each searched (sub-)layer, then those of each rebuilt layer."""
        return self.trails.options(by_largest=by_largest) + self.rebuilding


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
    trails = search_from(sublayers.layers, sublayers.demand, start, limits)
    rebuilding: list[Options] = []
    fresh = held.phy2log[rebuilt]
    if rebuilt.size:
        fresh = place_fresh(windows[:, rebuilt], topology, form, limits.max_steps, least)
        fresh = relabel(fresh, held.phy2log[rebuilt], topology, held.num_experts)
        rebuilding = _rebuilt_options(vectors[rebuilt], held.layers(rebuilt), fresh, topology)
    return Search(sublayers, trails, searched, rebuilt, fresh, rebuilding, held.phy2log)


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
