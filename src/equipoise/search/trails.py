"""The trails of many layers: what all their prefixes cost and are worth, and the placements that they lead to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..planning.kernel import kernel
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
        for row, trails, (near, _), pick in zip(phy2log, self.steps, self.taken, picks, strict=True):
            steps = trails[NEAR, :pick] if pick <= near else trails[RECOUNTED, : pick - near]
            for slot, other, expert in steps:
                if other >= 0:
                    row[slot], row[other] = row[other], row[slot]
                else:
                    row[slot] = expert
        return phy2log


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
