"""The trails of many layers: what all their prefixes cost and are worth, and the placements that they lead to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..planning.kernel import for_layers, kernel
from .budget import Options
from .state import FloatArray, IntArray, Trail

NEAR, RECOUNTED, TRAILS = 0, 1, 2


class Trails(NamedTuple):
    """Two trails of steps from each layer's placement, which begin with the same steps that part twins.

    One takes steps that gain. The other one first brings replica counts to those of a plan from nothing: after a
    shift of the traffic few exchanges gain by themselves, though all of them together do.
    """

    start: IntArray
    """``[B, R]``: where they begin"""
    steps: IntArray
    """``[B, 2, K, 3]``, as in `Trail`; so are the fields below"""
    fetched: IntArray
    """``[B, 2, K + 1]``"""
    value: FloatArray
    """``[B, 2, K + 1]``, infinite where a prefix is no option"""
    largest: FloatArray
    """``[B, 2, K + 1]``, infinite where a prefix is no option"""
    twins: IntArray
    """``[B, 2, K + 1]``"""
    taken: IntArray
    """``[B, 2]``: steps of each trail"""

    @classmethod
    def empty(cls, start: IntArray, max_steps: int) -> Trails:
        """Room for ``max_steps`` steps of each trail from ``start [B, R]``."""
        prefixes = (len(start), TRAILS, max_steps + 1)
        return cls(
            start=start,
            steps=np.empty((len(start), TRAILS, max_steps, 3), np.int64),
            fetched=np.empty(prefixes, np.int64),
            value=np.empty(prefixes, np.float64),
            largest=np.empty(prefixes, np.float64),
            twins=np.empty(prefixes, np.int64),
            taken=np.zeros((len(start), TRAILS), np.int64),
        )

    def options(self, *, by_largest: bool) -> list[Options]:
        """Each layer's prefixes: those of the first trail, then those of the second one but the empty one.

        Parameters
        ----------
        by_largest : imbalance is `mean_largest`, else `soft_largest`
        """
        imbalance = self.largest if by_largest else self.value
        found = []
        for layer, (near, recounted) in enumerate(self.taken.tolist()):
            whole, parts = (NEAR, slice(near + 1)), (RECOUNTED, slice(1, recounted + 1))
            fetches = np.concatenate((self.fetched[layer][whole], self.fetched[layer][parts]))
            twins = np.concatenate((self.twins[layer][whole], self.twins[layer][parts]))
            values = np.concatenate((imbalance[layer][whole], imbalance[layer][parts]))
            found.append(Options(fetches, np.zeros_like(fetches), twins[0] - twins, values))
        return found

    def follow(self, picks: Sequence[int]) -> IntArray:
        """The placement ``[B, R]`` after one option of each layer, by their numbers in `options`."""
        phy2log: IntArray = self.start.copy()
        for_layers(_follow_layers, len(phy2log), self, np.array(picks, np.int64), phy2log)
        return phy2log


@kernel
def follow_option(trails, layer, pick, phy2log):
    """Take the steps of one option of one layer.

    ``trails``: `Trails`. ``layer``: its number. ``pick``: the option, as `Trails.options` numbers them. ``phy2log
    [R]``: the layer's start, changed.
    """
    near = trails.taken[layer, NEAR]
    which, count = (NEAR, pick) if pick <= near else (RECOUNTED, pick - near)
    for k in range(count):
        slot, other, expert = trails.steps[layer, which, k]
        if other >= 0:
            phy2log[slot], phy2log[other] = phy2log[other], phy2log[slot]
        else:
            phy2log[slot] = expert


@kernel
def _follow_layers(first, last, trails, picks, phy2log):
    """Layers ``first`` to ``last``. ``trails``: `Trails`. ``picks [B]``: options. ``phy2log [B, R]`` is changed."""
    for layer in range(first, last):
        follow_option(trails, layer, picks[layer], phy2log[layer])


@kernel
def options_of(trails, layer):
    """What `Trails.options` says of one layer by `soft_largest`. ``trails``: `Trails`. ``layer``: its number."""
    near = trails.taken[layer, NEAR] + 1
    size = near + trails.taken[layer, RECOUNTED]
    options = Options(
        np.empty(size, np.int64),
        np.zeros(size, np.int64),
        np.empty(size, np.int64),
        np.empty(size, np.float64),
    )
    for k in range(size):
        which, prefix = (NEAR, k) if k < near else (RECOUNTED, k - near + 1)
        options.fetches[k] = trails.fetched[layer, which, prefix]
        options.parted[k] = trails.twins[layer, NEAR, 0] - trails.twins[layer, which, prefix]
        options.imbalance[k] = trails.value[layer, which, prefix]
    return options


@kernel
def trail_of(trails, layer, which):
    """One trail of one layer, to write to. ``trails``: `Trails`. ``layer``: its number. ``which``: of its two."""
    return Trail(
        trails.steps[layer, which],
        trails.fetched[layer, which],
        trails.value[layer, which],
        trails.largest[layer, which],
        trails.twins[layer, which],
    )
